"""Look inside trained models: python scripts/inspect_weights.py runs/A runs/B (lab/inspection/cli.py)."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository's root, not scripts/
    from lab.inspection.cli import PROGRAM

    PROGRAM.run()
