"""What a data folder's manifest knows is compared with the configuration before the first step."""

from dataclasses import replace

import pytest
from corpus_support import local_config, make_texts, write_shards
from training import composed

from corpus.manifest import DataError, read_manifest
from corpus.prepare import prepare
from engine.run_data import check_data_folder, check_split, check_tokenizer


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepare(
        local_config(folder / "data", write_shards(folder / "t", make_texts(20)), tokenizer="bytes", vocab_size=272, num_proc=1)
    )
    return folder / "data"


class Wanted:
    """The keys of a run's configuration that are compared."""

    def __init__(self, folder, tokenizer="bytes", vocab_size=272, model_vocab_size=None, name="local", files=None):
        self.data = local_config(folder, files, tokenizer=tokenizer, vocab_size=vocab_size, name=name).data
        self.model = {"vocab_size": model_vocab_size or vocab_size}


@pytest.mark.parametrize(
    ("settings", "complaint", "keys"),
    [
        ({"tokenizer": "gpt2", "vocab_size": 50304}, "made with the tokenizer bytes, but data.tokenizer=gpt2", "both"),
        ({"vocab_size": 50304}, "made with the tokenizer bytes of 257 tokens, but model.vocab_size=50304", "data.vocab_size=272"),
        ({"vocab_size": 256}, "holds token id 256, but model.vocab_size=256", "data.vocab_size=272"),
        ({"model_vocab_size": 100}, "holds token id 256, but model.vocab_size=100", "model.vocab_size=272"),
        ({"tokenizer": "mine"}, "but data.tokenizer=mine", "data.tokenizer=bytes"),
    ],
)
def test_a_forgotten_override_is_named(prepared, settings, complaint, keys):
    keys = "data.tokenizer=bytes data.vocab_size=272" if keys == "both" else keys
    with pytest.raises(DataError, match=complaint) as caught:
        check_tokenizer(prepared, read_manifest(prepared), Wanted(prepared, **settings))
    assert str(caught.value).endswith(f"; add {keys}")


def test_a_model_that_could_never_be_sampled_is_refused(prepared):
    """The largest id in the bins fits, the tokenizer's last does not."""
    manifest = read_manifest(prepared)
    splits = {name: replace(info, max_id=120) for name, info in manifest.splits.items()}
    with pytest.raises(DataError, match="of 257 tokens, but model.vocab_size=200; add data.vocab_size=272"):
        check_tokenizer(prepared, replace(manifest, splits=splits), Wanted(prepared, vocab_size=200))


def test_what_fits_passes(prepared):
    for vocab_size in (257, 272, 1280):
        check_tokenizer(prepared, read_manifest(prepared), Wanted(prepared, vocab_size=vocab_size))


def test_a_short_validation_split_names_the_fraction(prepared):
    info = read_manifest(prepared).splits["val"]
    with pytest.raises(DataError, match=r"val\.bin: .*data\.val_fraction and overwrite=true"):
        check_split(prepared, info, 10**6, 272)


def test_the_command_for_a_folder_that_is_not_prepared_can_be_pasted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # data/english may be there where this is run from
    with pytest.raises(DataError, match="run: python prepare_owt.py data=docs data.dir=") as caught:
        check_data_folder(Wanted(tmp_path / "a", name="docs"))
    assert "adopt" not in str(caught.value)
    with pytest.raises(DataError, match="run: bash scripts/english.sh$"):  # it fetches the text and prepares it
        check_data_folder(composed("data=english"))
    (tmp_path / "my bins").mkdir()
    (tmp_path / "my bins" / "train.bin").write_bytes(b"xx")
    with pytest.raises(DataError) as caught:
        check_data_folder(Wanted(tmp_path / "my bins", name="mine"))
    assert f"python prepare_owt.py data=local data.name=mine 'data.dir={tmp_path}/my bins' adopt=true" in str(caught.value)
