"""BERT's WordPiece tokenizer, uncased, which latent diffusion's text encoders use."""

import gzip
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from unicodedata import category, normalize

from inkwash.models.tokenizer import Tokenizer

UNKNOWN, START, END, PAD = "[UNK]", "[CLS]", "[SEP]", "[PAD]"
MAX_WORD = 100  # characters; a longer word is unknown
# first and last code points of Chinese, Japanese and Korean ideographs, each a word of its own
IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class WordPiece(Tokenizer):
    """Text to token ids (Devlin et al. 2019). vocab: token -> id, pieces within a word after "##"."""

    def __init__(self, vocab: Mapping[str, int], max_length: int = 77):
        self.vocab = dict(vocab)
        if missing := [token for token in (UNKNOWN, START, END, PAD) if token not in self.vocab]:
            raise ValueError(f"the vocabulary lacks {', '.join(missing)}")
        self.start, self.end, self.pad = (self.vocab[token] for token in (START, END, PAD))
        self.comma = self.vocab.get(",")
        self.max_length = max_length
        self.words = {index: token for token, index in self.vocab.items()}

    @classmethod
    def bert(cls, max_length: int = 77) -> "WordPiece":
        """BERT's own uncased vocabulary of 30,522 tokens, shipped with the package."""
        packed = files("inkwash.models").joinpath("data/bert_uncased_vocab.txt.gz").read_bytes()
        return cls.from_texts({"vocab.txt": gzip.decompress(packed).decode("utf-8")}, max_length)

    @classmethod
    def from_texts(cls, texts: Mapping[str, str], max_length: int = 77) -> "WordPiece":
        """A tokenizer from the contents of `vocab.txt` or `tokenizer.json`, and of `tokenizer_config.json`, by their names.

        Raises ValueError or KeyError for contents that are missing, broken, or of a cased vocabulary.
        """
        if json.loads(texts.get("tokenizer_config.json", "{}")).get("do_lower_case", True) is not True:
            raise ValueError("do_lower_case is not true; only uncased vocabularies are covered")
        if "tokenizer.json" in texts and "vocab.txt" not in texts:
            return cls(json.loads(texts["tokenizer.json"])["model"]["vocab"], max_length)
        lines = texts["vocab.txt"].removesuffix("\n").split("\n")
        return cls({line.removesuffix("\r"): index for index, line in enumerate(lines)}, max_length)

    def texts(self) -> dict[str, str]:
        """Contents of `vocab.txt`, and of the settings that transformers reads beside it."""
        settings = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": True,
            "model_max_length": self.max_length,
        }
        tokens = sorted(self.vocab, key=self.vocab.__getitem__)
        return {
            "vocab.txt": "\n".join(tokens) + "\n",
            "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
        }

    def encode(self, text: str) -> list[int]:
        """Token ids of a text of any length, without start, end and padding. Case, accents and spacing don't count."""
        return [index for word in words(text) for index in self.pieces(word)]

    def pieces(self, word: str) -> list[int]:
        """The longest piece that begins the word, the longest that goes on from there, and so on."""
        ids, begin = [], 0
        while begin < len(word) <= MAX_WORD:
            ends = range(len(word), begin, -1)
            found = ((self.vocab.get("##" * (begin > 0) + word[begin:end]), end) for end in ends)
            index, begin = next((pair for pair in found if pair[0] is not None), (None, 0))
            if index is None:
                return [self.vocab[UNKNOWN]]
            ids.append(index)
        return ids or [self.vocab[UNKNOWN]]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, its words apart by spaces; start, end and padding are left out."""
        tokens = [self.words[i] for i in ids if i not in (self.start, self.end, self.pad)]
        return " ".join(tokens).replace(" ##", "")


def words(text: str) -> list[str]:
    """Words in lower case and without accents, punctuation and ideographs each by itself; control characters go."""
    made: list[str] = []
    for character in normalize("NFD", text):
        kind, code = category(character), ord(character)
        if character in "\t\n\r" or kind[0] == "Z":
            made.append(" ")
        elif kind in ("Cc", "Cf", "Co", "Mn") or character == "\ufffd":
            continue
        elif (
            kind[0] == "P"
            or (code < 128 and not character.isalnum())
            or any(first <= code <= last for first, last in IDEOGRAPHS)
        ):
            made.append(f" {character} ")
        else:
            made.append(character.lower())
    return "".join(made).split()
