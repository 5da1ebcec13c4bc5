"""`python -m tests.fuzz`; apart from `command`, since a process that is spawned does not import a `__main__`."""

import sys

from tests.fuzz.command import main

if __name__ == "__main__":
    sys.exit(main())
