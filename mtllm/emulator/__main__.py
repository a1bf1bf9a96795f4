"""`python -m mtllm.emulator`: the local Gemini by itself."""

import sys

from mtllm.emulator.command import main

sys.exit(main())
