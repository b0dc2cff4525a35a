"""How many times fewer tokens an arm needs: python scripts/compare.py runs/A runs/B (lab/speedup/cli.py)."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository's root, not scripts/
    from lab.speedup.cli import PROGRAM

    PROGRAM.run()
