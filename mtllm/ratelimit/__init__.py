"""Limits, sliding windows, and the clients that they hold."""
