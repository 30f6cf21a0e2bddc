"""`python -m sousa_engine`: the same verbs as the pages."""

import os
import sys

if not (3, 11) <= sys.version_info < (3, 14):
    found = ".".join(map(str, sys.version_info[:2]))
    sys.exit(f"SOUSA engine needs Python 3.11, 3.12 or 3.13; this is {found}. Try: make app PYTHON=python3.12")

try:
    from sousa_engine.workspace import processes

    os.environ.update(processes.environment())  # some commands compute here: before numpy and PyTorch start threads
    from sousa_engine.cli.main import main
except ImportError as error:
    if (error.name or "sousa_engine").startswith("sousa_engine"):
        raise
    sys.exit(
        f"error: {error}. SOUSA engine needs the packages of requirements.txt, which this Python ({sys.executable}) "
        "lacks, or has in other versions. Run `make app`, or: python -m pip install -r requirements.txt"
    )

if __name__ == "__main__":
    main()
