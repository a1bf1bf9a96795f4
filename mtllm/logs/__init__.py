"""How the log files come to be: what an event is, what may be shown of it, its lines, the files they go to."""
