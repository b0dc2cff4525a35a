"""A run's tokenizer as the files that transformers, vLLM and llama.cpp read, with the very same ids.

tiktoken merges the pair whose joint token has the lowest rank; the Hugging Face library merges the listed pair that comes
first in its list. The two agree on every text if each token, spelled with tokens of lower rank alone, comes to exactly
two parts, and these are the pair that is listed: what happens inside a token's span before it is merged depends on that
span alone. `find_merges` finds the parts, or refuses.

The inverse, from a tokenizer.json to ours, is corpus/huggingface_tokenizer.py.
"""

import json
from pathlib import Path
from typing import Any

import tiktoken

from cli.composition import ConfigError
from corpus.huggingface_tokenizer import PROBE, HuggingFaceTokenizer, printable_bytes
from corpus.manifest import DataError
from corpus.tokenizer import GPT2_PATTERN, Tokenizer

EXTRA_PROBE = (
    "\t \r\n\n   x  \u00a0\u2003y\u3000\u200d'll 'S can't "
    "12\u0663\u00b2\U0001f600\U0001f468\u200d\U0001f469 e\u0301 \x00\x1b\x85\u2028 "
)


def write_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Write tokenizer.json and tokenizer_config.json, and of a byte-level BPE also vocab.json and merges.txt.

    Raises:
        ConfigError: the package tokenizers is missing.
        DataError: the tokenizer cannot be expressed so that it gives the same ids.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        content, eos_token = huggingface_content(tokenizer), tokenizer.eos_token
    else:
        content, eos_token = byte_level_content(tokenizer), tokenizer.decode([tokenizer.eot_token])
        vocabulary = content["model"]["vocab"] | {token["content"]: token["id"] for token in content["added_tokens"]}
        (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        merges = "".join(f"{first} {second}\n" for first, second in content["model"]["merges"])
        (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    check_same_ids(tokenizer, content)
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # reads tokenizer.json as it is; others build their own rules around it
        # Documents are joined by this token alone: it ends one and begins the next. Nothing is put in front of a text.
        "bos_token": eos_token,
        "eos_token": eos_token,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "model_input_names": ["input_ids", "attention_mask"],  # transformers 4 would give token_type_ids as well
        "model_max_length": max_length,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")


def byte_level_content(encoding: tiktoken.Encoding) -> dict[str, Any]:
    """Return the content of a tokenizer.json for tiktoken's ranks; raise DataError where its pattern is not known here."""
    merges = find_merges(encoding._mergeable_ranks)
    if merges and encoding._pat_str != GPT2_PATTERN:
        raise DataError(
            f"the tokenizer {encoding.name} splits text by a pattern that is not GPT-2's; it cannot be exported with the same ids"
        )
    letter = {value: character for character, value in printable_bytes().items()}

    def spell(token: bytes) -> str:
        return "".join(map(letter.__getitem__, token))

    ordered = sorted(encoding._mergeable_ranks.items(), key=lambda item: item[1])
    added = [
        {
            "id": id,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for text, id in sorted(encoding._special_tokens.items(), key=lambda item: item[1])
    ]
    # GPT-2's own expression is built into the library; where nothing is merged, no splitting can matter.
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": bool(merges)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {spell(token): rank for token, rank in ordered},
            "merges": [[spell(first), spell(second)] for first, second in merges],
        },
    }


def find_merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Return the two parts of each token of several bytes, in the order of rank; raise DataError if one has not two."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 1:
            joint = [ranks.get(first + second, rank) for first, second in zip(parts, parts[1:], strict=False)]
            lowest = min(joint)
            if lowest >= rank:
                break
            place = joint.index(lowest)
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        if len(parts) != 2:
            raise DataError(f"the tokenizer's token {rank} is not a merge of two others; it cannot be exported")
        merges.append((parts[0], parts[1]))
    return merges


def huggingface_content(tokenizer: HuggingFaceTokenizer) -> dict[str, Any]:
    """Return the wrapped tokenizer.json, but for what is not applied in training: templates, truncation, padding, dropout."""
    content = json.loads(tokenizer.content)
    content["model"]["dropout"] = None
    return content | {"truncation": None, "padding": None, "post_processor": None}


def check_same_ids(tokenizer: Tokenizer, content: dict[str, Any]) -> None:
    """Raise DataError unless the exported tokenizer gives the run's own ids on a hard text."""
    try:
        import tokenizers
    except ImportError:
        raise ConfigError("exporting needs the package tokenizers; run: pip install -r requirements.txt") from None
    exported = tokenizers.Tokenizer.from_str(json.dumps(content))
    text = PROBE + EXTRA_PROBE + "".join(map(chr, range(0x250)))
    if exported.get_vocab_size() != tokenizer.n_vocab or exported.encode(text, add_special_tokens=False).ids != tokenizer.encode(
        text, allowed_special="all"
    ):
        raise DataError(f"the tokenizer {tokenizer.name} does not give the same ids as a Hugging Face tokenizer")
