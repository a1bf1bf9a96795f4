"""Answers kept: in memory, in a file, in Redis."""
