"""Workloads that measure the service and its parts; `python -m benchmarks` runs them."""
