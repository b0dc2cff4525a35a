"""Name the places text comes from and turn each into addressable documents.

`datasets` and `pyarrow` are imported where they are needed: workers and the reading of local text do without.
"""

import errno
import glob
import json
import os
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import numpy as np

from corpus.documents import Documents, DocumentStore
from corpus.manifest import DataError, first_line

SOURCES = ("huggingface", "files", "docs")
TOKENIZERS = ("gpt2", "bytes")


class SettingError(ValueError):
    """A setting that cannot work; the message says what would."""

    exit_code = 2


@dataclass
class ExpectedCounts:
    """Published counts of a corpus; None where there are none."""

    documents: Optional[int] = None
    train_tokens: Optional[int] = None
    val_tokens: Optional[int] = None


@dataclass
class DataConfig:
    """One corpus: where its text comes from, how it becomes tokens, where the bins lie (configs/data/*.yaml)."""

    name: str
    dir: str
    source: str  # one of SOURCES
    repo: Optional[str] = None
    revision: Optional[str] = None
    files: Any = None  # a glob or a list of globs
    text_column: str = "text"
    tokenizer: str = "gpt2"  # one of TOKENIZERS
    vocab_size: int = 50304  # of the model's embedding, at least the tokenizer's own
    val_fraction: float = 0.0005
    split_seed: int = 2357
    expected: ExpectedCounts = field(default_factory=ExpectedCounts)


def check_data_config(config: DataConfig) -> None:
    """Raise SettingError for values that no run could use."""
    for key, value, choices in (("source", config.source, SOURCES), ("tokenizer", config.tokenizer, TOKENIZERS)):
        if value not in choices:
            raise SettingError(f"data.{key}={value}: there are {', '.join(choices)}")
    if not 0 < config.val_fraction < 1:
        raise SettingError(f"data.val_fraction={config.val_fraction}: expected a number between 0 and 1")
    if config.split_seed < 0:
        raise SettingError(f"data.split_seed={config.split_seed}: expected a whole number from 0 on")
    if config.source == "files" and not config.files:
        raise SettingError(
            "data.files is not set; pass data.files='x/*.parquet' (or .jsonl, .jsonl.gz, .jsonl.zst, .txt)"
        )
    if config.source == "files" and not (
        isinstance(config.files, str) or all(isinstance(entry, str) for entry in config.files)
    ):
        raise SettingError(f"data.files={config.files}: expected a glob or a list of globs")
    if config.source == "huggingface" and not config.repo:
        raise SettingError(
            "data.repo is not set; data.source=huggingface needs one, for example Skylion007/openwebtext"
        )


def find_files(patterns: str | list[str]) -> list[str]:
    """Return the files that a glob or a list of globs matches, sorted, each once; raise DataError for a glob without any."""
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matches = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
        if not matches:
            raise DataError(
                f"data.files={pattern}: no file matches, looked in {os.path.dirname(os.path.abspath(pattern))}"
            )
        found.update(matches)
    return sorted(found)


def describe_source(config: DataConfig, limit: int | None) -> dict[str, Any]:
    """Return what the manifest says of the source; reads no text, so that a finished folder is recognised at once."""
    source = {
        "kind": config.source,
        "name": config.name,
        "revision": config.revision,
        "files": [],
        "text_column": config.text_column,
        "limit_documents": limit,
    }
    if config.source == "huggingface":
        source["name"] = config.repo
    elif config.source == "docs":
        source["revision"] = f"Python {sys.version.split()[0]}"
    else:
        paths = find_files(config.files)
        folder = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
        source["files"] = [
            {"name": os.path.relpath(os.path.abspath(path), folder), "size": os.path.getsize(path)} for path in paths
        ]
        # A rewritten file may keep its size; a partial result of the old one must not be continued with the new one.
        source["modified_ns"] = [os.stat(path).st_mtime_ns for path in paths]
    return source


def open_documents(config: DataConfig, folder: Path, limit: int | None, num_proc: int, fingerprint: str) -> Documents:
    """Return every document of the source in order, unpacking into folder what cannot be read in place.

    A folder that a killed run with the same fingerprint completed is used again.
    """
    saved = load_documents(folder, fingerprint)
    if saved is not None:
        return saved
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    if config.source == "huggingface":
        documents = read_huggingface(config, folder, limit, num_proc)
    elif config.source == "docs":
        from corpus.documentation import add_documentation

        store = DocumentStore(folder / "text.bin", limit)
        add_documentation(store, Path(sysconfig.get_path("stdlib")))
        documents = store.finish()
    else:
        from corpus.readers import add_files

        store = DocumentStore(folder / "text.bin", limit)
        add_files(store, find_files(config.files), config.text_column)
        documents = store.finish()
    documents.save(folder, fingerprint)
    return documents


def load_documents(folder: Path, fingerprint: str) -> Documents | None:
    """Return the index a completed earlier run left in folder, None if there is none or its settings or files are gone."""
    try:
        saved = json.loads((folder / "documents.json").read_bytes())
        if saved["fingerprint"] == fingerprint and all(os.path.exists(path) for path in saved["paths"]):
            return Documents(saved["paths"], np.load(folder / "records.npy"), saved["repaired"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def read_huggingface(config: DataConfig, folder: Path, limit: int | None, num_proc: int) -> Documents:
    """Return the train split of a dataset on the hub, addressed inside the Arrow files of its cache."""
    import datasets

    from corpus.readers import add_column, index_arrow_files, require_column

    try:
        dataset = datasets.load_dataset(
            config.repo, revision=config.revision, split="train", num_proc=num_proc if num_proc > 1 else None
        )
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(
            f"{config.repo}: cannot be loaded ({first_line(error)}); data=local reads parquet files from disk, data=docs needs nothing"
        ) from None
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{config.repo} at revision {config.revision}: {first_line(error)}") from None
    require_column(config.repo, config.text_column, dataset.column_names)
    files = [entry["filename"] for entry in dataset.cache_files]
    in_place = index_arrow_files(files, config.text_column, len(dataset), limit) if files else None
    if in_place is not None:
        return in_place
    store = DocumentStore(folder / "text.bin", limit)
    for table in dataset.select_columns([config.text_column]).with_format("arrow").iter(batch_size=256):
        for chunk in table.column(0).chunks:
            add_column(store, config.repo, chunk)
        if store.is_full:
            break
    return store.finish()
