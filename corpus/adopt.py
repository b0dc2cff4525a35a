"""Adopt bins that another program wrote in nanoGPT's format: check them, write the manifest beside them, change nothing."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corpus.bin_writer import FileDigests
from corpus.manifest import DTYPES, MANIFEST_NAME, SPLITS, TOKEN_BYTES_NAME, TOKENIZER_NAME, DataError, SplitInfo
from corpus.plan import dtype_of, manifest_of
from corpus.publication import ADOPTED, foreign, is_own_manifest
from corpus.settings import DataConfig
from corpus.token_file import read_manifest, verify_token_files
from corpus.tokenizer import Tokenizer, byte_lengths, tokenizer_json
from runfolder.files import write_atomically, write_json_atomically

READ_BYTES = 1 << 24
SHOWN_TOKENS = 24


@dataclass(frozen=True)
class Contents:
    """What one bin holds, and how it begins."""

    info: SplitInfo
    first_tokens: list[int]


def adopt(directory: Path, config: DataConfig, encoding: Tokenizer) -> None:
    """Write manifest.json, tokenizer.json and token_bytes.bin beside train.bin and val.bin, which are read and not touched.

    Raises:
        DataError: a bin is missing, is not of this tokenizer or not of the published size, or a file is in the way.
    """
    path = directory / MANIFEST_NAME
    if os.path.lexists(path):
        if not is_own_manifest(path):
            raise foreign(path)
        verify_token_files(directory, read_manifest(directory))
        print(f"already has a manifest that fits its files: {directory}")
        return
    refuse_characters(directory)
    beside = {TOKENIZER_NAME: tokenizer_json(encoding), TOKEN_BYTES_NAME: byte_lengths(encoding).tobytes()}
    for name, content in beside.items():
        if os.path.lexists(directory / name) and not has_content(directory / name, content):
            raise foreign(directory / name)
    contents = {split: read_bin(directory / f"{split}.bin", encoding) for split in SPLITS}
    splits = {split: found.info for split, found in contents.items()}
    refuse_other_counts(directory, config, splits)
    for name, content in beside.items():
        if not (directory / name).exists():
            write_atomically(directory / name, content)
    write_json_atomically(path, manifest_of(config.name, encoding, splits, *provenance(config, encoding, splits)))
    for found in contents.values():
        text = b"".join(map(encoding.decode_single_token_bytes, found.first_tokens)).decode("utf-8", "replace")
        print(f"{directory / found.info.file}: {found.info.tokens:,} tokens, {found.info.documents:,} documents; begins {text!r}")
    print(f"adopted {directory}: {MANIFEST_NAME}, {TOKENIZER_NAME} and {TOKEN_BYTES_NAME} were written beside the bins")


def refuse_characters(directory: Path) -> None:
    """Raise DataError for nanoGPT's character-level bins: their vocabulary is in a pickle, which is never read."""
    if (directory / "meta.pkl").exists():
        raise DataError(
            f"{directory / 'meta.pkl'}: these bins hold nanoGPT's characters, whose table is a pickle and is not read; prepare the "
            "text anew: data=local data.files=.../input.txt data.tokenizer=bytes data.vocab_size=272 data.dir=DIR"
        )


def has_content(path: Path, content: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


def read_bin(path: Path, encoding: Tokenizer) -> Contents:
    """Return the counts and digests of a bin.

    Raises:
        DataError: it is missing, empty, or its ids are not this tokenizer's.
    """
    if not path.is_file():
        raise DataError(f"{path}: missing; adopt=true takes a folder with train.bin and val.bin")
    dtype = DTYPES[dtype_of(encoding)]
    size = path.stat().st_size
    if size == 0 or size % dtype.itemsize:
        raise DataError(f"{path}: {size:,} bytes are no whole number of {dtype.itemsize}-byte ids of the tokenizer {encoding.name}")
    print(f"checking {path}: {size:,} bytes", file=sys.stderr, flush=True)
    lengths, digests = byte_lengths(encoding).astype(np.int64), FileDigests()
    ends = text_bytes = max_id = 0
    first_tokens: list[int] = []
    tokens = np.empty(0, dtype=dtype)
    with open(path, "rb") as file:
        while block := file.read(READ_BYTES):
            digests.update(block)
            tokens = np.frombuffer(block, dtype=dtype)
            max_id = max(max_id, int(tokens.max()))
            if max_id >= encoding.n_vocab:
                raise DataError(
                    f"{path}: holds token id {max_id}, but the tokenizer {encoding.name} has {encoding.n_vocab:,}; "
                    "data.tokenizer=NAME tokenizer.files=PATH names another"
                )
            if not first_tokens:
                refuse_wide_ids(path, tokens)
                first_tokens = tokens[:SHOWN_TOKENS].tolist()
            ends += int((tokens == encoding.eot_token).sum())
            text_bytes += int(lengths[tokens].sum())
    if max_id < 256 < encoding.n_vocab - 1:
        raise DataError(f"{path}: no id above {max_id}, so these are characters or bytes and not tokens of {encoding.name}")
    documents = ends + (int(tokens[-1]) != encoding.eot_token)  # the last one may lack its end
    info = SplitInfo(path.name, size // dtype.itemsize, documents, text_bytes, max_id, digests.whole.hexdigest(), digests.blocks())
    return Contents(info, first_tokens)


def refuse_wide_ids(path: Path, tokens: np.ndarray) -> None:
    """Raise DataError for ids of four bytes read as pairs of two."""
    if tokens.dtype.itemsize == 2 and len(tokens) > 3 and not tokens[1::2].any():
        raise DataError(f"{path}: every second id is 0: the ids have four bytes each, the tokenizer's have two")


def refuse_other_counts(directory: Path, config: DataConfig, splits: dict[str, SplitInfo]) -> None:
    """Raise DataError where the configuration publishes a corpus's counts and these are others."""
    documents = sum(info.documents for info in splits.values())
    counts = {"documents": documents, **{f"{name}_tokens": info.tokens for name, info in splits.items()}}
    for key, actual in counts.items():
        published = getattr(config.expected, key)
        if published not in (None, actual):
            raise DataError(
                f"{directory}: {actual:,} {key.replace('_', ' ')}, but {config.name} has {published:,}; "
                "data=local data.name=NAME adopts it under another name"
            )


def provenance(config: DataConfig, encoding: Tokenizer, splits: dict[str, SplitInfo]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the manifest says of the source and of the split: only what can be seen in the bins."""
    itemsize = DTYPES[dtype_of(encoding)].itemsize
    sizes = [{"name": info.file, "size": info.tokens * itemsize} for info in splits.values()]
    total = sum(info.tokens for info in splits.values())
    split = {"method": ADOPTED, "test_size": splits["val"].tokens / total, "seed": 0, "shuffle": False}
    return {"kind": ADOPTED, "name": config.name, "revision": None, "files": sizes}, split
