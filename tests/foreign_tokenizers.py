"""Small real tokenizers of the two kinds that are read, trained here: the published files cannot be had without a network."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from corpus.huggingface_tokenizer import printable_bytes

TEXT = Path(json.__file__).with_name("decoder.py").read_text(encoding="utf-8") + Path(json.__file__).read_text(encoding="utf-8")


def sentencepiece_json(vocab_size: int = 700, text: str = TEXT) -> dict:
    """Return a tokenizer.json laid out like Llama 2's: bytes for what no token covers, spaces as "▁", one put in front."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")  # to train words; Llama 2 has none
    byte_tokens = [f"<0x{value:02X}>" for value in range(256)]
    tokenizer.train_from_iterator(
        [text],
        trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens], show_progress=False),
    )
    raw = json.loads(tokenizer.to_str())
    raw["pre_tokenizer"] = None
    raw["added_tokens"] = raw["added_tokens"][:3]  # the byte tokens belong to the model alone
    return raw


def byte_level_json(vocab_size: int = 700, text: str = TEXT) -> dict:
    """Return a tokenizer.json laid out like GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [text],
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return json.loads(tokenizer.to_str())


def large_json() -> dict:
    """Return a byte-level tokenizer of more than 65,536 tokens: every pair of bytes is one, and EOS comes last."""
    letters = list(printable_bytes())
    pairs = [(first, second) for first in letters for second in letters]
    raw = byte_level_json(300)
    raw["model"] |= {
        "vocab": {token: id for id, token in enumerate([*letters, *map("".join, pairs)])},
        "merges": [list(pair) for pair in pairs],
    }
    raw["added_tokens"][0]["id"] = len(raw["model"]["vocab"])
    return raw


def write(path: Path, raw: dict) -> str:
    path.write_text(json.dumps(raw, ensure_ascii=False), encoding="utf-8")
    return str(path)
