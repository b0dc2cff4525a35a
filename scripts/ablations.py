"""Print what each change to nGPT costs, beside the paper's tables 4 to 6.

python scripts/ablations.py runs/ablations_tiny/* [--out report/ablations]
Exit codes: 0 printed, 2 the runs cannot be compared or cannot be read.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse  # noqa: E402
import os  # noqa: E402

from lab.ablations.table import AblationError, analyze_ablations  # noqa: E402
from lab.ablations.write import render_text, write_ablations  # noqa: E402
from lab.runs import RunFolderError, read_runs  # noqa: E402


def fail(message: object) -> int:
    """Print one line, without the control characters that a file could carry into the terminal."""
    text = " ".join(str(message).split())
    print("error: " + "".join(c if c.isprintable() else "?" for c in text), file=sys.stderr)
    return 2


def main() -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="ablations.py", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder; files among them are passed over")
    parser.add_argument("--out", type=Path, help="folder to write ablations.json and ablations.md to")
    parser.add_argument("--base", metavar="NAME", help="a run of the base (default: what differs least from the others)")
    arguments = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")
    try:
        ablations = analyze_ablations(read_runs([run for run in arguments.runs if not Path(run).is_file()]), arguments.base)
        written = write_ablations(ablations, arguments.out) if arguments.out else []
    except (RunFolderError, AblationError) as error:
        return fail(error)
    except OSError as error:
        return fail(f"cannot write {arguments.out}: {error}")
    try:
        print(render_text(ablations))
        if written:
            print("\nwrote " + ", ".join(map(str, written)))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
