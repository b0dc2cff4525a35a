"""The datasets of the Hugging Face hub: `datasets` downloads them and keeps Arrow files, which are read in place."""

import errno
import http.client
import os
import ssl
import threading
import urllib.error
import urllib.request
from pathlib import Path

from corpus.documents import DocumentIndex, DocumentWriter
from corpus.manifest import DataError, first_line
from corpus.rows import column_batches, index_arrow_files, require_column
from corpus.settings import DataConfig

HUB = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
HUB_LIMIT_SECONDS = 3.0


def read_huggingface(config: DataConfig, folder: Path, limit: int | None, num_proc: int) -> DocumentIndex:
    """Return the train split of a dataset on the hub, addressed inside the Arrow files of its cache.

    Raises:
        DataError: neither the hub nor its cache has it, or it has no such column.
        OSError: the disk is full.
    """
    repo = config.repo or ""  # check_data_config has seen to it
    is_offline = "HF_HUB_OFFLINE" not in os.environ and not hub_answers()
    if is_offline:
        # The hub's library would try five times over, for half a minute; so it looks into its cache only.
        os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets

    try:
        dataset = datasets.load_dataset(
            config.repo, revision=config.revision, split="train", num_proc=num_proc if num_proc > 1 else None
        )
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = f"no answer from {HUB}, and not in its cache" if is_offline else first_line(error)
        raise DataError(
            f"{config.repo}: cannot be loaded ({reason}); data=local reads parquet files from disk, data=docs needs nothing"
        ) from None
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{config.repo} at revision {config.revision}: {first_line(error)}") from None
    require_column(repo, config.text_column, dataset.column_names)
    files = [entry["filename"] for entry in dataset.cache_files]
    in_place = index_arrow_files(files, config.text_column, len(dataset), limit) if files else None
    if in_place is not None:
        return in_place
    writer = DocumentWriter(folder, limit)
    tables = dataset.select_columns([config.text_column]).with_format("arrow").iter(batch_size=256)
    for batch in column_batches(repo, (chunk for table in tables for chunk in table.column(0).chunks), 0):
        writer.add_many(batch.text, batch.lengths)
        writer.counts.nulls += batch.nulls
        if writer.is_full:
            break
    return writer.finish()


def hub_answers() -> bool:
    """Say whether the hub can be reached at all; whatever it answers, even an error, is an answer."""
    outcome: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(HUB, method="HEAD"), timeout=HUB_LIMIT_SECONDS).close()
            outcome.append(True)
        except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            # A certificate that only the hub's own library knows is no reason to stay offline.
            outcome.append(isinstance(error, urllib.error.HTTPError) or isinstance(reason, ssl.SSLError))
        except ValueError:
            outcome.append(True)  # an odd address: huggingface_hub reports what is wrong with it

    # A thread, because looking up the name has no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_LIMIT_SECONDS)
    return bool(outcome) and outcome[0]
