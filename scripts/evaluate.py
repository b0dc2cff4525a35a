"""Perplexity of a trained run on a token file: python scripts/evaluate.py run=runs/NAME data=data/openwebtext.

One JSON object on standard output, a line for people on standard error. Works under torchrun.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import json  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from typing import Optional  # noqa: E402

from cli.composition import ConfigError  # noqa: E402
from corpus.manifest import SPLITS  # noqa: E402
from engine.distributed import start_ranks  # noqa: E402
from lab.evaluation.command_line import TIMEOUT_SECONDS, check_common, run_script  # noqa: E402
from lab.evaluation.perplexity import measure_perplexity  # noqa: E402
from lab.evaluation.trained_run import open_run  # noqa: E402


@dataclass
class EvaluateConfig:
    run: str
    checkpoint: Optional[int]
    data: Optional[str]
    split: str
    sequence_length: Optional[int]
    windows: Optional[int]
    batch_size: Optional[int]
    precision: Optional[str]
    device: str


def main(config: EvaluateConfig) -> None:
    check_common(config, "sequence_length", "batch_size")
    if config.split not in SPLITS:
        raise ConfigError(f"split={config.split}: must be {' or '.join(SPLITS)}")
    if config.windows is not None and config.windows < 0:
        raise ConfigError(f"windows={config.windows}: must not be negative (0 takes all)")
    with start_ranks(config.device, TIMEOUT_SECONDS) as ranks:
        run = open_run(Path(config.run), config.checkpoint, config.precision, ranks)
        data = Path(config.data) if config.data else None
        result = measure_perplexity(run, ranks, data, config.split, config.sequence_length, config.windows, config.batch_size)
        if ranks.is_main_process:
            show(result)


def show(result: dict) -> None:
    line = (
        f"{result['run']} at step {result['step']:,} on {result['data']} ({result['split']}, "
        f"{result['tokens']:,} tokens, context "
        f"{result['sequence_length']}): {result['nats_per_token']:.4f} nats/token, perplexity {result['perplexity']:.3f}, "
        f"{result['bits_per_byte']:.4f} bits/byte"
    )
    if result["recorded_in_training"] is not None:
        line += f"; training recorded {result['recorded_in_training']:.4f} on the same windows"
    print(line, file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    run_script(main, EvaluateConfig, "evaluate")
