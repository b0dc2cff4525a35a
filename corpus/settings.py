"""The settings of a corpus and of its preparation, and what cannot be combined; reads no file."""

from dataclasses import dataclass, field
from typing import Any, Optional

from corpus.manifest import FILE_NAME

SOURCES = ("huggingface", "files", "docs")
TOKENIZERS = ("gpt2", "bytes")
ON_BAD_ROW = ("stop", "skip")
LARGEST_PADDING = 1024  # outputs beyond the tokenizer's tokens


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
    """One corpus: where its text comes from, how it becomes tokens, where the bins are (configs/data/*.yaml)."""

    name: str
    dir: str = field(metadata={"is_path": True})
    source: str  # one of SOURCES
    repo: Optional[str] = None
    revision: Optional[str] = None
    files: Any = field(default=None, metadata={"is_path": True})  # a file, a folder, a glob, or a list of them
    text_column: str = "text"
    tokenizer: str = "gpt2"  # one of TOKENIZERS, or the name given to a tokenizer.json
    vocab_size: int = 50304  # of the model's embedding: the tokenizer's own, or a little more
    val_fraction: float = 0.0005
    split_seed: int = 2357
    expected: ExpectedCounts = field(default_factory=ExpectedCounts)


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
    on_bad_row: str = "stop"  # one of ON_BAD_ROW


def check_settings(config: PrepareConfig) -> None:
    """Check what can be checked without looking at any file.

    Raises:
        SettingError: a value that no preparation could use.
    """
    if not config.adopt:  # which needs no source
        check_data_config(config.data)
    check_tokenizer_settings(config.tokenizer)
    if config.on_bad_row not in ON_BAD_ROW:
        raise SettingError(f"on_bad_row={config.on_bad_row}: there are {', '.join(ON_BAD_ROW)}")
    for key in ("num_proc", "limit_documents"):
        value = getattr(config, key)
        if value is not None and value < 1:
            raise SettingError(f"{key}={value}: expected a whole number from 1 on, or null")


def check_data_config(config: DataConfig) -> None:
    """Check the description of a corpus.

    Raises:
        SettingError: a value that no run could use.
    """
    if config.source not in SOURCES:
        raise SettingError(f"data.source={config.source}: there are {', '.join(SOURCES)}")
    if not 0 < config.val_fraction < 1:
        raise SettingError(f"data.val_fraction={config.val_fraction}: expected a number between 0 and 1")
    if config.split_seed < 0:
        raise SettingError(f"data.split_seed={config.split_seed}: expected a whole number from 0 on")
    if config.source == "files" and not config.files:
        raise SettingError("data.files is not set; pass data.files='x/*.parquet', a file, or a folder (formats: docs/data.md)")
    if config.source == "files" and not (isinstance(config.files, str) or all(isinstance(entry, str) for entry in config.files)):
        raise SettingError(f"data.files={config.files}: expected a glob or a list of globs")
    if config.source == "huggingface" and not config.repo:
        raise SettingError("data.repo is not set; data.source=huggingface needs one, for example Skylion007/openwebtext")


def check_tokenizer_settings(config: TokenizerConfig) -> None:
    """Check that name and files belong together.

    Raises:
        SettingError: they do not.
    """
    if not FILE_NAME.fullmatch(config.name):
        raise SettingError(f"data.tokenizer={config.name}: use letters, digits and _ . - only")
    is_own = config.name in TOKENIZERS
    if not is_own and config.files is None:
        raise SettingError(
            f"data.tokenizer={config.name}: there are {', '.join(TOKENIZERS)}; any other needs "
            "tokenizer.files=PATH, its Hugging Face tokenizer.json"
        )
    if is_own and config.eos_token is not None:
        raise SettingError(f"tokenizer.eos_token={config.eos_token}: the tokenizer {config.name} has an end of its own")


def check_vocab_size(vocab_size: int, tokenizer: str, n_tokens: int) -> None:
    """Check that a model of vocab_size outputs suits a tokenizer of n_tokens.

    Padding to a round number is common; a thousand outputs that nothing ever trains are another corpus's setting.

    Raises:
        SettingError: it does not; the message says what would.
    """
    if not is_suitable(vocab_size, n_tokens):
        raise SettingError(
            f"data.vocab_size={vocab_size}: the tokenizer {tokenizer} has {n_tokens} tokens; "
            f"data.vocab_size={suitable_vocab_size(n_tokens)} suits it"
        )


def is_suitable(vocab_size: int, n_tokens: int) -> bool:
    return n_tokens <= vocab_size < n_tokens + LARGEST_PADDING


def suitable_vocab_size(n_tokens: int) -> int:
    """Return n_tokens rounded up to a multiple of 64, for the matrix units; of 16 below 512."""
    multiple = 64 if n_tokens > 512 else 16
    return -(-n_tokens // multiple) * multiple
