"""Tokens: what is cut into them comes back, is padded, cut off and counted, saved and read."""

import numpy as np
import pytest

from jaxgen.data import tokens
from jaxgen.data.captions import encode_text
from jaxgen.data.sources import ArraySource, digits
from jaxgen.data.tokens import PAD, UNKNOWN

CAPTIONS = ["a red seven on a blue ground", "a green one, top left", "a red one on a red ground"]
MAKERS = {
    "bytes": lambda length: tokens.by_bytes(length),
    "words": lambda length: tokens.by_words(CAPTIONS, length),
    "pairs": lambda length: tokens.by_pairs(CAPTIONS, length, most=280),
}


@pytest.mark.parametrize("name", MAKERS)
def test_round_trip_and_padding(name):
    tokenizer = MAKERS[name](64)
    ids, num_cut = tokens.encode(tokenizer, CAPTIONS)
    assert (ids.shape, ids.dtype, num_cut) == ((3, 64), np.int32, 0)
    assert ids.max() < tokenizer.num_tokens
    for row in ids:  # padding, and nothing else, comes last
        (padded,) = np.nonzero(row == PAD)
        np.testing.assert_array_equal(padded, np.arange(padded[0], 64))
    back = tokens.decode(tokenizer, ids)
    if name == "words":  # spaces around marks are not kept
        back = [text.replace(" ,", ",") for text in back]
    assert back == CAPTIONS


def test_bytes_are_bytes():
    tokenizer = tokens.by_bytes(8)
    assert tokenizer.num_tokens == 258
    ids, _ = tokens.encode(tokenizer, ["aé"])
    assert (ids[0] != PAD).sum() == 3  # é is two bytes
    assert tokens.decode(tokenizer, ids) == ["aé"]


def test_pairs_are_shorter_than_bytes_and_nothing_is_unknown():
    tokenizer = MAKERS["pairs"](64)
    assert tokenizer.num_tokens == 280
    plain = tokens.encode(tokens.by_bytes(64), CAPTIONS).ids
    paired = tokens.encode(tokenizer, CAPTIONS).ids
    assert (paired != PAD).sum() < (plain != PAD).sum()
    assert UNKNOWN not in tokens.encode(tokenizer, ["zebra ß 漢字"]).ids


def test_words_that_are_not_known():
    tokenizer = tokens.by_words(CAPTIONS, 6)
    ids, _ = tokens.encode(tokenizer, ["A RED zebra"])
    assert (ids[0, :3] == UNKNOWN).tolist() == [False, False, True]
    assert tokens.by_words(CAPTIONS, 6, most=4).num_tokens == 4


def test_what_is_too_long_is_cut_and_counted():
    tokenizer = tokens.by_bytes(21)  # the second caption's length
    ids, num_cut = tokens.encode(tokenizer, CAPTIONS)
    assert num_cut == 2
    assert tokens.decode(tokenizer, ids) == [text[:21] for text in CAPTIONS]


@pytest.mark.parametrize("name", MAKERS)
def test_saved_and_read(name, tmp_path):
    tokenizer = MAKERS[name](16)
    tokens.save(tokenizer, tmp_path / "tokenizer.json")
    again = tokens.read(tmp_path / "tokenizer.json", 16)
    np.testing.assert_array_equal(
        tokens.encode(again, CAPTIONS).ids, tokens.encode(tokenizer, CAPTIONS).ids
    )


def test_a_file_that_is_no_tokenizer(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a\.json cannot be read as a tokenizer\.json"):
        tokens.read(tmp_path / "a.json", 8)
    tokenizer = tokens.by_bytes(8)
    text = tokenizer.model.to_str().replace("[PAD]", "[CLS]")
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(ValueError, match=r"b\.json: the token 0 must stand for padding"):
        tokens.read(tmp_path / "b.json", 8)
    with pytest.raises(FileNotFoundError):
        tokens.read(tmp_path / "c.json", 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tokens.by_bytes(0), "length must be at least 1, got 0"),
        (lambda: tokens.by_words([], 4), "captions must not be empty"),
        (lambda: tokens.by_words(CAPTIONS, 4, most=2), "most must be at least 3, got 2"),
        (lambda: tokens.by_pairs(CAPTIONS, 4, most=257), "most must be at least 258, got 257"),
        (lambda: tokens.encode(tokens.by_bytes(4), ["a", ""]), "caption 1 must not be empty"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def captioned(captions):
    """A source in memory whose examples have these captions."""
    return ArraySource({"text": encode_text(captions)}, name="small")


def test_a_source_of_tokens():
    """Several captions an example, of which one has fewer; the examples are otherwise its own."""
    source = captioned([("a red seven", "seven"), ("a green one",)])
    tokenizer = tokens.by_words(CAPTIONS, 4)
    read = tokens.Tokenized(source, tokenizer)
    assert read.spec["text"] == ((2, 4), np.dtype(np.int32))
    text = read[np.array([1, 0])]["text"]
    np.testing.assert_array_equal(text[0, 1], PAD)
    assert tokens.decode(tokenizer, text[:, 0]) == ["a green one", "a red seven"]
    assert tokens.decode(tokenizer, text[1:, 1]) == ["seven"]
    assert read.digest != source.digest
    assert read.digest != tokens.Tokenized(source, tokens.by_bytes(30)).digest


def test_captions_that_are_cut_are_counted():
    source = captioned([("a red seven on a blue ground", "seven"), ("a b c d",)])
    with pytest.warns(UserWarning, match="small, split all: 2 of 3 captions have more than 3"):
        tokens.Tokenized(source, tokens.by_words(CAPTIONS, 3))


def test_sources_without_captions():
    with pytest.raises(ValueError, match=r"digits has no captions: its entries are \['image'"):
        tokens.captions_of(digits("test"))


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a red sevn", r"'sevn'; near are 'seven'"),
        ("xyzzy", r"a word that the model does not know, 'xyzzy'$"),
        ("", r"caption 0 must not be empty, got ''"),
        ("a a a a a a a", r"text must have at most 6 tokens, got 7 in 'a a a"),
    ],
)
def test_captions_that_are_asked_for(caption, message):
    tokenizer = tokens.by_words(CAPTIONS, 6)
    with pytest.raises(ValueError, match=message):
        tokens.encode_known(tokenizer, [caption])
    ids = tokens.encode_known(tokenizer, ["A RED seven"])
    np.testing.assert_array_equal(ids, tokens.encode(tokenizer, ["a red seven"]).ids)
