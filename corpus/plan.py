"""The settings of a preparation and the plan made from them: all that is known before any text is read."""

import hashlib
import importlib.metadata
import json
import platform
from dataclasses import asdict, dataclass, field
from typing import Any, Optional, Self

from corpus.manifest import FILE_NAME, FORMAT, SplitInfo
from corpus.sources import TOKENIZERS, DataConfig, SettingError, check_data_config, describe_source
from corpus.tokenizer import Tokenizer, byte_lengths, tokenizer_json


@dataclass
class TokenizerConfig:
    """Which tokenizer, and where its files are: for gpt2 a folder, for one that is not ours a tokenizer.json."""

    name: str = "gpt2"
    files: Optional[str] = field(default=None, metadata={"is_path": True})
    eos_token: Optional[str] = None  # of a tokenizer.json whose special tokens leave it open


@dataclass
class PrepareConfig:
    """The settings of prepare_owt.py (configs/prepare.yaml)."""

    data: DataConfig
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    num_proc: Optional[int] = None
    limit_documents: Optional[int] = None
    overwrite: bool = False
    adopt: bool = False  # write the manifest beside bins that another program wrote


def check_settings(config: PrepareConfig) -> None:
    if not config.adopt:  # which needs no source
        check_data_config(config.data)
    check_tokenizer_settings(config.tokenizer)
    for key in ("num_proc", "limit_documents"):
        value = getattr(config, key)
        if value is not None and value < 1:
            raise SettingError(f"{key}={value}: expected a whole number from 1 on, or null")


def check_tokenizer_settings(config: TokenizerConfig) -> None:
    """Raise SettingError unless name and files belong together."""
    if not FILE_NAME.fullmatch(config.name):
        raise SettingError(f"data.tokenizer={config.name}: use letters, digits and _ . - only")
    is_own, is_json = config.name in TOKENIZERS, (config.files or "").endswith(".json")
    if not is_own and config.files is None:
        raise SettingError(
            f"data.tokenizer={config.name}: there are {', '.join(TOKENIZERS)}; any other needs "
            "tokenizer.files=PATH, its Hugging Face tokenizer.json"
        )
    if is_own and (is_json or config.eos_token is not None):
        raise SettingError(
            f"tokenizer.files={config.files}: a tokenizer.json needs a name other than {config.name}: "
            "data=openwebtext_llama2 has one, data.tokenizer=NAME gives one"
        )


@dataclass(frozen=True)
class Plan:
    """What a run will produce, known before any text is read: recorded in the manifest, compared by fingerprint."""

    name: str
    encoding: Tokenizer
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
        source = describe_source(data, config.limit_documents)
        split = {
            "method": "datasets.train_test_split",
            "test_size": data.val_fraction,
            "seed": data.split_seed,
            "shuffle": True,
        }
        settings = {"source": source, "split": split, "tokenizer": describe_tokenizer(encoding), "dtype": dtype_of(encoding)}
        fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return cls(data.name, encoding, source | {"fingerprint": fingerprint}, split, fingerprint)

    def manifest(self, splits: dict[str, SplitInfo], repaired: int, altered: int) -> dict[str, Any]:
        """Return the manifest of the finished splits, as JSON."""
        source = {**self.source, "invalid_utf8_documents": repaired, "altered_documents": altered}
        return manifest_of(self.name, self.encoding, splits, source, self.split)


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
