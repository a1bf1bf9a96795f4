"""Access, detection of hostile requests, and redaction of secrets."""
