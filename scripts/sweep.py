"""Run a sweep: python scripts/sweep.py sweeps/tiny.yaml (lab/sweeps/cli.py)."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository's root, not scripts/
    from lab.sweeps.cli import PROGRAM

    PROGRAM.run()
