"""Everything behind the modules that the project shows at its top."""

__version__ = "1.1.0"

SUMMARY = "Text generation, code generation and text classification by Google Gemini behind three HTTP endpoints."
