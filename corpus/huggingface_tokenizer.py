"""A Hugging Face tokenizer.json behind the few methods of tiktoken's Encoding that are used here.

Two kinds are read, both BPE: byte-level (GPT-2, Llama 3, Qwen: each character of a token stands for a byte) and
SentencePiece style (Llama 2, Mistral, Gemma: "▁" stands for a space, <0x0A> for a byte that no token covers). The exact
bytes of every token are known for these, which is what bits per byte and streaming need. The file may come from anyone:
only what is listed here reaches the library. The inverse, from a tokenizer to a tokenizer.json, is lab/export/tokenizer.py.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from corpus.manifest import DataError, first_line
from corpus.settings import SettingError

KIND = "huggingface"
EOS_NAMES = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>")
SPACE = "▁"
# A normalizer may rewrite text; these keep its bytes or, in composing accents, almost always do. Others (Lowercase, Strip,
# Precompiled, Replace of anything else) lose some, and chained replacements could blow a short prompt up without limit.
NORMALIZERS = (
    {"type": "Prepend", "prepend": SPACE},
    {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
    {"type": "NFC"},
    {"type": "NFKC"},
)
LARGEST_FILE = 256_000_000
LARGEST_ID = (1 << 22) - 1  # each is an output of the model
PROBE = "The Model's  tokens,\n\n\tdon't 1984: x=[1]; naïve Ω 漢字 🙂\x00\x7f\r\n end. "


class HuggingFaceTokenizer:
    """Encode text without special tokens; text that spells one is ordinary text."""

    def __init__(self, name: str, content: str, eos_token: str | None = None) -> None:
        """Build it from the text of a tokenizer.json; eos_token None: the one special token that is named like one.

        Raises ValueError if it is not one of the two kinds, SettingError if the end of a document is not clear.
        """
        raw = json.loads(content)
        if not isinstance(raw, dict) or not isinstance(raw.get("model"), dict):
            raise ValueError("no model in it")
        if raw["model"].get("type") != "BPE":
            raise ValueError(f"its model is {raw['model'].get('type')!r}, not BPE")
        self.name, self.content = name, content
        dense, listed = number_densely(raw)
        self.library = load_library(dense)
        # Published files match special tokens inside the text; a document that spells </s> does not end there.
        self.library.encode_special_tokens = True
        if self.library.get_vocab(with_added_tokens=True) != {token: position for position, token in enumerate(listed)}:
            raise ValueError("its tokens are numbered in a way that the library does not follow")
        self.ids = list(listed.values())  # the file's, by the library's
        self.is_dense = self.ids == list(range(len(self.ids)))
        self.n_vocab = max(self.ids) + 1  # an id in a gap never occurs
        added = self.library.get_added_tokens_decoder().values()
        special = {token.content: listed[token.content] for token in added if token.special}
        self.eos_token = find_eos(special, eos_token)
        self.eot_token = special[self.eos_token]
        self.token_bytes = [b""] * self.n_vocab
        spell, plain = speller(raw), {token.content for token in added if not token.special}
        for token, id in listed.items():
            if token in plain:
                self.token_bytes[id] = token.encode("utf-8")
            elif token not in special and token != raw["model"].get("unk_token"):
                self.token_bytes[id] = spell(token)
        if not self.spells(self.encode_ordinary(PROBE), PROBE):
            raise ValueError("it does not keep a text as it is (case, blanks, or characters that it does not know)")

    def encode_ordinary(self, text: str) -> list[int]:
        """Return the ids of text; half a surrogate pair is replaced as tiktoken does.

        Raises:
            DataError: the library cannot encode it.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        try:
            ids = self.library.encode_batch_fast([text], add_special_tokens=False)[0].ids
        except Exception as error:  # the library raises nothing more particular
            raise DataError(f"the tokenizer {self.name} cannot encode a text ({first_line(error)})") from None
        return ids if self.is_dense else [self.ids[id] for id in ids]

    def encode(self, text: str, *, allowed_special: str) -> list[int]:
        """Return the ids of text, in which the end-of-text token, spelled out, is that token."""
        ids: list[int] = []
        for number, part in enumerate(text.split(self.eos_token)):
            ids += [self.eot_token] if number else []
            ids += self.encode_ordinary(part) if part else []
        return ids

    def decode_single_token_bytes(self, token: int) -> bytes:
        return self.token_bytes[token]

    def spells(self, ids: list[int], text: str) -> bool:
        """Say whether the tokens' bytes are the text's, but for the space that SentencePiece puts before the first word."""
        spelled, wanted = b"".join(map(self.token_bytes.__getitem__, ids)), text.encode("utf-8")
        return spelled == wanted or (spelled[:1] == b" " and spelled[1:] == wanted)

    def byte_lengths(self) -> np.ndarray:
        """Return the bytes of each token, (n_vocab,) little-endian uint16, 0 for special tokens."""
        return np.array([min(len(token), 65535) for token in self.token_bytes], dtype="<u2")

    def stored_json(self) -> bytes:
        """Return the file as it was, with its name and EOS, as deterministic JSON."""
        stored = {"kind": KIND, "name": self.name, "eos_token": self.eos_token, "tokenizer": self.content}
        return json.dumps(stored, sort_keys=True, separators=(",", ":")).encode("ascii") + b"\n"


def read_tokenizer_file(path: Path, name: str, eos_token: str | None) -> HuggingFaceTokenizer:
    """Return the tokenizer in a tokenizer.json, or in the folder that holds one.

    Raises:
        DataError: there is none, or it cannot be used; the message names the file.
        SettingError: it is not clear which token ends a document.
    """
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"{path}: no such file; tokenizer.files=PATH names a Hugging Face tokenizer.json or its folder")
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"more than {LARGEST_FILE:,} bytes")
        return HuggingFaceTokenizer(name, path.read_text(encoding="utf-8-sig"), eos_token)
    except SettingError as error:
        raise SettingError(f"{path}: {error}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: cannot be used as a tokenizer ({first_line(error)})") from None


def number_densely(raw: dict[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the file with ids 0, 1, 2, ..., as the library numbers them, and the file's own id of each token in that order.

    The ids of a file may have gaps, and the library would renumber an added token behind one.

    Raises:
        ValueError: the ids are not whole numbers, each once, or are too large.
    """
    vocab, added = raw["model"]["vocab"], sorted(raw.get("added_tokens") or [], key=lambda token: token["id"])
    listed = dict(sorted(vocab.items(), key=lambda item: item[1]))
    for token in added:
        if listed.setdefault(token["content"], token["id"]) != token["id"]:
            raise ValueError(f"two ids for the token {token['content']!r}")
    ids = set(listed.values())
    if {type(id) for id in ids} != {int} or len(ids) != len(listed) or min(ids) < 0:
        raise ValueError("ids are not whole numbers from 0 on, each once")
    if max(ids) > LARGEST_ID:
        raise ValueError(f"ids up to {max(ids):,} for {len(ids):,} tokens")
    positions = {token: position for position, token in enumerate(listed)}
    model = {**raw["model"], "vocab": {token: positions[token] for token in vocab}}
    return {**raw, "model": model, "added_tokens": [{**token, "id": positions[token["content"]]} for token in added]}, listed


def load_library(raw: dict[str, Any]) -> Any:
    """Return tokenizers.Tokenizer of the parts of raw that encode text; raise ValueError where one is not accepted."""
    # Documents are encoded by processes of our own; a pool of threads in each would only slow each other down.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import tokenizers

    for part in flatten(raw.get("normalizer"), "normalizers"):
        if part not in NORMALIZERS:
            raise ValueError(f"its normalizer {str(part.get('type'))!r} does not keep every text as it is")
    kept = {key: raw.get(key) for key in ("version", "normalizer", "pre_tokenizer")}
    # Truncation and padding would cut or fill up documents, dropout would draw lots.
    cleaned = kept | {"added_tokens": raw.get("added_tokens") or [], "model": {**raw["model"], "dropout": None}}
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(cleaned))
    except Exception as error:  # the library raises nothing more particular
        raise ValueError(first_line(error)) from None


def flatten(part: Any, key: str) -> list[dict[str, Any]]:
    """Return the links of a chain, which is null, one object, or a Sequence that lists them under key."""
    if part is None:
        return []
    if part.get("type") == "Sequence":
        return [link for inner in part[key] for link in flatten(inner, key)]
    return [part]


def speller(raw: dict[str, Any]) -> Any:
    """Return the function from a token's name to its bytes that the file's decoder describes.

    Raises:
        ValueError: the decoder is of another kind than the two that are read.
    """
    decoders = flatten(raw.get("decoder"), "decoders")
    if not decoders:  # what splits the text tells as well
        decoders = [
            *flatten(raw.get("pre_tokenizer"), "pretokenizers"),
            *map(inverse, flatten(raw.get("normalizer"), "normalizers")),
        ]
        decoders += [{"type": "ByteFallback"}] if raw["model"].get("byte_fallback") else []
    kinds = [part.get("type") for part in decoders]
    if "ByteLevel" in kinds:
        byte_of = printable_bytes()
        return lambda token: bytes(map(byte_of.__getitem__, token)) if byte_of.keys() >= set(token) else token.encode("utf-8")
    if "Metaspace" in kinds or {"type": "Replace", "pattern": {"String": SPACE}, "content": " "} in decoders:
        # One byte each, and not six characters.
        named = {f"<0x{value:02X}>": bytes([value]) for value in range(256)} if "ByteFallback" in kinds else {}
        return lambda token: named[token] if token in named else token.replace(SPACE, " ").encode("utf-8")
    raise ValueError(f"its decoder ({', '.join(map(str, kinds)) or 'none'}) is neither byte-level nor SentencePiece's")


def inverse(normalizer: dict[str, Any]) -> dict[str, Any]:
    """Return the decoder that undoes a normalizer, if it is the one that writes spaces; others are no decoders."""
    if normalizer == {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}:
        return {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    return {"type": f"the normalizer {normalizer.get('type')}"}


def find_eos(special: dict[str, int], wanted: str | None) -> str:
    """Return the special token that ends a document; raise SettingError if it is not clear which."""
    names = ", ".join(sorted(special)[:20]) or "none"
    if wanted is not None:
        if wanted not in special:
            raise SettingError(f"tokenizer.eos_token={wanted}: not a special token; there are: {names}")
        return wanted
    found = [name for name in EOS_NAMES if name in special] or (list(special) if len(special) == 1 else [])
    if len(found) != 1:
        raise SettingError(f"which token ends a document? tokenizer.eos_token=TOKEN says; special tokens: {names}")
    return found[0]


def printable_bytes() -> dict[str, int]:
    """Return the byte that each character of a byte-level token stands for, in the order of GPT-2's ids.

    The printable characters stand for themselves, those from U+0100 on for the other bytes.
    """
    printable = [value for value in range(256) if chr(value).isprintable() and chr(value) != " "]
    byte_of = {chr(value): value for value in printable}
    for value in range(256):
        if value not in printable:
            byte_of[chr(256 + len(byte_of) - len(printable))] = value
    return byte_of
