"""List runs with state, step, loss, speed and age: python scripts/runs.py [runs/SWEEP] (lab/list_runs.py)."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository's root, not scripts/
    from lab.list_runs import PROGRAM

    PROGRAM.run()
