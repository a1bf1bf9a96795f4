"""Stored answers: in memory, on disk, in Redis."""
