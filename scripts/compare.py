"""Compare finished runs: print the speedup table, write report.html, speedup.json and the plots.

python scripts/compare.py runs/A runs/B ... [--out report]
Exit codes: 0 compared, 2 the runs cannot be compared or cannot be read.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis.comparison import IncomparableError, analyze_runs  # noqa: E402
from analysis.runs import RunFolderError, read_runs  # noqa: E402
from analysis.tables import render_text  # noqa: E402


def show(text: str, stream) -> None:
    """Print text without the control characters that a run's name could carry into the terminal."""
    print("".join(char if char.isprintable() or char == "\n" else "?" for char in text), file=stream)


def main() -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="compare.py", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, for example runs/NAME")
    parser.add_argument("--out", default="report", help="folder to write (default: report)")
    parser.add_argument("--baseline", help="the arm to measure against (default: gpt, else the first given)")
    parser.add_argument(
        "--across",
        action="append",
        default=[],
        metavar="KEY",
        help="make each value of a setting an arm of its own: precision, or a dotted config key",
    )
    arguments = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")
    try:
        analysis = analyze_runs(read_runs(arguments.runs), arguments.baseline, tuple(arguments.across))
    except (RunFolderError, IncomparableError) as error:
        show(f"compare.py: {error}", sys.stderr)
        return 2
    # Imported late: drawing loads matplotlib, and a refusal should come at once.
    from analysis.report import write_report

    try:
        written = write_report(analysis, arguments.out)
    except OSError as error:
        show(f"compare.py: cannot write {arguments.out}: {error}", sys.stderr)
        return 2
    try:
        show(render_text(analysis) + "\n\nwrote " + ", ".join(str(path) for path in written), sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader (head, less) has seen enough; the report is already written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
