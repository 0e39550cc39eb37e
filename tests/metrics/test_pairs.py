"""PSNR and LPIPS of pairs: known values, both kinds of images, what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.data.sources import ArraySource
from jaxgen.metrics.pairs import compare_pairs, lpips, psnr
from jaxgen.models import vgg
from jaxgen.models.vgg import ALL, VGG16, Pretrained

BYTES = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
OTHERS = np.clip(BYTES.astype(int) + 20, 0, 255).astype(np.uint8)


@pytest.fixture
def tiny(monkeypatch):
    """A network of few channels, whose weights let every channel count alike."""
    monkeypatch.setattr(vgg, "STAGES", tuple((2, num) for _, num in vgg.STAGES))
    rng, params = np.random.default_rng(1), {}
    for index, name in enumerate(ALL):
        kernel = rng.normal(0, 0.5, (3, 3, 2 if index else 3, 2)).astype(np.float32)
        params[name.replace("relu", "conv")] = {"kernel": kernel, "bias": np.ones(2, np.float32)}
    return Pretrained(VGG16(), params, (jnp.ones(2),) * 5, "0" * 64)


def model_space(images):
    return images.astype(np.float32) / 127.5 - 1


def test_psnr():
    """A difference of 2 in 255 everywhere is 42.11 dB: 20 log10(255 / 2)."""
    x = np.full((3, 4, 5, 1), 100, np.uint8)
    y = x + np.array([2, 0, 255 - 100], np.uint8).reshape(3, 1, 1, 1)
    expected = [20 * np.log10(255 / 2), np.inf, 20 * np.log10(255 / 155)]
    np.testing.assert_allclose(psnr(x, y, batch_size=2), expected, rtol=1e-5)
    np.testing.assert_allclose(psnr(model_space(x), y)[::2], expected[::2], rtol=1e-5)


def test_lpips_of_pairs(tiny):
    """In order, whatever the size of a batch, of bytes and of numbers; 0 of equal images."""
    distances = lpips(BYTES, OTHERS, tiny, batch_size=2)
    assert distances.shape == (5,)
    assert distances.min() > 0
    floats = lpips(model_space(OTHERS), ArraySource({"image": BYTES}), tiny, batch_size=2)
    np.testing.assert_allclose(floats, distances, rtol=1e-4)
    np.testing.assert_array_equal(lpips(BYTES[:2], BYTES[:2], tiny, batch_size=2), 0)


def test_means_with_their_errors(tiny):
    result = compare_pairs(BYTES, OTHERS, tiny, batch_size=2)
    distances, ratios = lpips(BYTES, OTHERS, tiny, batch_size=2), psnr(BYTES, OTHERS)
    for name, values in (("LPIPS", distances), ("PSNR", ratios)):
        assert result.metrics[name] == pytest.approx(values.mean())
        error = np.sqrt(((values - values.mean()) ** 2).sum() / 4 / 5)
        assert result.metrics[f"{name} standard error"] == pytest.approx(error, rel=1e-4)
    assert result.protocol["pairs"] == 5
    assert "other weights" in result.protocol["LPIPS"]
    assert [*compare_pairs(BYTES, OTHERS, None).metrics] == ["PSNR", "PSNR standard error"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda v: psnr(BYTES, BYTES[:4]), ValueError, r"got \(5, 16, 16, 3\) and \(4, 16"),
        (lambda v: psnr(BYTES, BYTES[..., :1]), ValueError, "must be pairs of one shape"),
        (lambda v: psnr(BYTES * 1.0, BYTES), ValueError, r"images must be bytes, or .*\[-1, 1\]"),
        (lambda v: psnr(BYTES, BYTES * np.nan), ValueError, "reference must be bytes, or"),
        (lambda v: psnr(np.zeros((3, 4)), BYTES), ValueError, r"images must be \[N, H, W, C\]"),
        (lambda v: psnr(BYTES.astype(int), BYTES), TypeError, "must be uint8"),
        (lambda v: lpips(BYTES[:, :8], OTHERS[:, :8], v), ValueError, "at least 16x16 pixels"),
        (lambda v: compare_pairs(BYTES[:1], OTHERS[:1], v), ValueError, "at least 2, got 1"),
        (lambda v: compare_pairs(BYTES, BYTES, v), FloatingPointError, "PSNR is inf: images must"),
    ],
)
def test_bad_input(call, error, message, tiny):
    with pytest.raises(error, match=message):
        call(tiny)
