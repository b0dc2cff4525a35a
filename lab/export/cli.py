"""A run as a Hugging Face folder: GPT becomes a LlamaForCausalLM, nGPT a model with its own code (trust_remote_code=True).

    python scripts/export_hf.py runs/NAME out=DIR

    run=runs/NAME     the run folder, if it is not given without a key
    out=DIR           the folder to write; it must be new or empty
    checkpoint=null   step of the checkpoint; null: the newest
    dtype=float32     float32: as trained; bfloat16: half the size

docs/export.md says what is in the folder. Exit codes: 0 written, 2 configuration, 3 tokenizer, 4 checkpoint.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from cli.arguments import PATH, Program
from cli.composition import ConfigError
from cli.loading import loading

DTYPES = ("float32", "bfloat16")


@dataclass
class Settings:
    run: str = field(metadata=PATH)
    out: str = field(metadata=PATH)
    checkpoint: Optional[int] = None
    dtype: str = "float32"


def main(settings: Settings) -> None:
    if settings.dtype not in DTYPES:
        raise ConfigError(f"dtype={settings.dtype}: must be {' or '.join(DTYPES)}")
    with loading():
        import torch

        from lab.export.folder import export_run

    dtype = getattr(torch, settings.dtype)
    step = export_run(Path(settings.run), Path(settings.out), settings.checkpoint, dtype)
    print(f"wrote {settings.out}: {settings.run} at step {step:,}, {settings.dtype}")


PROGRAM = Program(main, Settings, ("run",), __doc__)
