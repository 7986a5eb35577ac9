"""SentencePiece's unigram tokenizer, which T5 has, read from `spiece.model` or `tokenizer.json`."""

import base64
import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unicodedata import category, normalize

from inkwash.models.tokenizer import Tokenizer

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
BLANK = "\u2581"  # stands for a space, in front of each word
PENALTY = 10.0  # of an unknown character, below the least likely piece
NORMAL, USER_DEFINED = 1, 4  # kinds of pieces that a text may be cut into


class Unigram(Tokenizer):
    """Text to token ids, cut into the pieces that are most likely together (Kudo 2018).

    pieces: each with its log probability, in the order of their ids; those of no text have the probability 0.
    lower: whether text is put into small letters first, as Imagen's prompts are.
    charsmap: SentencePiece's own compiled rules, which are NFKC and a few more; kept for other readers.
    """

    start = None  # type: ignore[assignment]  a text has an end alone

    def __init__(
        self,
        pieces: Sequence[tuple[str, float]],
        max_length: int = 77,
        charsmap: str = "",
        hidden: frozenset[str] = frozenset(),
        lower: bool = False,
    ):
        self.scored = list(pieces)
        self.vocab = {piece: index for index, (piece, _) in enumerate(pieces)}
        if missing := [token for token in (PAD, END, UNKNOWN) if token not in self.vocab]:
            raise ValueError(f"the vocabulary lacks {', '.join(missing)}")
        self.end, self.pad = self.vocab[END], self.vocab[PAD]
        self.comma = self.vocab.get(",")
        self.lower = lower
        self.max_length, self.charsmap, self.hidden = max_length, charsmap, hidden | {PAD, END, UNKNOWN}
        self.scores = {piece: score for piece, score in pieces if piece not in self.hidden}
        self.longest = max(map(len, self.scores), default=1)
        self.unknown = min(self.scores.values(), default=0.0) - PENALTY
        self.words = {index: piece for piece, index in self.vocab.items()}

    @classmethod
    def from_texts(cls, texts: Mapping[str, str], max_length: int = 77) -> "Unigram":
        """A tokenizer from `tokenizer.json`, by its name. Raises ValueError or KeyError where it is missing or broken."""
        read = json.loads(texts["tokenizer.json"])
        if read["model"].get("type", "Unigram") != "Unigram":
            raise ValueError(f"its model is of the type {read['model']['type']}, and not Unigram")
        pieces = [(str(piece), float(score)) for piece, score in read["model"]["vocab"]]
        special = {str(token["content"]) for token in read.get("added_tokens", []) if token.get("special")}
        rules = [read.get("normalizer") or {}]
        rules += rules[0].get("normalizers", [])
        charsmap = next((r["precompiled_charsmap"] for r in rules if r.get("precompiled_charsmap")), "")
        known = {piece for piece, _ in pieces}
        pieces += [(piece, 0.0) for piece in sorted(special - known)]
        return cls(pieces, max_length, charsmap, frozenset(special))

    @classmethod
    def from_model(cls, content: bytes, max_length: int = 77) -> "Unigram":
        """Read the bytes of a `spiece.model`. Raises ValueError for bytes that are not a SentencePiece model."""
        pieces: list[tuple[str, float]] = []
        hidden, charsmap = set(), b""
        for number, value in fields(content):
            if number == 1:  # a piece: its text, its score and its kind
                piece = dict(fields(inside(value)))
                text, kind = inside(piece.get(1)).decode("utf-8"), piece.get(3, NORMAL)
                pieces.append((text, float(piece.get(2, 0.0))))
                hidden |= {text} if kind not in (NORMAL, USER_DEFINED) else set()
            elif number == 3:  # how text is normalised
                charsmap = inside(dict(fields(inside(value))).get(2))
        return cls(pieces, max_length, base64.b64encode(charsmap).decode("ascii"), frozenset(hidden))

    def texts(self) -> dict[str, str]:
        """Contents of `tokenizer.json`, and of the settings that transformers reads beside it."""
        space = {"type": "Metaspace", "replacement": BLANK, "prepend_scheme": "always", "split": True}
        special = sorted((index, piece) for piece, index in self.vocab.items() if piece in self.hidden)
        end = {"SpecialToken": {"id": END, "type_id": 0}}
        content: dict[str, Any] = {
            "version": "1.0",
            "added_tokens": [
                {
                    "id": index,
                    "content": piece,
                    "special": True,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                }
                for index, piece in special
            ],
            "normalizer": {"type": "Precompiled", "precompiled_charsmap": self.charsmap}
            if self.charsmap
            else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, space]},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"Sequence": {"id": "A", "type_id": 0}}, end],
                "pair": [
                    {"Sequence": {"id": "A", "type_id": 0}},
                    end,
                    {"Sequence": {"id": "B", "type_id": 0}},
                    end,
                ],
                "special_tokens": {END: {"id": END, "ids": [self.end], "tokens": [END]}},
            },
            "decoder": space,
            "model": {
                "type": "Unigram",
                "unk_id": self.vocab[UNKNOWN],
                "vocab": [list(pair) for pair in self.scored],
                "byte_fallback": False,
            },
        }
        names = {"eos_token": END, "pad_token": PAD, "unk_token": UNKNOWN}
        settings = names | {
            "tokenizer_class": "T5Tokenizer",
            "model_max_length": self.max_length,
            "extra_ids": 0,
        }
        return {
            "tokenizer.json": json.dumps(content, ensure_ascii=False) + "\n",
            "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
        }

    def encode(self, text: str) -> list[int]:
        """Token ids of a text of any length, without end and padding."""
        return [
            index
            for word in plain(text.lower() if self.lower else text).split()
            for index in self.cut(BLANK + word)
        ]

    def cut(self, word: str) -> list[int]:
        """The most likely pieces of a word; unknown characters side by side are one unknown piece."""
        best: list[tuple[float, int, bool]] = [
            (0.0, 0, True)
        ]  # up to each place: score, where its piece begins, known
        for end in range(1, len(word) + 1):
            options = [(best[end - 1][0] + self.unknown, end - 1, False)]
            for begin in range(max(0, end - self.longest), end):
                if (score := self.scores.get(word[begin:end])) is not None:
                    options.append((best[begin][0] + score, begin, True))
            best.append(max(options, key=lambda option: (option[0], option[2])))
        pieces, end = [], len(word)
        while end:
            _, begin, known = best[end]
            index = self.vocab[word[begin:end]] if known else self.vocab[UNKNOWN]
            if known or not pieces or pieces[-1] != index:
                pieces.append(index)
            end = begin
        return pieces[::-1]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; end and padding are left out."""
        kept = [self.words[i] for i in ids if self.words[i] not in (PAD, END)]
        return "".join(kept).replace(BLANK, " ").strip()

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, cut and filled up to max_length."""
        rows = [[*self.encode(text)[: self.max_length - 1], self.end] for text in texts]
        return [row + [self.pad] * (self.max_length - len(row)) for row in rows]


def plain(text: str) -> str:
    """Text as the pieces were learnt on it: NFKC, each control character a space or nothing."""
    text = re.sub(r"[\t\n\r\u2028\u2029\u200b\u200e\u200f\ufeff]", " ", text)
    return normalize("NFKC", "".join(c for c in text if category(c) not in ("Cc",)))


def inside(value: object) -> bytes:
    """A field that holds bytes; none where it is missing."""
    return value if isinstance(value, bytes) else b""


def fields(content: bytes) -> Iterator[tuple[int, bytes | int | float]]:
    """The fields of a protocol buffer's message: their numbers and values. Raises ValueError where it is none."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(content) or shift > 63:
                raise ValueError("it is not a SentencePiece model: a number has no end")
            byte = content[at]
            value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
            if byte < 128:
                return value

    while at < len(content):
        key = varint()
        number, kind = key >> 3, key & 7
        if kind == 0:
            yield number, varint()
            continue
        size = {1: 8, 2: -1, 5: 4}.get(kind)
        if size is None:
            raise ValueError(f"it is not a SentencePiece model: a field of the kind {kind}")
        size = varint() if size < 0 else size
        value, at = content[at : at + size], at + size
        if len(value) < size:
            raise ValueError("it is not a SentencePiece model: it ends too early")
        yield number, value if kind == 2 else struct.unpack("<f" if kind == 5 else "<d", value)[0]
