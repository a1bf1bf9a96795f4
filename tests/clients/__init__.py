"""Real Gemini clients against the emulator, outside the test run: they come from PyPI and npm."""
