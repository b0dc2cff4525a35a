"""Tune small, train large: python scripts/transfer.py runs/transfer size=0.5b (lab/transfer/cli.py)."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository's root, not scripts/
    from lab.transfer.cli import PROGRAM

    PROGRAM.run()
