"""What the flow of a completion is described in: its result, what it needs of others, and a stream's two ends."""
