"""`python -m sousa_engine`: the same verbs as the pages."""

import sys

if not (3, 11) <= sys.version_info < (3, 14):
    found = ".".join(map(str, sys.version_info[:2]))
    sys.exit(f"SOUSA engine needs Python 3.11, 3.12 or 3.13; this is {found}. Try: make app PYTHON=python3.12")

from sousa_engine.cli import main

if __name__ == "__main__":
    main()
