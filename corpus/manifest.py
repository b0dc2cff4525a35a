"""The manifest of a data folder: what it holds, checked field by field.

It comes from disk and may have been edited, truncated or copied from elsewhere: nothing of it is used unchecked.
"""

import hashlib
import json
import re
import reprlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.json"
TOKEN_BYTES_NAME = "token_bytes.bin"
SPLITS = ("train", "val")
DTYPES: dict[str, np.dtype] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
BLOCK_BYTES = 1 << 24  # what one digest of SplitInfo.block_sha256 covers
SHA256 = re.compile(r"[0-9a-f]{64}")
# One plain name: no separator, no "..", nothing hidden, so that it cannot leave the folder.
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
LARGEST_MANIFEST = 100_000_000
LARGEST_COUNT = 2**53  # what JSON readers keep exact


class DataError(ValueError):
    """Data that cannot be used; the message names the file and the remedy."""

    exit_code = 3


def first_line(error: BaseException) -> str:
    """Return what a library says of an error, short enough for a message of ours."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


@dataclass(frozen=True)
class TokenizerInfo:
    """The tokenizer that wrote the bins; digest is the sha256 of tokenizer.json."""

    name: str
    digest: str
    vocab_size: int
    eot_id: int
    token_bytes_sha256: str = ""  # of token_bytes.bin; "" in manifests from before it was recorded


@dataclass(frozen=True)
class SplitInfo:
    """One split: tokens counts the EOT of each document, bytes is its UTF-8 text without them.

    block_sha256 is the digests of the file's consecutive BLOCK_BYTES in one string, so that a sample of the file can be
    checked; "" in manifests from before they were recorded.
    """

    file: str
    tokens: int
    documents: int
    bytes: int
    max_id: int
    sha256: str
    block_sha256: str = ""


@dataclass(frozen=True)
class Manifest:
    """What a data folder holds."""

    format: int
    name: str
    tokenizer: TokenizerInfo
    dtype: str
    splits: dict[str, SplitInfo]
    source: dict[str, Any]
    split: dict[str, Any]
    versions: dict[str, str]

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize

    @property
    def data_digest(self) -> str:
        """Return the sha256 that two folders share exactly when their tokens and tokenizer are the same."""
        parts = [self.tokenizer.digest, *(self.splits[name].sha256 for name in SPLITS)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def read_manifest(directory: str | Path) -> Manifest:
    """Return the checked manifest of a data folder; raise DataError naming the file, the field and the remedy."""
    path = Path(directory) / MANIFEST_NAME
    if not path.is_file():  # a named pipe would be waited for
        raise DataError(f"{path}: missing, no data prepared here; {remedy(directory)}")
    try:
        if path.stat().st_size > LARGEST_MANIFEST:
            raise ValueError(f"more than {LARGEST_MANIFEST:,} bytes")
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)}); {remedy(directory)} overwrite=true") from None
    try:
        return parse_manifest(raw)
    except DataError as error:
        raise DataError(f"{path}: {error}; {remedy(directory)} overwrite=true") from None


def parse_manifest(raw: Any) -> Manifest:
    """Return raw JSON as a Manifest; raise DataError naming the first field that is missing, unknown or out of range."""
    top = fields_of(raw, "the manifest", ("format", "name", "tokenizer", "dtype", "splits", "source", "split", "versions"))
    if whole(top["format"], "format", 0) != FORMAT:
        raise DataError(f"format is {top['format']}, this version reads {FORMAT}")
    if text(top["dtype"], "dtype") not in DTYPES:
        raise DataError(f"dtype is {reprlib.repr(top['dtype'])}, expected one of {', '.join(DTYPES)}")
    tokenizer = parse_tokenizer(top["tokenizer"], top["dtype"])
    splits = fields_of(top["splits"], "splits", SPLITS)
    itemsize = DTYPES[top["dtype"]].itemsize
    parsed = {name: parse_split(splits[name], f"splits.{name}", tokenizer.vocab_size, itemsize) for name in SPLITS}
    if parsed["train"].file == parsed["val"].file:
        raise DataError(f"splits.val.file is splits.train.file ({parsed['val'].file})")
    return Manifest(
        FORMAT,
        text(top["name"], "name"),
        tokenizer,
        top["dtype"],
        parsed,
        parse_source(top["source"]),
        parse_split_method(top["split"]),
        parse_versions(top["versions"]),
    )


def parse_tokenizer(raw: Any, dtype: str) -> TokenizerInfo:
    values = fields_of(raw, "tokenizer", ("name", "digest", "vocab_size", "eot_id"), ("token_bytes_sha256",))
    vocab_size = whole(values["vocab_size"], "tokenizer.vocab_size", 1, 2 ** (8 * DTYPES[dtype].itemsize))
    eot_id = whole(values["eot_id"], "tokenizer.eot_id", 0, vocab_size - 1)
    return TokenizerInfo(
        text(values["name"], "tokenizer.name"),
        digest(values["digest"], "tokenizer.digest"),
        vocab_size,
        eot_id,
        digests(values.get("token_bytes_sha256", ""), "tokenizer.token_bytes_sha256", 1),
    )


def parse_split(raw: Any, where: str, vocab_size: int, itemsize: int) -> SplitInfo:
    values = fields_of(raw, where, ("file", "tokens", "documents", "bytes", "max_id", "sha256"), ("block_sha256",))
    if not FILE_NAME.fullmatch(text(values["file"], f"{where}.file")):
        raise DataError(f"{where}.file is {reprlib.repr(values['file'])}, not a plain file name")
    tokens = whole(values["tokens"], f"{where}.tokens", 1)
    documents = whole(values["documents"], f"{where}.documents", 1, tokens)  # each document ends with EOT
    return SplitInfo(
        values["file"],
        tokens,
        documents,
        whole(values["bytes"], f"{where}.bytes", 0),
        whole(values["max_id"], f"{where}.max_id", 0, vocab_size - 1),
        digest(values["sha256"], f"{where}.sha256"),
        digests(values.get("block_sha256", ""), f"{where}.block_sha256", -(-tokens * itemsize // BLOCK_BYTES)),
    )


def parse_source(raw: Any) -> dict[str, Any]:
    """Check the four fields every source has; what else a source records is its own.

    Raises:
        DataError: one of them is not right.
    """
    if not isinstance(raw, dict):
        raise DataError("source is not an object")
    fields_of(
        {key: raw[key] for key in ("kind", "name", "revision", "files") if key in raw},
        "source",
        ("kind", "name", "revision", "files"),
    )
    text(raw["kind"], "source.kind"), text(raw["name"], "source.name")
    if raw["revision"] is not None:
        text(raw["revision"], "source.revision")
    if not isinstance(raw["files"], list):
        raise DataError("source.files is not a list")
    for position, entry in enumerate(raw["files"]):
        values = fields_of(entry, f"source.files[{position}]", ("name", "size"))
        text(values["name"], f"source.files[{position}].name")
        whole(values["size"], f"source.files[{position}].size", 0)
    return raw


def parse_split_method(raw: Any) -> dict[str, Any]:
    values = fields_of(raw, "split", ("method", "test_size", "seed", "shuffle"))
    text(values["method"], "split.method")
    whole(values["seed"], "split.seed", 0)
    size = values["test_size"]
    if not isinstance(size, float) or not 0 < size < 1:
        raise DataError(f"split.test_size is {reprlib.repr(size)}, expected a number between 0 and 1")
    if not isinstance(values["shuffle"], bool):
        raise DataError(f"split.shuffle is {reprlib.repr(values['shuffle'])}, expected true or false")
    return values


def parse_versions(raw: Any) -> dict[str, str]:
    if not isinstance(raw, dict):
        raise DataError("versions is not an object")
    return {key: text(value, f"versions.{key}") for key, value in raw.items()}


def fields_of(raw: Any, where: str, names: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return raw if it is an object with exactly these keys; those of later versions are optional.

    Raises:
        DataError: a key is missing or unknown. So do the checks below, naming the field that is not right.
    """
    if not isinstance(raw, dict):
        raise DataError(f"{where} is not an object")
    missing, unknown = [name for name in names if name not in raw], sorted(set(raw) - {*names, *optional})
    if missing or unknown:
        raise DataError(f"{where} lacks {missing[0]}" if missing else f"{where} has an unknown field {reprlib.repr(unknown[0])}")
    return raw


def whole(value: Any, where: str, lowest: int, highest: int = LARGEST_COUNT) -> int:
    # bool is an int in Python, and true is not a count.
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise DataError(f"{where} is {reprlib.repr(value)}, expected a whole number from {lowest} to {highest}")
    return value


def text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise DataError(f"{where} is {reprlib.repr(value)}, expected a non-empty string")
    return value


def digest(value: Any, where: str) -> str:
    if not isinstance(value, str) or not SHA256.fullmatch(value):
        raise DataError(f"{where} is {reprlib.repr(value)}, expected 64 hexadecimal digits")
    return value


def digests(value: Any, where: str, count: int) -> str:
    """Return count digests written one after the other, or "" where an older version recorded none."""
    if not isinstance(value, str) or (value and (len(value) != 64 * count or not re.fullmatch(r"[0-9a-f]+", value))):
        raise DataError(f"{where} is not {count} times 64 hexadecimal digits")
    return value


def remedy(directory: str | Path) -> str:
    """Name the command that would prepare this folder."""
    from cli.composition import CONFIG_DIR  # imports Hydra, which a reader of sound bins does not need

    name = Path(directory).resolve().name
    where = "" if Path(directory) == Path("data") / name else " " + shlex.quote(f"data.dir={directory}")
    if name != "local" and (Path(CONFIG_DIR) / "data" / f"{name}.yaml").is_file():
        return f"run: python prepare_owt.py data={name}{where}"
    return f"run: python prepare_owt.py data=docs (or openwebtext, or data=local data.files='...'){where}"
