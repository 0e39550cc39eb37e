"""Obedience: hand-counted scores, groups that exclude each other, chance and certainty."""

import numpy as np
import pytest

from jaxgen.data.captioned_digits import ATTRIBUTES, captioned_digits
from jaxgen.metrics.obedience import (
    attribute_scores,
    caption_score,
    exclusive_groups,
    r_precision,
    shuffled,
)

NAMES = ("red hair", "blue hair", "green hair", "hat")
GROUPS = {"hair": (0, 1, 2)}
ASKED = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 0]])


def test_scores_by_hand():
    evidence = np.array([[3, 1, -1, 2], [-2, -1, -3, 1], [1, -1, -2, 2], [-1, -2, -3, -1]], float)
    scores = attribute_scores(evidence, ASKED, NAMES, GROUPS)
    # Of a group the greatest counts: red, blue, red (green was asked for), red.
    assert scores.groups == {"hair": 0.75}
    assert scores.accuracy == {
        "red hair": 0.75,
        "blue hair": 1,
        "green hair": 0.75,
        "hat": 0.75,
    }
    assert scores.f1["hat"] == pytest.approx(2 * 2 / (3 + 2))
    assert scores.f1["green hair"] == 0
    assert (scores.exact, scores.num) == (0.5, 4)
    alone = attribute_scores(evidence, ASKED, NAMES)
    assert alone.groups == {}
    assert alone.accuracy["blue hair"] == 0.5


def test_groups():
    attributes = captioned_digits("train").arrays["attributes"]
    groups = exclusive_groups(attributes, ATTRIBUTES)
    assert list(groups.values()) == [
        tuple(range(10)),
        tuple(range(10, 16)),
        tuple(range(16, 22)),
        tuple(range(22, 26)),
    ]
    assert "ground" in groups
    assert exclusive_groups(ASKED, NAMES) == {"hair": (0, 1, 2)}
    assert exclusive_groups(np.ones((3, 1), int), ("all",)) == {}


def test_r_precision_of_certainty_and_of_chance():
    rng = np.random.default_rng(0)
    captions = rng.normal(size=(400, 16))
    number = np.arange(400)
    assert r_precision(captions * 3, captions, number) == 1
    assert r_precision(rng.normal(size=(400, 16)), captions, number) == pytest.approx(
        0.05, abs=0.03
    )
    same = np.ones((400, 16))
    assert r_precision(same, same, number) == 0.5
    twice = np.concatenate([captions, captions])  # what says the same is no other candidate
    assert r_precision(twice, twice, np.tile(number, 2)) == 1


def test_caption_score_is_the_cosine():
    a, b = np.array([[1.0, 0], [0, 2]]), np.array([[2.0, 0], [1, 1]])
    assert caption_score(a, b) == pytest.approx((1 + np.sqrt(0.5)) / 2)


@pytest.mark.parametrize("num", [2, 3, 10])
def test_shuffled_keeps_none(num):
    other = shuffled(num)
    assert sorted(other) == list(range(num))
    assert (other != np.arange(num)).all()


def test_bad_input():
    evidence = np.ones((4, 4))
    with pytest.raises(ValueError, match=r"one shape.*\[4, 4\] and \[3, 4\]"):
        attribute_scores(evidence, ASKED[:3], NAMES)
    with pytest.raises(ValueError, match="names must be 4, got 3"):
        attribute_scores(evidence, ASKED, NAMES[:3])
    with pytest.raises(ValueError, match="evidence must be finite"):
        attribute_scores(evidence * np.nan, ASKED, NAMES)
    with pytest.raises(ValueError, match="exactly one of a group, red hair, hat"):
        attribute_scores(evidence, ASKED, NAMES, {"x": (0, 3)})
    with pytest.raises(ValueError, match="candidates must be from 2 to the 4 different"):
        r_precision(evidence, evidence, np.arange(4), candidates=5)
    with pytest.raises(ValueError, match="as many, got 4 and 3"):
        caption_score(evidence, evidence[:3])
    with pytest.raises(ValueError, match="num must be at least 2, got 1"):
        shuffled(1)
