"""CLIP's byte-pair tokenizer, for any vocabulary in its format. T tokens."""

import gzip
import json
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from heapq import heappop, heappush
from importlib.resources import files
from pathlib import Path
from unicodedata import normalize

import regex

from inkwash.files import write_text

START, END = "<|startoftext|>", "<|endoftext|>"
FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json")
WORDS = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)


@cache
def byte_symbols() -> dict[int, str]:
    """A printable character for each byte, in vocabulary order: printable Latin-1 first, then the rest."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    return table | {byte: chr(256 + i) for i, byte in enumerate(others)}


def vocabulary(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Token -> id: bytes, bytes that end a word, merges in order, start and end of text (Radford et al. 2021)."""
    symbols = list(byte_symbols().values())
    tokens = [
        *symbols,
        *(symbol + "</w>" for symbol in symbols),
        *("".join(pair) for pair in merges),
        START,
        END,
    ]
    return {token: index for index, token in enumerate(tokens)}


class Tokenizer:
    """Text to token ids. Models share them, so nobody changes one.

    merges: pairs of symbols, the most wanted first. vocab: token -> id; by default the one that CLIP's rule
    gives. pad: the token that fills up after the end token: the end token itself (CLIP-L), or "!" (OpenCLIP's 0).
    """

    def __init__(
        self,
        merges: Sequence[tuple[str, str]],
        vocab: Mapping[str, int] | None = None,
        pad: str = END,
        max_length: int = 77,
    ):
        self.merges = list(merges)
        self.ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self.vocab = dict(vocab) if vocab is not None else vocabulary(self.merges)
        missing = [token for token in (START, END, pad) if token not in self.vocab]
        if missing:
            raise ValueError(f"the vocabulary lacks {', '.join(missing)}")
        self.start: int | None  # none where texts have an end alone
        self.start, self.end, self.pad = (self.vocab[token] for token in (START, END, pad))
        self.comma = self.vocab.get(",</w>")
        self.max_length = max_length
        self.symbols = byte_symbols()
        self.words = {index: token for token, index in self.vocab.items()}
        self.pieces = lru_cache(maxsize=65536)(self._pieces)

    @classmethod
    @cache
    def clip(cls, pad: str = END) -> "Tokenizer":
        """CLIP's own vocabulary of 49,408 tokens, shipped with the package."""
        packed = files("inkwash.models").joinpath("data/bpe_simple_vocab_16e6.txt.gz").read_bytes()
        lines = gzip.decompress(packed).decode("utf-8").split("\n")[1 : 1 + 49408 - 2 * 256 - 2]
        return cls([pair(line) for line in lines], pad=pad)

    @classmethod
    def from_folder(cls, folder: Path, max_length: int = 77) -> "Tokenizer":
        """Read `vocab.json` and `merges.txt`, or `tokenizer.json`, as Hugging Face folders have them.

        Raises OSError, ValueError or KeyError for files that are missing or broken.
        """
        texts = {name: (folder / name).read_text("utf-8") for name in FILES if (folder / name).exists()}
        return cls.from_texts(texts, max_length)

    @classmethod
    def from_texts(cls, texts: Mapping[str, str], max_length: int = 77) -> "Tokenizer":
        """A tokenizer from the contents of its files, by their names; the same one for the same contents."""
        return cls._from_texts(tuple((name, texts[name]) for name in FILES if name in texts), max_length)

    @classmethod
    @lru_cache(maxsize=4)  # most models have the same two
    def _from_texts(cls, given: tuple[tuple[str, str], ...], max_length: int) -> "Tokenizer":
        texts = dict(given)
        if "tokenizer.json" in texts and "vocab.json" not in texts:
            model = json.loads(texts["tokenizer.json"])["model"]
            vocab, lines = model["vocab"], [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        else:
            vocab, lines = json.loads(texts["vocab.json"]), texts["merges.txt"].split("\n")
        pad = json.loads(texts.get("tokenizer_config.json", "{}")).get("pad_token") or END
        pad = pad["content"] if isinstance(pad, dict) else pad  # older files describe the token
        merges = [pair(line) for line in lines if line and not line.startswith("#version")]
        return cls(merges, vocab, pad, max_length)

    def texts(self) -> dict[str, str]:
        """Contents of `vocab.json` and `merges.txt`, and of the settings that transformers reads beside them."""
        lines = (f"{first} {second}\n" for first, second in self.merges)
        names = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": self.words[self.pad]}
        settings = names | {"tokenizer_class": "CLIPTokenizer", "model_max_length": self.max_length}
        return {
            "vocab.json": json.dumps(self.vocab, ensure_ascii=False),
            "merges.txt": "#version: 0.2\n" + "".join(lines),
            "special_tokens_map.json": json.dumps(names, indent=2) + "\n",
            "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
        }

    def save(self, folder: Path) -> None:
        """Write them into a folder."""
        for name, content in self.texts().items():
            write_text(folder / name, content)

    def _pieces(self, word: str) -> tuple[int, ...]:
        """Token ids of one word: its bytes, with the most wanted neighbours merged until none is left.

        A heap of wanted pairs over a linked list of parts: n log n in the word's length.
        """
        parts = [self.symbols[byte] for byte in word.encode("utf-8")]
        parts[-1] += "</w>"
        end = len(parts)
        after, before = list(range(1, end + 1)), list(range(-1, end - 1))
        wanted: list[tuple[int, int]] = []  # (rank, place of the first part)

        def want(i: int) -> None:
            if i >= 0 and after[i] < end:
                rank = self.ranks.get((parts[i], parts[after[i]]))
                if rank is not None:
                    heappush(wanted, (rank, i))

        for i in range(end):
            want(i)
        while wanted:
            best, places = wanted[0][0], []
            while wanted and wanted[0][0] == best:  # a pair merges everywhere before the next one
                places.append(heappop(wanted)[1])
            for i in places:
                j = after[i]
                if j == end or (parts[i], parts[j]) != self.merges[best]:
                    continue  # a part has gone into another merge since
                parts[i], parts[j] = parts[i] + parts[j], ""
                after[i] = after[j]
                if after[i] < end:
                    before[after[i]] = i
            for i in places:
                if parts[i]:
                    want(before[i])
                    want(i)
        return tuple(self.vocab[part] for part in parts if part)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text of any length, without start, end and padding. Case and spacing don't count.

        An accent counts the same whether it is part of its letter or stands after it (Unicode's form NFC).
        """
        ids: list[int] = []
        for word in WORDS.findall(normalize("NFC", text).lower()):
            ids += [self.vocab[word]] if word in (START, END) else self.pieces(word)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; start, end and padding are left out."""
        text = "".join(self.words[i] for i in ids if self.words[i] not in (START, END))
        back = {symbol: byte for byte, symbol in self.symbols.items()}
        raw = bytes(back[symbol] for symbol in text.replace("</w>", "Ġ"))  # Ġ stands for the space byte
        return raw.decode("utf-8", errors="replace").strip(" ")

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text with start, end and padding, all `max_length` long; longer ones are cut."""
        start = [] if self.start is None else [self.start]
        room = self.max_length - len(start) - 1
        rows = [[*start, *self.encode(text)[:room], self.end] for text in texts]
        return [row + [self.pad] * (self.max_length - len(row)) for row in rows]


def pair(line: str) -> tuple[str, str]:
    first, second = line.split()
    return first, second
