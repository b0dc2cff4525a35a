"""The former name of scripts/inspect_weights.py, for one release.

A folder with this name, not a file: Python runs it all the same, and `import inspect` cannot take it for the standard library's.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # the repository's root
    print("note: scripts/inspect.py is now scripts/inspect_weights.py; the old name goes with the next release", file=sys.stderr)
    from lab.inspection.cli import PROGRAM

    PROGRAM.run()
