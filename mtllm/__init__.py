"""Everything behind the modules that the project shows at its top."""
