"""Perplexity at multiples of the training context: python scripts/extrapolate.py runs=runs/A,runs/B data=pg19.

A table on standard output, extrapolation.json and extrapolation.png in out=. Works under torchrun.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataclasses import dataclass  # noqa: E402
from typing import Any, Optional  # noqa: E402

from cli.composition import ConfigError  # noqa: E402
from corpus.manifest import SPLITS  # noqa: E402
from corpus.token_file import write_json_atomically  # noqa: E402
from engine.distributed import start_ranks  # noqa: E402
from lab.evaluation.command_line import TIMEOUT_SECONDS, check_common, make_folder, run_script, split_list  # noqa: E402
from lab.evaluation.extrapolation import check_alike, check_multiples, extrapolate, render  # noqa: E402
from lab.evaluation.long_text import read_long_text  # noqa: E402
from lab.evaluation.trained_run import open_run  # noqa: E402


@dataclass
class ExtrapolateConfig:
    runs: Optional[str]
    data: Optional[str]
    split: str
    text_column: str
    multiples: list[int]
    max_tokens: int
    precision: Optional[str]
    device: str
    out: str


def main(config: ExtrapolateConfig) -> None:
    check_common(config, "max_tokens")
    check_multiples(config.multiples)
    if config.split not in SPLITS:
        raise ConfigError(f"split={config.split}: must be {' or '.join(SPLITS)}")
    folders = [Path(run) for run in split_list("runs", config.runs)]
    with start_ranks(config.device, TIMEOUT_SECONDS) as ranks:
        out = ranks.on_main(lambda: make_folder(config.out))
        # All are opened before the first is measured, so that a fault in the last shows at once.
        runs = [open_run(folder, None, config.precision, ranks) for folder in folders]
        check_alike(runs)
        span_tokens = config.multiples[-1] * runs[0].sequence_length
        text = ranks.on_main(
            lambda: read_long_text(runs[0], config.data, config.split, config.text_column, span_tokens, config.max_tokens)
        )
        result = extrapolate(runs, ranks, text, config.multiples)
        if ranks.is_main_process:
            print(render(result))
            print("\nwrote " + ", ".join(map(str, write(result, out))))


def write(result: dict[str, Any], out: Path) -> list[Path]:
    # Imported late: matplotlib takes a second, and a refusal should come at once.
    from lab.evaluation.extrapolation_plot import draw_extrapolation

    paths = [out / "extrapolation.json", out / "extrapolation.png"]
    write_json_atomically(paths[0], result)
    draw_extrapolation(result, paths[1])
    return paths


if __name__ == "__main__":
    run_script(main, ExtrapolateConfig, "extrapolate")
