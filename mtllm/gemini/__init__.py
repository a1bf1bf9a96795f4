"""The way to Gemini below its SDK: connections that end on time, bodies as they arrive, and what a failure means."""
