"""Sources with entries from memory."""

import numpy as np
import pytest

from jaxgen.data.joined import Joined
from jaxgen.data.latents import cache_latents
from jaxgen.data.pipeline import Pipeline
from jaxgen.data.sources import ArraySource, Source, check_alike, decode, digits


def _source(**options):
    arrays = {"number": np.arange(5), "text": np.zeros((5, 2), np.uint8)}
    return ArraySource(arrays, name="five", **options)


def test_entries_are_added_and_replaced():
    source = _source(attribute_names=("a",))
    tokens = np.arange(15, dtype=np.int32).reshape(5, 3)
    joined = Joined(source, {"text": tokens, "attributes": np.eye(5, dtype=np.int64)[:, :1]})
    assert isinstance(joined, Source)
    assert len(joined) == 5
    assert joined.spec["text"] == ((3,), np.int32)
    assert joined.spec["attributes"] == ((1,), np.int32)  # of 64 bits 32 are kept
    batch = joined[np.array([3, 1])]
    np.testing.assert_array_equal(batch["number"], [3, 1])
    np.testing.assert_array_equal(batch["text"], tokens[[3, 1]])
    assert joined.attribute_names == ("a",)
    np.testing.assert_array_equal(decode(joined).arrays["text"], tokens)
    held = Pipeline(joined, 2, seed=0)
    assert held.arrays["text"].shape == (5, 3)


def test_it_is_known_by_what_is_joined():
    source = _source()
    parts = [{"x": np.arange(5)}, {"x": np.arange(5)[::-1]}, {"y": np.arange(5)}]
    sources = [Joined(source, part) for part in parts]
    sources += [Joined(source, parts[0], attribute_names=("b",)), Joined(sources[0], parts[2])]
    sources += [Joined(source, parts[0], num_classes=7), source]
    assert len({one.digest for one in sources}) == len(sources)
    assert Joined(_source(), parts[0]).digest == sources[0].digest
    assert sources[0].protocol == f"{source.protocol}, with x, content {sources[0].digest}"
    assert decode(sources[0]).digest == sources[0].digest


def test_labels_may_be_joined():
    joined = Joined(_source(), {"label": np.zeros(5, np.int32)}, num_classes=3)
    assert (joined.num_classes, decode(joined).num_classes) == (3, 3)


def test_another_length_is_refused():
    with pytest.raises(ValueError, match=r"arrays must have 297 rows, as .*, got \{'x': 5\}"):
        Joined(digits("test"), {"x": np.zeros(5)})


def test_other_attributes_are_not_alike():
    one, other = (_source(attribute_names=names) for names in (("a", "b"), ("a", "c")))
    with pytest.raises(ValueError, match=r"differ in their attributes \(1: b and c\)"):
        check_alike(one, other)


def test_latents_keep_the_names_of_attributes():
    """Where the attributes are passed on."""
    source = Joined(digits("test"), {"attributes": np.ones((297, 2))}, attribute_names=("a", "b"))
    options = {"batch_size": 297, "first_stage": "none"}
    kept = cache_latents(lambda batch, _: batch["image"][:, 0], source, **options)
    assert kept.attribute_names == ("a", "b")
    replaces = ("image", "attributes")
    left = cache_latents(lambda batch, _: batch["image"], source, replaces=replaces, **options)
    assert left.attribute_names == ()
