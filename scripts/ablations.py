"""What each change to nGPT costs: python scripts/ablations.py runs/ablations_tiny/* (lab/ablations/cli.py)."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository's root, not scripts/
    from lab.ablations.cli import PROGRAM

    PROGRAM.run()
