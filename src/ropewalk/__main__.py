"""`python -m ropewalk`: the command `ropewalk`, where its script isn't on the path."""

from __future__ import annotations

import sys

from ropewalk.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
