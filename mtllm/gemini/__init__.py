"""Calls to Gemini: requests and answers, connections that end on time, and what a failure means."""
