"""Answers each row of a CSV or JSON lines file: `python bulk.py INPUT --task T --column C --output OUT`."""

import sys

from mtllm.bulk.command import main

if __name__ == "__main__":
    sys.exit(main())
