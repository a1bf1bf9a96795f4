"""What a person or Prometheus is shown of the running service."""
