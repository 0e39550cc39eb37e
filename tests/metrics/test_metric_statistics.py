import json

import numpy as np
import pytest

from jaxgen.data.sources import ArraySource, digits
from jaxgen.metrics.features import extract
from jaxgen.metrics.frechet import moments
from jaxgen.metrics.statistics import (
    cached_statistics,
    image_statistics,
    load_statistics,
    save_statistics,
)


def test_they_are_those_of_the_features(extractor):
    statistics = image_statistics(extractor, digits("test"), batch_size=100)
    features = extract(extractor, digits("test"), batch_size=100)["features"]
    np.testing.assert_array_equal(statistics.features, features)
    np.testing.assert_allclose(statistics.moments.scatter, moments(features).scatter, rtol=1e-9)
    assert statistics.spatial is None
    assert statistics.logits.shape == (297, 10)
    assert statistics.protocol["count"] == 297
    assert statistics.protocol["weights"] == extractor.checksum
    assert "split test" in statistics.protocol["data"]


def test_some_features_are_kept_but_all_are_counted(extractor):
    whole = image_statistics(extractor, digits("test"), batch_size=100)
    some = image_statistics(extractor, digits("test"), batch_size=70, max_features=50)
    np.testing.assert_allclose(some.moments.mean, whole.moments.mean, rtol=1e-5, atol=1e-6)
    assert some.features.shape == (50, 64)
    assert some.logits.shape == (50, 10)
    rows = np.flatnonzero(np.isclose(whole.logits[:, None], some.logits[None]).all(2).any(1))
    assert len(rows) == 50
    assert rows[-1] > 200  # from everywhere, not the first fifty


def test_round_trip(extractor, tmp_path):
    statistics = image_statistics(extractor, digits("test"), batch_size=100)
    statistics = statistics._replace(spatial=statistics.moments)
    save_statistics(tmp_path / "a.npz", statistics)
    loaded = load_statistics(tmp_path / "a.npz")
    assert loaded.protocol == statistics.protocol
    for one, other in zip(loaded.moments + loaded.spatial, statistics.moments * 2, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(loaded.features, statistics.features)
    np.testing.assert_array_equal(loaded.logits, statistics.logits)


def test_cache_is_read_and_refuses_another_protocol(extractor, tmp_path):
    path = tmp_path / "deep" / "reference.npz"
    statistics = cached_statistics(path, extractor, digits("test"), batch_size=100)
    before = path.stat().st_mtime_ns
    again = cached_statistics(path, extractor, digits("test"), batch_size=100)
    assert path.stat().st_mtime_ns == before
    np.testing.assert_array_equal(again.moments.scatter, statistics.moments.scatter)
    json.dumps(again.protocol)
    with pytest.raises(ValueError, match=r"another protocol:\n  .*split test.*split train"):
        cached_statistics(path, extractor, digits("train"))
    arrays = digits("test").arrays
    changed = ArraySource({**arrays, "image": arrays["image"] ^ np.uint8(1)})
    assert changed.name == ArraySource(arrays).name
    other = tmp_path / "other.npz"
    cached_statistics(other, extractor, ArraySource(arrays), batch_size=100)
    with pytest.raises(ValueError, match=r"data: '.*content \w+' there, '.*content \w+' here"):
        cached_statistics(other, extractor, changed)
    with pytest.raises(ValueError, match="count: 297 there, 100 here"):
        cached_statistics(path, extractor, digits("test"), limit=100)
    with pytest.raises(ValueError, match="weights: '.*' there, 'other' here"):
        cached_statistics(path, extractor._replace(checksum="other"), digits("test"))
    with pytest.raises(ValueError, match="resizer: 'none' there, 'cubic' here"):
        cached_statistics(path, extractor._replace(resizer="cubic"), digits("test"))


def test_bad_files(extractor, tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        cached_statistics(tmp_path / "a.json", extractor, digits("test"))
    with pytest.raises(FileNotFoundError, match=r"a\.npz"):
        load_statistics(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"PK nonsense")
    with pytest.raises(ValueError, match=r"a\.npz cannot be read as statistics"):
        load_statistics(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", image=np.zeros(3))
    with pytest.raises(ValueError, match=r"b\.npz cannot be read as statistics"):
        cached_statistics(tmp_path / "b.npz", extractor, digits("test"))
    statistics = image_statistics(extractor, digits("test"), batch_size=100)
    statistics.moments.mean[5] = np.nan
    save_statistics(tmp_path / "c.npz", statistics)
    with pytest.raises(ValueError, match=r"c\.npz cannot be read .*its moments_mean holds NaN"):
        load_statistics(tmp_path / "c.npz")
    with pytest.raises(ValueError, match="max_features must be at least 1, got 0"):
        image_statistics(extractor, digits("test"), max_features=0)
    with pytest.raises(ValueError, match="limit must be at least 1, .* got -1"):
        image_statistics(extractor, digits("test"), limit=-1)


def test_a_cache_that_cannot_be_written(extractor, tmp_path):
    """What was computed is not lost."""
    (tmp_path / "file").write_text("x")
    with pytest.warns(UserWarning, match=r"reference\.npz is not kept: "):
        statistics = cached_statistics(
            tmp_path / "file" / "reference.npz", extractor, digits("test"), batch_size=100
        )
    assert len(statistics.features) == 297
