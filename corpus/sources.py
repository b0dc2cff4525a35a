"""Name the places text comes from and turn each into addressable documents.

What reads each of them is imported where it is needed: workers do without all of it.
"""

import glob
import os
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from corpus.documents import Documents, DocumentStore
from corpus.manifest import DataError

SOURCES = ("huggingface", "files", "docs")
TOKENIZERS = ("gpt2", "bytes")
LARGEST_PADDING = 1024


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
    dir: str = field(metadata={"is_path": True})
    source: str  # one of SOURCES
    repo: Optional[str] = None
    revision: Optional[str] = None
    files: Any = field(default=None, metadata={"is_path": True})  # a glob or a list of globs
    text_column: str = "text"
    tokenizer: str = "gpt2"  # one of TOKENIZERS, or the name given to a tokenizer.json
    vocab_size: int = 50304  # of the model's embedding: the tokenizer's own, or a little more
    val_fraction: float = 0.0005
    split_seed: int = 2357
    expected: ExpectedCounts = field(default_factory=ExpectedCounts)


def check_data_config(config: DataConfig) -> None:
    """Raise SettingError for values that no run could use."""
    if config.source not in SOURCES:
        raise SettingError(f"data.source={config.source}: there are {', '.join(SOURCES)}")
    if not 0 < config.val_fraction < 1:
        raise SettingError(f"data.val_fraction={config.val_fraction}: expected a number between 0 and 1")
    if config.split_seed < 0:
        raise SettingError(f"data.split_seed={config.split_seed}: expected a whole number from 0 on")
    if config.source == "files" and not config.files:
        raise SettingError("data.files is not set; pass data.files='x/*.parquet' (or .jsonl, .jsonl.gz, .jsonl.zst, .txt)")
    if config.source == "files" and not (isinstance(config.files, str) or all(isinstance(entry, str) for entry in config.files)):
        raise SettingError(f"data.files={config.files}: expected a glob or a list of globs")
    if config.source == "huggingface" and not config.repo:
        raise SettingError("data.repo is not set; data.source=huggingface needs one, for example Skylion007/openwebtext")


def check_vocab_size(vocab_size: int, tokenizer: str, n_tokens: int) -> None:
    """Raise SettingError unless a model of vocab_size outputs suits a tokenizer of n_tokens; the message says what would.

    Padding to a round number is common; a thousand outputs that nothing ever trains are another corpus's setting.
    """
    if not n_tokens <= vocab_size < n_tokens + LARGEST_PADDING:
        raise SettingError(
            f"data.vocab_size={vocab_size}: the tokenizer {tokenizer} has {n_tokens} tokens; "
            f"data.vocab_size={-(-n_tokens // 64) * 64} suits it"
        )


def find_files(patterns: str | list[str]) -> list[str]:
    """Return the files that a glob or a list of globs matches, sorted, each once; raise DataError for a glob without any."""
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matches = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
        if not matches:
            raise DataError(f"data.files={pattern}: no file matches, looked in {os.path.dirname(os.path.abspath(pattern))}")
        found.update(matches)
    return sorted(found)


def describe_source(config: DataConfig, limit: int | None) -> dict[str, Any]:
    """Return what the manifest says of the source; reads no text, so that a finished folder is recognised at once."""
    source: dict[str, Any] = {
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
    saved = Documents.load(folder, fingerprint)
    if saved is not None:
        return saved
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    if config.source == "huggingface":
        from corpus.hub import read_huggingface

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
