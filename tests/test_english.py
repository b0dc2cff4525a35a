"""The English corpus out of packages: what stands in a model's documentation, as text, each once; whole services apart."""

import gzip
import json
import zipfile

import pytest

from corpus.api_documentation import documents_of, plain_text
from corpus.manifest import DataError

AMAZON = {
    "metadata": {"serviceFullName": "A Store"},
    "operations": {
        "PutThing": {"name": "PutThing", "documentation": "<p>Stores a <b>thing</b>.</p> <ul><li><p>Once.</p></li></ul>"}
    },
    "shapes": {
        "Thing": {
            "type": "structure",
            "members": {"size": {"shape": "Integer", "documentation": "<p>Its size, if &lt; 5 &amp; > 1.</p>"}},
        },
        "Other": {"documentation": "<p>Its size, if &lt; 5 &amp; > 1.</p>"},
    },
    "documentation": "<p>Stores things.</p>",
}
GOOGLE = {
    "title": "Letter API",
    "description": "Writes letters.",
    "parameters": {"alt": {"description": "Stores things."}, "description": {"description": "A description of it."}},
}


def wheel(path, models):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in models.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def wheels(tmp_path):
    amazon = {
        "botocore/data/store/2020-01-01/service-2.json.gz": gzip.compress(json.dumps(AMAZON).encode()),
        "botocore/x.py": "pass",
    }
    google = {"googleapiclient/discovery_cache/documents/letter.v1.json": json.dumps(GOOGLE)}
    return [wheel(tmp_path / "google.whl", google), wheel(tmp_path / "botocore.whl", amazon)]


def test_documents(wheels):
    store, letter = documents_of(wheels)  # by name, whatever the order given
    assert store == "Stores things.\n\nPutThing\nStores a thing.\nOnce.\n\nsize\nIts size, if < 5 & > 1."
    assert letter == "Letter API\nWrites letters.\n\ndescription\nA description of it."  # "Stores things." was said before


def test_comparison_signs_are_no_tags():
    assert plain_text("a < b, c<d and <code>x</code> <br/>&lt;p&gt;") == "a < b, c<d and x\n<p>"


@pytest.mark.parametrize("content", [b"no zip", None])
def test_a_file_that_is_no_such_wheel_is_named(tmp_path, content):
    path = tmp_path / "other.whl"
    path.write_bytes(content) if content else wheel(path, {"other/x.json": "{}"})
    with pytest.raises(DataError, match="other.whl: no"):
        list(documents_of([path]))


def test_a_damaged_model_is_named(tmp_path):
    path = wheel(tmp_path / "botocore.whl", {"botocore/data/a/2020/service-2.json.gz": b"cut"})
    with pytest.raises(DataError, match="botocore.whl: not a sound wheel"):
        list(documents_of([path]))
