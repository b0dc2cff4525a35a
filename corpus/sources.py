"""Where text comes from: what is known of a source before reading it, and all its documents, addressable.

What reads each source is imported where it is needed: that takes a second, and a finished folder needs none of it.
"""

import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

from corpus.documents import DocumentIndex, DocumentWriter
from corpus.manifest import DataError
from corpus.settings import DataConfig, PrepareConfig


def describe_source(config: DataConfig, files: list[str], limit: int | None) -> dict[str, Any]:
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
        folder = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in files])
        source["files"] = [
            {"name": os.path.relpath(os.path.abspath(path), folder), "size": os.path.getsize(path)} for path in files
        ]
        # A rewritten file may keep its size; a partial result of the old one must not be continued with the new one.
        source["modified_ns"] = [os.stat(path).st_mtime_ns for path in files]
    return source


def open_documents(config: PrepareConfig, files: list[str], folder: Path, num_proc: int, fingerprint: str) -> DocumentIndex:
    """Return every document of the source in order, unpacking into folder what cannot be read in place.

    A folder that a killed run with the same fingerprint completed is used again.

    Raises:
        DataError: the source cannot be read, or holds no text at all.
    """
    saved = DocumentIndex.load(folder, fingerprint)
    if saved is not None and (config.on_bad_row == "skip" or not saved.counts.bad_rows + saved.counts.damaged_files):
        return saved
    folder.mkdir(parents=True, exist_ok=True)
    data, limit = config.data, config.limit_documents
    if data.source == "huggingface":
        from corpus.hub import read_huggingface

        index = read_huggingface(data, folder, limit, num_proc)
    elif data.source == "docs":
        from corpus.documentation import add_documentation

        writer = DocumentWriter(folder, limit)
        add_documentation(writer, Path(sysconfig.get_path("stdlib")))
        index = writer.finish()
    else:
        from corpus.reading import read_files

        index = read_files(files, data.text_column, folder, limit, config.on_bad_row)
    if len(index) and not index.records["length"].any():
        what = f"the column {data.text_column!r} holds nothing but nulls" if index.counts.nulls else "every document is empty"
        raise DataError(f"{data.files or data.repo or data.source}: {what}; data.text_column=NAME picks another")
    index.save(folder, fingerprint)
    return index
