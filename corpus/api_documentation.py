"""English in tens of megabytes from packages of the Python index: what two large programming interfaces say of themselves.

botocore carries one JSON model per service of Amazon's cloud, google-api-python-client one per service of Google's. Both are
Apache-2.0. Each part of a model (operation, structure, member) has a few sentences of documentation beside it.

python -m corpus.api_documentation WHEEL... prints the documents as JSON lines; scripts/english.sh does the rest.
"""

import gzip
import html
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corpus.manifest import DataError

MODELS = re.compile(r"botocore/data/.*/service-2\.json(\.gz)?|googleapiclient/discovery_cache/documents/.*\.json")
BLOCK_END = re.compile(r"</(?:p|li|ul|ol|dd|dt|dl|note|important|h\d)>|<br\s*/?>")
TAG = re.compile(r"</?[a-zA-Z][^<>]*>")


def documents_of(wheels: list[Path]) -> Iterator[str]:
    """Yield one document per service model in the wheels, in the order of their names, every text once over all of them.

    Raises:
        DataError: a file is not a wheel with such models, or a model is damaged.
    """
    seen: set[str] = set()
    for wheel in sorted(wheels, key=lambda path: path.name):
        try:
            with zipfile.ZipFile(wheel) as archive:
                names = sorted(name for name in archive.namelist() if MODELS.fullmatch(name))
                if not names:
                    raise DataError(f"{wheel}: no service models in it; botocore and google-api-python-client have some")
                for name in names:
                    content = archive.read(name)
                    model = json.loads(gzip.decompress(content) if name.endswith(".gz") else content)
                    if document := new_texts(model, seen):
                        yield document
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{wheel}: not a sound wheel ({error})") from None


def new_texts(model: Any, seen: set[str]) -> str:
    """Return the texts of a model that are not among those seen, each under the name of its part, and note them."""
    paragraphs = []
    for label, text in texts_of(model, ""):
        if text not in seen:
            seen.add(text)
            paragraphs.append(f"{label}\n{text}".strip())
    return "\n\n".join(paragraphs)


def texts_of(node: Any, label: str) -> Iterator[tuple[str, str]]:
    """Yield (name of the part, its text) for every part of a model that is documented, from the outside inwards."""
    if isinstance(node, dict):
        text = node.get("documentation") or node.get("description")
        if isinstance(text, str) and (plain := plain_text(text)):
            title = node.get("title")
            yield (label or (title if isinstance(title, str) else "")), plain
        for key, child in node.items():
            yield from texts_of(child, key)
    elif isinstance(node, list):
        for child in node:
            yield from texts_of(child, label)


def plain_text(marked_up: str) -> str:
    """Return text without its HTML tags: blocks become lines, runs of blanks one blank."""
    lines = TAG.sub("", BLOCK_END.sub("\n", marked_up)).split("\n")
    words = (" ".join(html.unescape(line).split()) for line in lines)
    return "\n".join(line for line in words if line)


if __name__ == "__main__":
    try:
        for document in documents_of([Path(argument) for argument in sys.argv[1:]]):
            print(json.dumps({"text": document}))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
