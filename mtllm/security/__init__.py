"""Who may ask, what looks hostile, and what may be shown of it."""
