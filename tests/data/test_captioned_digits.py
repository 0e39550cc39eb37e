"""Captioned digits: sentences say what pictures show; what is unseen is never trained."""

import numpy as np
import pytest

from jaxgen.data.captioned_digits import (
    ATTRIBUTES,
    COLOURS,
    NUMBERS,
    PLACES,
    SPLITS,
    attributes_of,
    captioned_digits,
    cut_out,
    is_unseen,
    read,
)
from jaxgen.data.captions import decode_text
from jaxgen.data.sources import digits, load, load_pair


@pytest.fixture(scope="module")
def sets():
    return {split: captioned_digits(split).arrays for split in SPLITS}


def combinations(arrays):
    shown = read(arrays["image"])
    return {*map(tuple, np.stack([arrays["label"], shown.colour, shown.ground], axis=1).tolist())}


@pytest.mark.parametrize("split", SPLITS)
def test_pictures_sentences_and_attributes_agree(sets, split):
    arrays = sets[split]
    shown, sentences = read(arrays["image"]), decode_text(arrays["text"])
    np.testing.assert_array_equal(arrays["attributes"], attributes_of(arrays["label"], shown))
    for row in range(0, len(sentences), 7):
        number, place = NUMBERS[arrays["label"][row]], PLACES[shown.place[row]]
        colour, ground = COLOURS[shown.colour[row]], COLOURS[shown.ground[row]]
        assert sentences[row] == (
            f"a {colour} {number} on a {ground} ground, {place}",
            f"{place} on {ground}: {number} in {colour}",
        )
    assert (arrays["attributes"].sum(axis=1) == 4).all()
    assert arrays["attributes"].shape[1] == len(ATTRIBUTES) == 26
    assert (shown.colour != shown.ground).all()


def test_what_is_unseen(sets):
    """A fifth of the combinations; all their parts, and pairs of parts, are in training."""
    train, test, unseen = (combinations(sets[split]) for split in SPLITS)
    assert not (train | test) & unseen
    assert len(train) == 240
    assert len(unseen) == 60
    assert is_unseen(*np.array(sorted(unseen)).T).all()
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert {(each[i], each[j]) for each in unseen} <= {(each[i], each[j]) for each in train}


def test_the_ink_is_the_digits(sets):
    """In its quarter each picture is the digit, between two colours; noise blurs it little."""
    images = sets["test"]["image"]
    drawn = np.repeat(digits("test").arrays["image"], 4, axis=0).astype(float)
    np.testing.assert_allclose(cut_out(images), drawn, atol=1)
    rng = np.random.default_rng(0)
    noisy = np.clip(images + rng.normal(0, 12, images.shape), 0, 255).astype(np.uint8)
    assert np.abs(cut_out(noisy) - drawn).mean() < 12
    assert np.abs(cut_out(images[::-1]) - drawn).mean() > 50


def test_reading_survives_noise(sets):
    rng = np.random.default_rng(0)
    arrays = sets["test"]
    noisy = np.clip(arrays["image"] + rng.normal(0, 12, arrays["image"].shape), 0, 255)
    for clean, again in zip(read(arrays["image"]), read(noisy.astype(np.uint8)), strict=True):
        assert (clean == again).mean() > 0.99


def test_by_name():
    assert load("captioned_digits", "unseen").split == "unseen"
    train, test = load_pair("captioned_digits", ("train", "test"))
    assert (len(train), len(test)) == (6000, 1188)
    assert train.digest == captioned_digits().digest != test.digest


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: captioned_digits("all"), "split of captioned_digits must be one of"),
        (lambda: load("captioned_digits", resize=8), "captioned_digits keeps its size"),
        (lambda: read(np.zeros((1, 8, 8, 3), np.uint8)), r"images must be \[N, 16, 16, 3\]"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
