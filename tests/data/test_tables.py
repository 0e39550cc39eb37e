"""Which columns of a table are images, classes, captions and attributes; rows that are bad."""

import numpy as np
import pytest
from pictured import cells, described, png

from jaxgen.data.captions import decode_text
from jaxgen.data.sources import Source, resident
from jaxgen.data.tables import Piece, table_source

pa = pytest.importorskip("pyarrow", reason="tables need pyarrow, of the extra hf")
IMAGE = {"_type": "Image"}


def _source(*tables, part=None, **options):
    pieces = [Piece(f"{i}", f"file {i}", table) for i, table in enumerate(tables)]
    return table_source(pieces, "parquet", part, part, **options)


def test_a_table_is_a_source():
    """Images of both forms, classes by their names, captions and attributes."""
    names = ["cat", "dog"]
    features = {"image": IMAGE, "label": {"_type": "ClassLabel", "names": names}}
    columns = {
        "label": [1, 0, 1],
        "text": ["one", "two", "three"],
        "hat": [True, False, False],
        "width": [5, 5, 5],
        "embedding": [[0.5], [0.5], [0.5]],
    }
    table = described(pa.table({"image": cells(10, 20, 30), **columns}), **features)
    source = _source(table)
    assert isinstance(source, Source)
    assert source.spec["image"] == ((4, 5, 3), np.uint8)
    assert (source.class_names, source.num_classes) == (("cat", "dog"), 2)
    batch = source[np.array([2, 0])]
    np.testing.assert_array_equal(batch["image"][:, 3, 4, 0], [30, 10])
    np.testing.assert_array_equal(batch["label"], [1, 1])
    assert decode_text(batch["text"]) == [("three",), ("one",)]
    assert source.attribute_names == ("hat",)
    np.testing.assert_array_equal(batch["attributes"], [[0], [1]])
    np.testing.assert_array_equal(resident(source).arrays["label"], [1, 0, 1])
    assert "parquet, split all (3 images), as they are" in source.protocol
    bare = _source(pa.table({"picture": [png(v) for v in (10, 20, 30)], "label": ["b", "a", "b"]}))
    assert (bare.class_names, bare.spec.keys()) == (("a", "b"), {"image", "label"})
    np.testing.assert_array_equal(bare[np.array([0, 1])]["label"], [1, 0])


def test_the_digest_is_of_the_images_and_not_of_the_files():
    """In one piece or two, as bytes or as both; other pixels, order or classes make another."""
    whole = _source(pa.table({"image": cells(1, 2, 3), "label": [0, 1, 0]}))
    parts = [
        pa.table({"image": cells(*values), "label": labels})
        for values, labels in (((1,), [0]), ((2, 3), [1, 0]))
    ]
    assert _source(*parts).digest == whole.digest
    bare = pa.table({"img": [png(v) for v in (1, 2, 3)], "label": [0, 1, 0]})
    assert _source(bare).digest == whole.digest
    others = [((1, 2, 4), [0, 1, 0]), ((1, 3, 2), [0, 1, 0]), ((1, 2, 3), [0, 1, 1])]
    tables = [pa.table({"image": cells(*values), "label": labels}) for values, labels in others]
    assert len({whole.digest, *(_source(table).digest for table in tables)}) == 4


def test_of_much_the_ends_are_read(monkeypatch):
    """Begin, end and length of each image."""
    monkeypatch.setattr("jaxgen.data.tables._DIGESTED", 100)
    noise = np.random.default_rng(0)
    content = [png(1) + noise.bytes(20_000) for _ in range(2)]  # readers ignore what follows

    def digest(*content):
        return _source(pa.table({"image": list(content)})).digest

    assert digest(*content) == digest(*content)
    first, second = content
    others = [(first + b"x", second), (first[:-1] + b"x", second), (second, first)]
    assert len({digest(*content), *(digest(*other) for other in others)}) == 4


def test_rows_are_held_out_by_a_hash():
    """The parts are disjoint, together everything, and classes keep their numbers in both."""
    values = list(range(40))
    table = pa.table({"image": cells(*values), "label": [f"{v % 2}" for v in values]})
    parts = {part: _source(table, part=part, held_out=0.2) for part in ("train", "test", "all")}
    seen = {k: s[np.arange(len(s))]["image"][:, 0, 0, 0].tolist() for k, s in parts.items()}
    assert sorted(seen["train"] + seen["test"]) == seen["all"] == values
    assert 0 < len(seen["test"]) < 20
    labels = parts["test"][np.arange(len(seen["test"]))]["label"]
    np.testing.assert_array_equal(labels, np.asarray(seen["test"]) % 2)
    assert "of 40, by a hash of file and row" in parts["test"].protocol


@pytest.mark.parametrize(
    ("columns", "options", "error"),
    [
        ({"image": cells(1, None)}, {}, r"file 0, row 1 has no image"),
        (
            {"image": cells(1, {"bytes": None, "path": "b.png"})},
            {},
            r"row 1 has no bytes but.*b\.png",
        ),
        ({"image": cells(1, b"x")}, {}, r"cannot read the image file 0, row 1"),
        (
            {"image": [*cells(1), *cells(2, size=(6, 4))]},
            {},
            r"file 0, row 1 is 4x6 .*--data\.resize",
        ),
        (
            {"image": cells(1, 2), "label": [0, None]},
            {},
            r"file 0, row 1: the class .* 1, \.\.\., got None",
        ),
        ({"image": cells(1, 2), "label": [-1, 0]}, {}, r"file 0, row 0: the class .* got -1"),
        ({"image": cells(1, 2), "label": [0.5, 1.0]}, {}, r"'label' must hold numbers or names"),
        (
            {"image": cells(1, 2), "label": ["a", "b"]},
            {"class_names": ["a"]},
            r"file 0, row 1: the class in 'label' must be one of a, got 'b'",
        ),
        ({"image": cells(1, 2), "text": ["a", " "]}, {}, r"file 0, row 1: a caption must not be"),
        ({"image": cells(1, 2), "hat": [0, 1], "tie": [1, 2]}, {}, r"file 0, row 1: the attribute"),
        ({"a": cells(1), "b": cells(2)}, {}, r"there is several \(a, b\): call one 'image'"),
        ({"a": ["x"], "n": [1]}, {}, r"there is none\. The columns are a, n"),
        ({"image": []}, {}, r"a column of images holds bytes"),
    ],
)
def test_bad_rows_are_named(columns, options, error):
    with pytest.raises(ValueError, match=error):
        _source(pa.table(columns), **options)


def test_bad_tables():
    """No rows, pieces that differ in columns or classes, and classes without a column's name."""
    schema = pa.schema({"image": pa.binary()})
    with pytest.raises(ValueError, match="file 0 has no rows"):
        _source(schema.empty_table())
    pieces = [pa.table({"image": cells(1), "label": [0]}), pa.table({"image": cells(1)})]
    with pytest.raises(ValueError, match="file 1 differs from file 0 in the column 'label': none"):
        _source(*pieces)
    kinds = [{"_type": "ClassLabel", "names": names} for names in ("ab", "ba")]
    pieces = [described(pieces[0], image=IMAGE, label=kind) for kind in kinds]
    with pytest.raises(ValueError, match="file 1 differs from file 0 in the names of the classes"):
        _source(*pieces)
    table = pa.table({"image": cells(1), "fine": [0], "coarse": [0]})
    kind = {"_type": "ClassLabel", "names": ["a", "b"]}
    with pytest.warns(UserWarning, match="the classes fine, coarse are left out"):
        source = _source(described(table, image=IMAGE, fine=kind, coarse=kind))
    assert source.spec.keys() == {"image"}
