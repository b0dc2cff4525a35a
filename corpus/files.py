"""Which files a path means, and what their names say of them; opens none."""

import glob
import os

from corpus.manifest import DataError

COMPRESSIONS = {
    "gzip": ((b"\x1f\x8b",), (".gz", ".gzip")),
    "zstd": ((b"\x28\xb5\x2f\xfd", *(bytes([0x50 + n]) + b"\x2a\x4d\x18" for n in range(16))), (".zst", ".zstd")),
    "bz2": ((b"BZh",), (".bz2",)),
    "xz": ((b"\xfd7zXZ\x00",), (".xz",)),
}
ENDINGS = {  # of the name without a compression's
    "parquet": (".parquet", ".pq"),
    "arrow": (".arrow", ".feather", ".ipc"),
    "json": (".jsonl", ".ndjson", ".json"),
    "text": (".txt", ".text", ".md"),
}
TABLES = (".csv", ".tsv", ".xlsx")
NOT_DATA = ("dataset_info.json", "state.json", "dataset_dict.json")  # beside the files of datasets' save_to_disk


def find_files(patterns: str | list[str]) -> list[str]:
    """Return the files that paths, folders and globs name, sorted, each once.

    A folder means the data files in it and below it, without those that begin with "_" or "." (Spark's _SUCCESS).

    Raises:
        DataError: one of them names no file, or a folder holds several kinds.
    """
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        # A name may hold what a glob would take for a pattern.
        matches = [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
        files = [path for path in matches if os.path.isfile(path)]
        if not files:
            files = [path for folder in matches for path in files_below(folder)]
        if not files:
            raise DataError(f"data.files={pattern}: no file matches, looked in {os.path.dirname(os.path.abspath(pattern))}")
        found.update(files)
    return sorted(found)


def files_below(folder: str) -> list[str]:
    """Return the data files of a folder: those of the one kind it holds, else all.

    Raises:
        DataError: it holds several kinds.
    """
    paths = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(("_", "."))]
        paths += [os.path.join(place, name) for name in names if not name.startswith(("_", ".")) and name not in NOT_DATA]
    kinds: dict[str, list[str]] = {}
    for path in filter(os.path.isfile, paths):
        kinds.setdefault(kind_by_name(path) or "", []).append(path)
    named = {kind: files for kind, files in kinds.items() if kind}
    if len(named) > 1:
        raise DataError(f"{folder}: holds {' and '.join(sorted(named))} files; data.files='{folder}/**/*.parquet' picks one kind")
    return next(iter(named.values())) if named else kinds.get("", [])


def kind_by_name(path: str) -> str | None:
    name = without_compression(path.lower())
    return next((kind for kind, endings in ENDINGS.items() if name.endswith(endings)), None)


def without_compression(name: str) -> str:
    endings = [ending for _, endings in COMPRESSIONS.values() for ending in endings]
    ending = next((ending for ending in endings if name.endswith(ending)), None)
    return name.removesuffix(ending) if ending else name
