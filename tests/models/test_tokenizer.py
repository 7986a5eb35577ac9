"""Our tokenizer against transformers' and instant-clip-tokenizer's, and against the plain definition."""

import random
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inkwash.models.tokenizer import Tokenizer

TOKENIZER = Tokenizer.clip()

TEXTS = [
    "",
    " ",
    "a",
    "a photo of a cat",
    "A PHOTO, of   a\tcat\n\nin the (rain:1.2)!!",
    "it's they're I'm we've he'd she'll don't 'tis rock'n'roll '''s",
    "masterpiece, best quality, 1girl, 8k uhd, (((detailed))), <lora:x:0.8>, BREAK [a|b]",
    "route 66 in 1984, 3.14159, 1/2, ½, Ⅻ, ²",
    "café naïve Ångström ÇA ñandú",
    "cafe\u0301 A\u030angstro\u0308m",  # accents after their letters
    "Straße İstanbul ﬁn ΑΘΗΝΑ Привет мир",
    "日本語のテキスト 中文 한국어 ไทย हिन्दी العربية עברית",
    "🍎 left of 📘, 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ☃️",
    "snake_case-and-kebab/and\\path @home #tag $5 50% a&b a*b x^2 ~ `code` {x} |",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "zero\u200bwidth non\u00a0breaking em\u2003space\u3000wide",
    "a\x00b\x07c\x1cd\x85e",
    "𝔣𝔯𝔞𝔨𝔱𝔲𝔯 ①②③ ﷽ \U0001f1eb\U0001f1f7 \ufffd",
    "</w> w> < / w >",
]
WORDS = st.text(alphabet="abcdefghijklmnopqrstuvwxyzABCÉéßñ'’-_0123456789,.()!", max_size=40)
# Libraries differ on code points that no version of Unicode has yet. A last Σ is ς in Python, and with
# it in CLIP's own code, and σ in transformers.
ASSIGNED = st.characters(exclude_categories=("Cs", "Cn", "Co"), exclude_characters="Σ")
ANY = st.text(ASSIGNED, max_size=40)
MIXED = st.lists(st.one_of(WORDS, ANY, st.sampled_from(TEXTS)), max_size=6).map(" ".join)


def plain_pieces(tokenizer: Tokenizer, word: str) -> tuple[int, ...]:
    """Byte-pair encoding as it is defined: again and again, merge the most wanted pair wherever it is."""
    parts = [tokenizer.symbols[byte] for byte in word.encode()]
    parts[-1] += "</w>"
    while pairs := [p for p in pairwise(parts) if p in tokenizer.ranks]:
        best, merged = min(pairs, key=lambda p: tokenizer.ranks[p]), []
        while parts:
            count = 2 if tuple(parts[:2]) == best else 1
            merged.append("".join(parts[:count]))
            parts = parts[count:]
        parts = merged
    return tuple(tokenizer.vocab[part] for part in parts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save(path)
    return path


@pytest.fixture(scope="module")
def reference(folder):
    return pytest.importorskip("transformers").CLIPTokenizer.from_pretrained(folder)


def test_known_ids():
    assert TOKENIZER.encode("a photo of a cat") == [320, 1125, 539, 320, 2368]
    assert TOKENIZER(["a photo of a cat"])[0] == [49406, 320, 1125, 539, 320, 2368, *[49407] * 71]
    assert len(TOKENIZER.vocab) == 49408 and len(TOKENIZER.merges) == 48894
    assert Tokenizer.clip(pad="!")(["cat", ""]) == [
        [49406, 2368, 49407, *[0] * 74],
        [49406, 49407, *[0] * 75],
    ]


@pytest.mark.parametrize("text", TEXTS)
def test_same_ids_as_transformers(reference, text):
    assert TOKENIZER.encode(text) == reference(text, add_special_tokens=False)["input_ids"]


def test_same_rows_as_transformers(reference):
    texts = [*TEXTS, "one of many words " * 30]
    theirs = reference(texts, padding="max_length", max_length=77, truncation=True)["input_ids"]
    assert TOKENIZER(texts) == theirs


@settings(max_examples=400, deadline=None, derandomize=True)
@given(text=MIXED)
def test_same_ids_as_transformers_for_any_text(reference, text):
    assert TOKENIZER.encode(text) == reference(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("text", TEXTS[:9])
def test_same_ids_as_instant_clip_tokenizer(text):
    other = pytest.importorskip("instant_clip_tokenizer").Tokenizer()
    assert TOKENIZER.encode(text) == list(other.encode(text))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=MIXED)
def test_decoding_loses_only_case_and_spacing(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.encode(TOKENIZER.decode(ids)) == ids
    assert TOKENIZER.decode(TOKENIZER([text])[0]) == TOKENIZER.decode(ids[:75])


def test_decoding():
    assert TOKENIZER.decode(TOKENIZER.encode("A photo  of a CAT")) == "a photo of a cat"
    assert TOKENIZER.decode(TOKENIZER.encode("🍎 café 日本語")) == "🍎 café 日本語"


def test_folder_round_trip(tmp_path):
    Tokenizer.clip(pad="!").save(tmp_path)
    other = Tokenizer.from_folder(tmp_path, max_length=20)
    assert other.merges == TOKENIZER.merges and other.vocab == TOKENIZER.vocab
    assert other(["a cat"]) == [[49406, 320, 2368, 49407, *[0] * 16]]


def test_special_tokens_in_a_text_are_those_tokens():
    assert TOKENIZER.encode("a<|endoftext|>b") == [320, 49407, *TOKENIZER.encode("b")]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(word=st.one_of(st.text("ab", min_size=1, max_size=30), st.text(min_size=1, max_size=20)))
def test_pieces_are_those_of_the_definition(word):
    assert TOKENIZER._pieces(word) == plain_pieces(TOKENIZER, word)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(word=st.text("abc", min_size=1, max_size=14), data=st.data())
def test_pieces_are_those_of_the_definition_with_merges_in_any_order(word, data):
    merges = [
        ("a", "a"),
        ("a", "b"),
        ("aa", "b"),
        ("b", "a"),
        ("ab", "ab"),
        ("ab", "a"),
        ("c", "ab"),
        ("a", "b</w>"),
    ]
    tokenizer = Tokenizer(data.draw(st.permutations(merges)))
    assert tokenizer._pieces(word) == plain_pieces(tokenizer, word)


def test_one_endless_word_takes_no_endless_time():
    letters = random.Random(0)
    for word in ("a" * 30_000, "".join(letters.choices("etaoinshrdlu", k=30_000))):
        start = time.process_time()
        ids = TOKENIZER.encode(word)
        assert time.process_time() - start < 1
        assert TOKENIZER.decode(ids) == word


def test_a_vocabulary_without_its_ends_is_refused():
    with pytest.raises(ValueError, match="lacks <pad>"):
        Tokenizer(TOKENIZER.merges, pad="<pad>")
    with pytest.raises(ValueError, match=r"lacks <\|startoftext\|>"):
        Tokenizer([], {"a": 0})
