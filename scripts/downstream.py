"""lm-eval's tasks: python scripts/downstream.py runs/NAME tasks=arc_easy,hellaswag (lab/evaluation/cli.py)."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository's root, not scripts/
    from lab.evaluation.cli import DOWNSTREAM

    DOWNSTREAM.run()
