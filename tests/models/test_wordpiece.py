"""BERT's tokenizer here and in transformers, on BERT's own vocabulary."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inkwash.models.wordpiece import WordPiece

OURS = WordPiece.bert()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[int]]:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    for name, text in OURS.texts().items():
        (folder / name).write_text(text, "utf-8")
    tokenizer = transformers.BertTokenizer.from_pretrained(folder)
    assert len(tokenizer) == 30522
    return lambda text: tokenizer(text, padding="max_length", max_length=77, truncation=True)["input_ids"]


TEXTS = [
    "A painting of a squirrel eating a burger",
    "",
    "Ünïcödé, naïve café — “quotes”… and 3.14$!",
    "東京の猫 is a cat; 한국어 text",
    "tab\tnew\nline\u00a0nbsp\u200bzero\x00\x07\ufffd",
    "unbelievablyhyperantidisestablishmentarianistically " + "x" * 101,
    "word " * 100,
    "don't stop-it_now @home #5 50% a/b {c} ^d ~e |f `g",
    "İstanbul ŒUVRE ﬁne ½ ² ™ ☃ 🎨",
    "مرحبا بالعالم नमस्ते",
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_the_same_tokens(theirs: Callable[[str], list[int]], text: str) -> None:
    assert OURS([text])[0] == theirs(text)


@settings(max_examples=150, deadline=None)
@given(
    st.text(st.characters(max_codepoint=0x52F) | st.characters(min_codepoint=0x2000, max_codepoint=0x206F))
)
def test_the_same_tokens_of_any_latin_greek_or_cyrillic_text(
    theirs: Callable[[str], list[int]], text: str
) -> None:
    if "[" not in text:  # a special token's name is text here, and the token there
        assert OURS([text])[0] == theirs(text)


def test_back_to_text() -> None:
    ids = OURS(["A Squirrel, eating hamburgers"])[0]
    assert len(ids) == 77 and ids[0] == 101
    assert OURS.decode(ids) == "a squirrel , eating hamburgers"


def test_files_there_and_back() -> None:
    again = WordPiece.from_texts(OURS.texts())
    assert again.vocab == OURS.vocab
    by_json = WordPiece.from_texts({"tokenizer.json": json.dumps({"model": {"vocab": OURS.vocab}})}, 20)
    assert len(by_json(["a"])[0]) == 20


def test_what_is_no_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lacks \[UNK\]"):
        WordPiece.from_texts({"vocab.txt": "[PAD]\n[CLS]\n[SEP]\n"})
    with pytest.raises(ValueError, match="do_lower_case"):
        WordPiece.from_texts(OURS.texts() | {"tokenizer_config.json": '{"do_lower_case": false}'})
