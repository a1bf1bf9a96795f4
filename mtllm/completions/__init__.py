"""The flow of one completion: stored answers, one flight for identical requests, attempts, streams."""
