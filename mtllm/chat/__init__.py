"""Chat completions in OpenAI's shape: one more task, and the shape of its answers. Knows no HTTP."""
