"""The log files: the lines of an event, their queue, the files they go to."""
