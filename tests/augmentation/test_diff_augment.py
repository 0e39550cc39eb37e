"""DiffAugment: every transformation against NumPy, its random numbers, its gradient."""

import itertools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.stats import chisquare, kstest

from jaxgen.augmentation import diff_augment as augmentation

diff_augment = jax.jit(augmentation.diff_augment, static_argnums=2)
NAMES = ("color", "translation", "cutout")


def draw(shape, seed=1):
    return jax.random.uniform(jax.random.key(seed), shape, minval=-1.0)


def shifted(image, dy, dx):
    """`image` moved down by dy and right by dx, zeros coming in, pixel by pixel."""
    height, width, _ = image.shape
    result = np.zeros_like(image)
    for y, x in itertools.product(range(height), range(width)):
        if 0 <= y - dy < height and 0 <= x - dx < width:
            result[y, x] = image[y - dy, x - dx]
    return result


def test_color(key):
    """Brightness, saturation and contrast are read off the result, then applied one by one."""
    x = np.asarray(draw((2000, 3, 2, 3)), np.float64)
    out = np.asarray(diff_augment(key, jnp.asarray(x, jnp.float32), ("color",)), np.float64)
    gray, out_gray = (images.mean(3, keepdims=True) for images in (x, out))

    def spread(images):
        return images.std((1, 2, 3), keepdims=True)

    b = (out - x).mean((1, 2, 3), keepdims=True)
    c = spread(out_gray) / spread(gray)
    s = spread(out - out_gray) / spread(x - gray) / c
    expected = x + b
    m = expected.mean(3, keepdims=True)
    expected = m + s * (expected - m)
    m = expected.mean((1, 2, 3), keepdims=True)
    expected = m + c * (expected - m)
    np.testing.assert_allclose(out, expected, atol=2e-5)
    unit = np.stack([b.ravel() + 0.5, s.ravel() / 2, c.ravel() - 0.5])
    for u in unit:
        assert kstest(u, "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(unit) - np.eye(3)).max() < 0.1


@pytest.mark.parametrize(("height", "width"), [(16, 12), (3, 20)])
def test_translation(key, height, width):
    """Each result is one shift in reach, and all shifts are as likely."""
    num, reach_y, reach_x = 600, (height + 4) // 8, (width + 4) // 8
    x = np.asarray(draw((1, height, width, 2)))
    out = np.asarray(diff_augment(key, jnp.tile(jnp.asarray(x), (num, 1, 1, 1)), ("translation",)))
    counts = []
    for dy in range(-reach_y, reach_y + 1):
        for dx in range(-reach_x, reach_x + 1):
            same = (out == shifted(x[0], dy, dx)[None]).all((1, 2, 3))
            counts.append(same.sum())
    assert sum(counts) == num
    assert chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(("height", "width"), [(8, 6), (5, 9)])
def test_cutout(key, height, width):
    """Nothing changes but a rectangle set to zero, its middle uniform over the image."""
    num, extents = 2000, ((height + 1) // 2, (width + 1) // 2)
    x = np.asarray(draw((num, height, width, 3))) + 2  # no zero of its own
    out = np.asarray(diff_augment(key, jnp.asarray(x), ("cutout",)))
    hole = out == 0
    np.testing.assert_array_equal(out[~hole], x[~hole])
    np.testing.assert_array_equal(hole.any(3), hole.all(3))
    hole = hole[..., 0]
    rows, columns = hole.any(2), hole.any(1)
    np.testing.assert_array_equal(hole, rows[:, :, None] & columns[:, None, :])
    for inside, size, extent in ((rows, height, extents[0]), (columns, width, extents[1])):
        ranges = [
            [max(0, middle - extent // 2) <= i < middle - extent // 2 + extent for i in range(size)]
            for middle in range(size + 1 - extent % 2)
        ]
        counts = [(inside == np.array(r)[None]).all(1).sum() for r in ranges]
        assert sum(counts) == num
        assert chisquare(counts).pvalue > 1e-3
        assert inside.sum(1).max() == extent


def test_directions_are_independent(key):
    x = jnp.ones((2000, 16, 16, 1))
    for name in ("translation", "cutout"):
        out = np.asarray(diff_augment(key, x, (name,)))[..., 0]
        y = (out.sum(2) * np.arange(16)[None]).sum(1) / out.sum((1, 2))
        x_ = (out.sum(1) * np.arange(16)[None]).sum(1) / out.sum((1, 2))
        assert abs(np.corrcoef(y, x_)[0, 1]) < 0.1


def test_policy_is_applied_in_order(key):
    """Color after cutout leaves no zeros; cutout after color does."""
    x = draw((20, 8, 8, 3))
    assert (diff_augment(key, x, ("color", "cutout")) == 0).any()
    assert not (diff_augment(key, x, ("cutout", "color")) == 0).any()
    np.testing.assert_array_equal(diff_augment(key, x, ()), x)


@pytest.mark.parametrize("name", ["translation", "cutout"])
def test_linear_transformations(key, name):
    """T(a x + b y) = a T(x) + b T(y), and the gradient is the transpose."""
    x, y = draw((6, 8, 8, 2), 1), draw((6, 8, 8, 2), 2)

    def transform(x):
        return diff_augment(key, x, (name,))

    np.testing.assert_allclose(
        transform(2 * x - 3 * y), 2 * transform(x) - 3 * transform(y), atol=1e-6
    )
    _, pullback = jax.vjp(transform, x)
    np.testing.assert_allclose(
        jnp.vdot(transform(x), y), jnp.vdot(x, pullback(y)[0]), rtol=1e-4, atol=1e-4
    )
    assert jnp.abs(pullback(y)[0]).max() > 0


def test_gradient_of_all(key):
    x = draw((2, 8, 8, 3))
    check_grads(
        lambda x: jnp.sum(jnp.square(diff_augment(key, x))),
        (x,),
        order=2,
        modes=["rev"],
        atol=2e-2,
        rtol=2e-2,
        eps=1e-1,
    )
    for extreme in (jnp.zeros_like(x), jnp.full_like(x, 1e4)):
        gradient = jax.grad(lambda x: jnp.sum(diff_augment(key, x)))(extreme)
        assert jnp.isfinite(gradient).all()


def test_key_alone_decides_and_examples_differ(key):
    x = jnp.tile(draw((1, 8, 8, 3)), (8, 1, 1, 1))
    for policy in [(name,) for name in NAMES] + [NAMES]:
        out = diff_augment(key, x, policy)
        np.testing.assert_array_equal(out, diff_augment(key, x, policy))
        assert (out != diff_augment(jax.random.key(5), x, policy)).any()
        assert (out != out[:1].repeat(8, axis=0)).any()


def test_jit_vmap_scan(key):
    keys, x = jax.random.split(key, 3), draw((3, 4, 8, 8, 3))
    one_by_one = jnp.stack([diff_augment(k, images) for k, images in zip(keys, x, strict=True)])
    np.testing.assert_allclose(jax.vmap(diff_augment)(keys, x), one_by_one, atol=1e-6)

    @jax.jit
    def scanned(keys, x):
        return jax.lax.scan(lambda _, kx: (None, diff_augment(*kx)), None, (keys, x))[1]

    np.testing.assert_allclose(scanned(keys, x), one_by_one, atol=1e-6)


def test_one_channel(key):
    """Saturation finds no color: the image stays an affine function of itself."""
    x = np.asarray(draw((10, 6, 6, 1)))
    out = np.asarray(diff_augment(key, jnp.asarray(x), ("color",)))
    for before, after in zip(x, out, strict=True):
        contrast, brightness = np.polyfit(before.ravel(), after.ravel(), 1)
        np.testing.assert_allclose(contrast * before + brightness, after, atol=1e-5)
        assert 0.5 <= contrast < 1.5
    assert diff_augment(key, jnp.asarray(x)).shape == x.shape


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_type_is_kept(key, dtype):
    x = draw((4, 8, 8, 3)).astype(dtype)
    out = diff_augment(key, x)
    assert out.dtype == dtype
    expected = diff_augment(key, x.astype(jnp.float32))
    np.testing.assert_array_equal(out, expected.astype(dtype))


@pytest.mark.parametrize(
    ("images", "policy", "message"),
    [
        ((2, 8, 8, 3), ("color", "flip"), r"policy must be one of .*cutout, got 'flip'"),
        ((2, 8, 8, 3), "color", r"policy must be a sequence of names.*\('color',\)"),
        ((8, 8, 3), NAMES, r"images must be .*\(8, 8, 3\)"),
        (None, NAMES, r"images must be floats.*uint8"),
    ],
)
def test_bad_input(key, images, policy, message):
    images = jnp.zeros((2, 8, 8, 3), jnp.uint8) if images is None else jnp.zeros(images)
    jaxtyping.config.update("jaxtyping_disable", True)  # as a user runs it
    try:
        with pytest.raises(ValueError, match=message):
            augmentation.diff_augment(key, images, policy)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
