"""A run as a Hugging Face folder: python scripts/export_hf.py runs/NAME out=DIR (lab/export/cli.py)."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository's root, not scripts/
    from lab.export.cli import PROGRAM

    PROGRAM.run()
