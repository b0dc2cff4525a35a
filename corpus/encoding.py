"""Turn documents into token arrays, straight from their bytes: what one worker does."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from corpus.documents import RECORD, DocumentReader
from corpus.huggingface_tokenizer import HuggingFaceTokenizer
from corpus.manifest import DTYPES, DataError, first_line
from corpus.tokenizer import BYTES_PATTERN, GPT2_PATTERN, Tokenizer, load_tokenizer

CHUNK_BYTES = 2_000_000  # of text: a fraction of a second of work
DOCUMENT_COST = 100  # bytes; what a document costs beyond its text, so that empty ones fill a chunk too
PIECE_BYTES = 1_000_000
# Before a blank that follows a character that is no white space (outside ASCII, white space starts with c2, e1, e2 or e3),
# or before an ASCII digit that follows an ASCII letter. Led by one set of bytes, which `re` scans for quickly.
SAFE_CUT = re.compile(
    rb"[ \n0-9](?:(?<=[!-~][ \n])|(?<=[\xc3-\xdf][\x80-\xbf][ \n])|(?<=[\xe0\xe4-\xef][\x80-\xbf]{2}[ \n])"
    rb"|(?<=[\xf0-\xf4][\x80-\xbf]{3}[ \n])|(?<=[A-Za-z][0-9]))"
)
LONG_BLANK = re.compile(r"[ \t\r\n]{100000,}")


@dataclass(frozen=True)
class Encoded:
    """One chunk of documents as tokens: content is their little-endian bytes, EOT after each document."""

    content: bytes
    documents: int
    tokens: int
    text_bytes: int
    max_id: int
    repaired: int  # documents with invalid UTF-8, decoded with U+FFFD in its place
    altered: int  # documents whose tokens do not spell the text; tiktoken's always do


class ChunkEncoder:
    """Turn a range of an index file into tokens; what each worker holds."""

    def __init__(self, tokenizer_path: str, paths: list[str], dtype: str) -> None:
        self.encoding = load_tokenizer(tokenizer_path)
        self.reader = DocumentReader(paths)
        self.dtype = DTYPES[dtype]
        self.eot = np.array([self.encoding.eot_token], dtype=self.dtype)

    def encode(self, index_path: str, start: int, stop: int) -> Encoded:
        """Encode documents [start, stop) of an index file of RECORDs.

        Raises:
            DataError: one cannot be read or encoded; the message names its file and place.
        """
        records = np.fromfile(index_path, dtype=RECORD, count=stop - start, offset=start * RECORD.itemsize)
        arrays, text_bytes, repaired, altered = [], 0, 0, 0
        for file, offset, length in records.tolist():
            is_valid = True
            try:
                for piece in split_document(self.encoding, self.reader.read(file, offset, length)):
                    try:
                        text = piece.decode("utf-8")
                        text_bytes += len(piece)
                    except UnicodeDecodeError:
                        text, is_valid = piece.decode("utf-8", "replace"), False
                        text_bytes += len(text.encode("utf-8"))
                    for tokens in encode_text(self.encoding, text):
                        arrays.append(tokens.astype(self.dtype))
                    if isinstance(self.encoding, HuggingFaceTokenizer):  # one piece, one array
                        altered += not self.encoding.spells(tokens.tolist(), text)
            except DataError:
                raise
            except ValueError as error:
                raise DataError(
                    f"{self.reader.paths[file]}: the document of {length:,} bytes at byte {offset:,} "
                    f"cannot be encoded ({first_line(error)})"
                ) from None
            arrays.append(self.eot)
            repaired += not is_valid
        tokens = np.concatenate(arrays)
        return Encoded(tokens.tobytes(), len(records), len(tokens), text_bytes, int(tokens.max()), repaired, altered)


def split_document(encoding: Tokenizer, raw: bytes) -> Iterator[bytes]:
    """Yield a document in pieces of about PIECE_BYTES whose tokens, put together, are those of the whole.

    GPT-2's expression never matches across a SAFE_CUT, never looks behind, and looks ahead from blanks alone; in the byte
    tokenizer nothing merges. Decoding is safe there too: both sides of a cut are whole characters. It bounds memory:
    tiktoken takes about ten bytes for each byte of text, and 50 MB documents may meet in all workers at once. Of other
    tokenizers nothing is known, so their documents stay whole.
    """
    start, pattern = 0, getattr(encoding, "_pat_str", None)
    while len(raw) - start > PIECE_BYTES and pattern in (GPT2_PATTERN, BYTES_PATTERN):
        cut = SAFE_CUT.search(raw, start + PIECE_BYTES)
        if cut is None:
            break
        yield raw[start : cut.start()]
        start = cut.start()
    yield raw[start:] if start else raw


def encode_text(encoding: Tokenizer, text: str) -> Iterator[np.ndarray]:
    """Yield the tokens of encode_ordinary(text) as uint32 arrays; text that spells EOT is ordinary text.

    tiktoken gives up on about a million blanks in a row. GPT-2's expression makes one match of a run of blanks but for its
    last character, so cutting there changes no token.
    """
    if isinstance(encoding, HuggingFaceTokenizer):
        yield np.array(encoding.encode_ordinary(text), dtype=np.uint32)
        return
    try:
        # Not encode_ordinary: this skips building a list of Python integers.
        yield encoding.encode_to_numpy(text, disallowed_special=())
        return
    except ValueError:
        cuts = [match.end() - 1 for match in LONG_BLANK.finditer(text) if not text[match.end() : match.end() + 1].isspace()]
        if not cuts or encoding._pat_str != GPT2_PATTERN:
            raise
    for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
        yield encoding.encode_to_numpy(text[start:stop], disallowed_special=())


def plan_chunks(lengths: np.ndarray, start: int) -> list[tuple[int, int]]:
    """Cut documents [start, end) into ranges of about CHUNK_BYTES of text."""
    ends = np.cumsum(lengths[start:] + DOCUMENT_COST)
    cuts = np.flatnonzero(np.diff(ends // CHUNK_BYTES)) + 1 + start
    edges = [start, *cuts.tolist(), len(lengths)]
    return [(first, last) for first, last in itertools.pairwise(edges) if last > first]
