"""Compare finished runs: print the speedup table, write report.html, speedup.json and the plots.

python scripts/compare.py runs/A runs/B ... [--out report]
python scripts/compare.py runs/decomposition_tiny/* --decompose   # the parts of the speedup; docs/method.md
Exit codes: 0 compared, 2 the runs cannot be compared or cannot be read.
"""

import sys
from pathlib import Path

# Replaced, not extended: scripts/inspect.py would hide the standard library's inspect from all that follows.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse  # noqa: E402
import os  # noqa: E402

from lab.runs import RunFolderError, read_runs  # noqa: E402
from lab.speedup.comparable import IncomparableError  # noqa: E402
from lab.speedup.groups import analyze_groups  # noqa: E402
from lab.speedup.overview import render_report_text  # noqa: E402


def show(text: str, stream) -> None:
    """Print text without the control characters that a run's name could carry into the terminal."""
    print("".join(char if char.isprintable() or char == "\n" else "?" for char in text), file=stream)


def positive(text: str) -> float:
    """Return a number above zero."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError(text)
    return number


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
    parser.add_argument(
        "--decompose",
        action="store_true",
        help="split arms by precision and take the speedup apart: learning rate, bf16-stored matrices, QK-norm, the rest",
    )
    parser.add_argument(
        "--untuned-rate",
        type=positive,
        metavar="RATE",
        help="with --decompose, the untuned baseline's learning rate (default: of those run, the nearest to nGPT's best)",
    )
    arguments = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")
    try:
        report = analyze_groups(
            read_runs(arguments.runs),
            arguments.baseline,
            tuple(arguments.across),
            arguments.decompose,
            arguments.untuned_rate,
        )
    except (RunFolderError, IncomparableError) as error:
        show(f"compare.py: {error}", sys.stderr)
        return 2
    # Imported late: drawing loads matplotlib, and a refusal should come at once.
    from lab.speedup.write import write_report

    try:
        written = write_report(report, arguments.out)
    except OSError as error:
        show(f"compare.py: cannot write {arguments.out}: {error}", sys.stderr)
        return 2
    try:
        wrote = f"wrote {written[0]}, {written[1].name} and {len(written) - 2} pictures"
        show(f"{render_report_text(report)}\n\n{wrote}", sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader (head, less) has seen enough; the report is already written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
