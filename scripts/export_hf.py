"""A run as a Hugging Face folder: python scripts/export_hf.py run=runs/NAME out=DIR [checkpoint=N] [dtype=bfloat16].

GPT becomes a LlamaForCausalLM, nGPT a model with its own code (trust_remote_code=True). docs/export.md says what is in it.
"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataclasses import dataclass  # noqa: E402
from typing import Optional  # noqa: E402

import torch  # noqa: E402

from cli.composition import ConfigError  # noqa: E402
from cli.entry import run_entry  # noqa: E402
from lab.export.folder import export_run  # noqa: E402

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class ExportConfig:
    run: str
    out: str
    checkpoint: Optional[int]
    dtype: str


def main(config: ExportConfig) -> None:
    if config.dtype not in DTYPES:
        raise ConfigError(f"dtype={config.dtype}: must be {' or '.join(DTYPES)}")
    step = export_run(Path(config.run), Path(config.out), config.checkpoint, DTYPES[config.dtype])
    print(f"wrote {config.out}: {config.run} at step {step:,}, {config.dtype}")


if __name__ == "__main__":
    run_entry(main, ExportConfig, "export")
