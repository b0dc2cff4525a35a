"""Turn text into token bins: python prepare_owt.py (OpenWebText), data=docs, or data=local data.files='x/*.parquet'."""

from corpus.prepare import prepare
from corpus.settings import PrepareConfig


def main(config: PrepareConfig) -> None:
    prepare(config)


if __name__ == "__main__":
    # Here, because the worker processes import this file too and need no Hydra.
    from cli.entry import run_entry

    run_entry(main, PrepareConfig, config_name="prepare", literal=("data.dir", "data.files", "tokenizer.files"))
