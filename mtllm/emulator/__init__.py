"""A local server that speaks Gemini's REST protocol."""
