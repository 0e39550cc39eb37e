"""Arrays, the embedded digits and the one entry."""

import importlib.resources

import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxgen.data.sources import (
    ArraySource,
    Source,
    check_alike,
    digits,
    load,
    load_pair,
    nbytes,
    resident,
)


def _counts(source):
    return np.bincount(source.arrays["label"], minlength=10)


def test_digits_are_scikit_learns():
    reference, source = load_digits(), digits("all")
    expected = np.round(reference.images * 255 / 16).astype(np.uint8)[..., None]
    np.testing.assert_array_equal(source.arrays["image"], expected)
    np.testing.assert_array_equal(source.arrays["label"], reference.target)
    assert source.arrays["image"].max() == 255
    assert source.spec == {"image": ((8, 8, 1), np.uint8), "label": ((), np.int32)}
    assert (len(source), source.num_classes, source.name) == (1797, 10, "digits")


def test_digits_splits_are_disjoint_fixed_and_stratified():
    whole, train, test = (digits(split) for split in ("all", "train", "test"))
    assert (len(train), len(test)) == (1500, 297)
    np.testing.assert_array_equal(_counts(train) + _counts(test), _counts(whole))
    assert set(_counts(test)) == {29, 30}
    joined = [source.arrays["image"].reshape(-1, 64) for source in (train, test)]
    np.testing.assert_array_equal(
        np.unique(np.concatenate(joined), axis=0),
        np.unique(whole.arrays["image"].reshape(-1, 64), axis=0),
    )
    assert "split test (297 of 1797)" in test.protocol
    np.testing.assert_array_equal(test.arrays["image"], digits("test").arrays["image"])


def test_digits_resized():
    """Enlarged, and centred on the same strokes."""
    small, large = digits("test"), load("digits", "test", resize=32)
    assert large.spec["image"][0] == (32, 32, 1)
    assert "32x32" in large.protocol
    means = large.arrays["image"].reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4))
    difference = means - small.arrays["image"][..., 0].astype(np.float32)
    assert np.abs(difference).mean() < 12
    np.testing.assert_array_equal(large.arrays["label"], small.arrays["label"])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        digits(resize=0)
    with pytest.raises(ValueError, match="1500 digits of 10000000x10000000 would take"):
        digits(resize=10_000_000)


def test_digits_come_with_their_licence():
    text = importlib.resources.files("jaxgen.data").joinpath("digits.LICENSE").read_text()
    assert "Attribution 4.0" in text
    assert "Alpaydin" in text


def test_an_array_source_gathers_and_describes():
    image = np.arange(5 * 4, dtype=np.uint8).reshape(5, 2, 2, 1)
    source = ArraySource({"image": image, "label": np.asarray([0, 3, 1, 1, 0], np.int32)})
    assert isinstance(source, Source)
    assert source.num_classes == 4
    assert nbytes(source) == 5 * (4 + 4)
    batch = source[np.asarray([4, 0, 4])]
    np.testing.assert_array_equal(batch["image"], image[[4, 0, 4]])
    np.testing.assert_array_equal(batch["label"], [0, 0, 0])


def test_arrays_are_known_by_their_content():
    """One value, the order, a dtype, a name: each makes another set; the set's name does not."""
    image, label = np.zeros((3, 2, 2, 1), np.uint8), np.asarray([0, 1, 0], np.int32)
    set_of = lambda image, **options: ArraySource({"image": image, "label": label}, **options)  # noqa: E731
    first = set_of(image, class_names=("cat", "dog"))
    assert first.num_classes == 2
    assert first.digest == set_of(image.copy(), name="b", class_names=("cat", "dog")).digest
    assert first.protocol == f"arrays, split all (3 examples), content {first.digest}"
    changed = image.copy()
    changed[2, 1, 1, 0] = 1
    others = [
        set_of(changed, class_names=("cat", "dog")),
        set_of(changed[::-1], class_names=("cat", "dog")),
        set_of(image, class_names=("bird", "cat")),
        ArraySource({"image": image}),
        ArraySource({"other": image}),
        ArraySource({"other": image.astype(np.int32)}),
    ]
    assert len({first.digest, *(other.digest for other in others)}) == 7


@pytest.mark.parametrize(
    ("arrays", "error", "match"),
    [
        ({}, ValueError, "one or more arrays of one length"),
        (
            {"a": np.zeros(3), "b": np.zeros(4)},
            ValueError,
            r"one length, got \{'a': 3, 'b': 4\}",
        ),
        ({"image": np.zeros((2, 4, 4, 1), np.float32)}, TypeError, "uint8.*got float32"),
        ({"image": np.zeros((2, 4, 4), np.uint8)}, TypeError, r"\[N, H, W, C\]"),
        ({"label": np.zeros(2, np.int64)}, TypeError, "label must be int32"),
        ({"label": np.asarray([0, -1], np.int32)}, ValueError, "each label must be in"),
        ({"label": np.asarray([0, 7], np.int32)}, ValueError, r"\[0, 5\)"),
    ],
)
def test_bad_arrays(arrays, error, match):
    with pytest.raises(error, match=match):
        ArraySource(arrays, num_classes=5)


def _set(shape=(2, 2, 1), labels=(0, 1), names=(), **entries):
    arrays = {"image": np.zeros((2, *shape), np.uint8), **entries}
    if labels is not None:
        arrays["label"] = np.asarray(labels, np.int32)
    return ArraySource(arrays, class_names=names, name="toys")


@pytest.mark.parametrize(
    ("train", "held_out", "difference"),
    [
        ({}, {"shape": (2, 2, 3)}, r"in 'image': uint8\[2, 2, 1\] and uint8\[2, 2, 3\]"),
        ({"labels": None}, {}, r"in 'label': no such entry and int32\[\]"),
        ({}, {"labels": None}, r"in 'label': int32\[\] and no such entry"),
        ({"x": np.zeros(2, np.float32)}, {"x": np.zeros(2, np.int32)}, "in 'x': float32"),
        (
            {"names": ("a", "b", "c")},
            {"names": ("b", "c")},
            r"in their classes \(0: a and b; 1: b and c; 2",
        ),
        ({"labels": (0, 0)}, {}, "in their classes: 1 and 2"),
    ],
)
def test_sets_that_do_not_belong_together(train, held_out, difference):
    sets = r"the training set \(toys, split all\) and the held-out set \(toys, split all\) differ "
    with pytest.raises(ValueError, match=sets + difference):
        check_alike(_set(**train), _set(**held_out))


def test_sets_that_belong_together():
    check_alike(_set(), _set())
    check_alike(_set(), _set(labels=(0, 0)))  # a class without a held-out example
    train, held_out = load_pair("digits", ("train", "test"), resize=4)
    assert (len(train), held_out.split, held_out.spec["image"][0]) == (1500, "test", (4, 4, 1))


class _Lazy:
    """Counts how often each example is decoded."""

    name, split, protocol, num_classes = "lazy", "all", "lazy", None
    class_names, digest = (), "0"

    def __init__(self, size):
        self.reads = np.zeros(size, int)
        self.spec = {"image": ((2, 2, 1), np.dtype(np.uint8))}

    def __len__(self):
        return len(self.reads)

    def __getitem__(self, indices):
        self.reads[indices] += 1
        return {"image": (np.zeros((1, 2, 2, 1)) + indices[:, None, None, None]).astype(np.uint8)}


def test_resident_decodes_once_what_fits():
    source = _Lazy(1000)
    held = resident(source, 4000)
    np.testing.assert_array_equal(held.arrays["image"][:, 0, 1, 0], np.arange(1000) % 256)
    assert (source.reads == 1).all()
    assert held.protocol == "lazy"
    assert resident(source, 3999) is source
    assert resident(held, 4000) is held


def test_load_digits():
    assert len(load("digits")) == 1500
    assert len(load("digits", "test")) == 297
    with pytest.raises(ValueError, match="'train', 'test' or 'all', got 'valid'"):
        load("digits", "valid")


@pytest.mark.parametrize(
    ("name", "near"),
    [("digit", "digits"), ("cifr10", "cifar10"), ("fashionmnist", "fashion_mnist")],
)
def test_an_unknown_set_names_near_ones(name, near, tmp_path):
    with pytest.raises(ValueError, match=f"unknown data set '{name}'; did you mean.*'{near}'"):
        load(name, data_dir=tmp_path)


def test_load_asks_for_what_it_needs(tmp_path):
    with pytest.raises(ValueError, match="needs data_dir"):
        load("folder")
    with pytest.raises(ValueError, match=r"a TFDS name is set\[/config\]\[:version\]"):
        load("not a name", data_dir=tmp_path)
    with pytest.raises(ValueError, match="unknown data set 'zzzzzzzz'. Known are"):
        load("zzzzzzzz", data_dir=tmp_path)
