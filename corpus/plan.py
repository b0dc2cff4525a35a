"""The plan of a preparation: all that is known before any text is read."""

import hashlib
import importlib.metadata
import json
import platform
from dataclasses import asdict, dataclass
from typing import Any, Self

from corpus.files import find_files
from corpus.manifest import FORMAT, SplitInfo
from corpus.settings import PrepareConfig
from corpus.sources import describe_source
from corpus.tokenizer import Tokenizer, byte_lengths, tokenizer_json


@dataclass(frozen=True)
class Plan:
    """What a run will produce, known before any text is read: recorded in the manifest, compared by fingerprint."""

    name: str
    encoding: Tokenizer
    files: list[str]  # of source=files, found once
    source: dict[str, Any]
    split: dict[str, Any]
    fingerprint: str

    @classmethod
    def make(cls, config: PrepareConfig, encoding: Tokenizer) -> Self:
        """Look at the source's files, not into them.

        Raises:
            DataError: there are no such files.
        """
        data = config.data
        files = find_files(data.files) if data.source == "files" else []
        source = describe_source(data, files, config.limit_documents)
        split = {
            "method": "datasets.train_test_split",
            "test_size": data.val_fraction,
            "seed": data.split_seed,
            "shuffle": True,
        }
        settings = {"source": source, "split": split, "tokenizer": describe_tokenizer(encoding), "dtype": dtype_of(encoding)}
        fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return cls(data.name, encoding, files, source | {"fingerprint": fingerprint}, split, fingerprint)

    def manifest(self, splits: dict[str, SplitInfo], split: dict[str, Any], counts: dict[str, int]) -> dict[str, Any]:
        """Return the manifest of the finished splits, as JSON; counts says what was repaired or left out of the source."""
        return manifest_of(self.name, self.encoding, splits, {**self.source, **counts}, split)


def dtype_of(encoding: Tokenizer) -> str:
    """Return the type of the ids in a bin, one of DTYPES."""
    return "uint16" if encoding.n_vocab <= 65536 else "uint32"


def describe_tokenizer(encoding: Tokenizer) -> dict[str, Any]:
    return {
        "name": encoding.name,
        "digest": hashlib.sha256(tokenizer_json(encoding)).hexdigest(),
        "vocab_size": encoding.n_vocab,
        "eot_id": encoding.eot_token,
    }


def manifest_of(
    name: str, encoding: Tokenizer, splits: dict[str, SplitInfo], source: dict[str, Any], split: dict[str, Any]
) -> dict[str, Any]:
    """Return a manifest as JSON."""
    versions = {name: installed_version(name) for name in ("tiktoken", "tokenizers", "datasets", "numpy")}
    token_bytes = hashlib.sha256(byte_lengths(encoding).tobytes()).hexdigest()
    return {
        "format": FORMAT,
        "name": name,
        "tokenizer": {**describe_tokenizer(encoding), "token_bytes_sha256": token_bytes},
        "dtype": dtype_of(encoding),
        "splits": {name: asdict(info) for name, info in splits.items()},
        "source": source,
        "split": split,
        "versions": {"python": platform.python_version(), **versions},
    }


def installed_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
