"""Engines for state that outlives or leaves the process."""
