"""Give prepared files their final names, and never replace a file that no preparation wrote.

Everything is made in a scratch folder inside the data folder. A preparation owns what a manifest lists: the data folder's own,
or, after a kill in the middle of publishing, the one that still lies in the scratch folder.
"""

import json
import os
import re
import shutil
import sys
from pathlib import Path

from corpus.manifest import MANIFEST_NAME, SPLITS, TOKEN_BYTES_NAME, TOKENIZER_NAME, DataError, Manifest, read_manifest
from corpus.token_file import check_blocks, check_digest, check_size
from runfolder.files import sync_path

SCRATCH_NAME = "prepare.partial"
LOCK_NAME = "lock"  # also says that a scratch folder is ours
BINS = tuple(f"{split}.bin" for split in SPLITS)
FILES = (TOKENIZER_NAME, TOKEN_BYTES_NAME, *BINS)
ADOPTED = "adopted"  # source.kind of bins that another program wrote
OWN_MANIFEST = re.compile(rb'\{\s*"dtype": "uint(16|32)",\s*"format": \d')  # how ours begin, so that a damaged one is known


def refuse_foreign_scratch(scratch: Path) -> None:
    """Raise DataError if something that is not ours has the scratch folder's name."""
    is_own = scratch.is_dir() and not scratch.is_symlink() and (not any(scratch.iterdir()) or (scratch / LOCK_NAME).is_file())
    if os.path.lexists(scratch) and not is_own:
        raise foreign(scratch)


def refuse_foreign_files(directory: Path, scratch: Path) -> None:
    """Raise DataError naming the first file that a preparation would have to replace and that no preparation wrote."""
    path = directory / MANIFEST_NAME
    if os.path.lexists(path):
        if not is_own_manifest(path):
            raise foreign(path)
        manifest = sound_manifest(directory)
        if manifest is not None and manifest.source["kind"] == ADOPTED:
            raise DataError(
                f"{directory / BINS[0]}: was adopted, not written by prepare_owt.py, and is not replaced; "
                "data.dir=DIR prepares elsewhere"
            )
        return
    published = published_files(directory, scratch)
    for name in FILES:
        if os.path.lexists(directory / name) and name not in published:
            raise foreign(directory / name)


def foreign(path: Path) -> DataError:
    adopt = ", adopt=true takes nanoGPT's train.bin and val.bin as they are" if path.name in BINS else ""
    return DataError(
        f"{path}: was not written by prepare_owt.py and is not replaced; move it away, or data.dir=DIR prepares elsewhere{adopt}"
    )


def is_own_manifest(path: Path) -> bool:
    """Say whether a file is a manifest of ours, if perhaps a damaged one."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        start = file.read(1_000_000)
    if OWN_MANIFEST.match(start):
        return True
    try:
        raw = json.loads(start)
    except (ValueError, RecursionError):
        return False
    return isinstance(raw, dict) and {"format", "dtype", "tokenizer", "splits"} <= set(raw)


def sound_manifest(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except DataError:
        return None


def published_files(directory: Path, scratch: Path) -> set[str]:
    """Name the files that a publication which was killed had already moved from scratch to directory."""
    manifest = sound_manifest(scratch)
    if manifest is None:
        return set()
    return {name for name in FILES if not os.path.lexists(scratch / name) and is_as_recorded(directory, name, manifest)}


def is_as_recorded(folder: Path, name: str, manifest: Manifest) -> bool:
    """Say whether a file is the one that the manifest describes; of a bin, its size and a sample of its blocks are compared."""
    path, tokenizer = folder / name, manifest.tokenizer
    try:
        if name == TOKENIZER_NAME:
            check_digest(path, tokenizer.digest)
        elif name == TOKEN_BYTES_NAME:
            check_size(path, tokenizer.vocab_size * 2)
        else:
            info = next((info for info in manifest.splits.values() if info.file == name), None)
            if info is None:
                return False
            check_size(path, info.tokens * manifest.itemsize)
            check_blocks(path, info.block_sha256)
    except DataError:
        return False
    return True


def is_complete(directory: Path, scratch: Path, fingerprint: str) -> bool:
    """Say whether a publication of these very settings was killed and only has to go on."""
    manifest = sound_manifest(scratch)
    return (
        manifest is not None
        and manifest.source.get("fingerprint") == fingerprint
        and all(is_as_recorded(scratch if (scratch / name).is_file() else directory, name, manifest) for name in FILES)
    )


def forget_publication(directory: Path, scratch: Path) -> None:
    """Remove what a publication of other settings had moved before it was killed."""
    for name in published_files(directory, scratch):
        (directory / name).unlink()
    (scratch / MANIFEST_NAME).unlink(missing_ok=True)


def publish(directory: Path, scratch: Path) -> None:
    """Move the complete files and their manifest from scratch to directory, the manifest last: where it is, everything is.

    Raises:
        DataError: a file that no preparation wrote has come into the way.
    """
    refuse_foreign_files(directory, scratch)
    old = sound_manifest(directory)
    made = [name for name in FILES if (scratch / name).is_file()]
    for name in made:
        clear(directory / name, old)
    (directory / MANIFEST_NAME).unlink(missing_ok=True)  # after the files: until then it says whose they are
    for name in made:
        os.rename(scratch / name, directory / name)
    sync_path(directory)
    os.rename(scratch / MANIFEST_NAME, directory / MANIFEST_NAME)
    sync_path(directory)
    shutil.rmtree(scratch, ignore_errors=True)


def clear(path: Path, manifest: Manifest | None) -> None:
    """Remove a file of an earlier preparation; one that is not as its manifest says may be the user's and is set aside."""
    if not os.path.lexists(path):
        return
    if manifest is not None and is_as_recorded(path.parent, path.name, manifest):
        path.unlink()
        return
    number = next(n for n in range(1, 10_000) if not os.path.lexists(f"{path}.replaced-{n}"))
    os.rename(path, f"{path}.replaced-{number}")
    print(f"{path}: not as its manifest says; kept as {path.name}.replaced-{number}", file=sys.stderr, flush=True)
