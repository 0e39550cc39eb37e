"""Adaptive augmentation: what is done to places and colours, how often, and its controller."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pictures_of import images_of

from jaxgen.augmentation import adaptive
from jaxgen.augmentation.adaptive import Adaptive, ada_augment, follow, start

KEY = jax.random.key(0)
MANY = 4096
SLOPE, augment = 0.01, jax.jit(ada_augment)


def draw_places(p, size=80):
    places = jax.jit(lambda p: adaptive._places(KEY, p, (MANY, size, size)))
    return (np.asarray(v, np.float64) for v in places(jnp.float32(p)))


def test_without_a_probability_nothing_changes():
    x = jax.random.normal(KEY, (3, 8, 6, 3))
    np.testing.assert_allclose(augment(KEY, x, 0.0), x, atol=3e-5)
    np.testing.assert_array_equal(augment(KEY, x, 1.0), augment(KEY, x, 1.5))


def test_how_often_images_are_mirrored_scaled_and_moved():
    """With p = 0.3: half of it mirrored, p scaled; either of two moves, 1 - 0.7^2."""
    inverse, shift = draw_places(0.3)
    area = np.linalg.det(inverse)
    assert np.mean(area < 0) == pytest.approx(0.15, abs=0.02)
    scaled = np.abs(np.abs(area) - 1) > 1e-3
    assert np.mean(scaled) == pytest.approx(0.3, abs=0.03)
    exponents = np.log2(np.abs(area[scaled])) / -0.4
    assert exponents.std() == pytest.approx(1, abs=0.1)
    moved = np.abs(shift).max(axis=1) > 1e-3
    assert np.mean(moved) == pytest.approx(1 - 0.7**2, abs=0.03)
    # Neither stretched nor turned by other than right angles: 0.7 of each, the turns 0.7 in all.
    upright = np.isclose(np.abs(inverse).min(axis=(1, 2)), 0, atol=1e-5)
    assert np.mean(upright) == pytest.approx(0.7, abs=0.03)


def test_moves_of_whole_pixels_go_first():
    """So they are undone last but for mirrors and turns: a place, followed back by hand."""
    draws = jax.random.split(KEY, 3)
    u = np.asarray(jax.random.uniform(draws[1], (8, MANY)), np.float64)
    whole = np.round((2 * u[2:4].T - 1) / 8 * 80)
    part = np.asarray(jax.random.normal(draws[2], (4, MANY)), np.float64)[2:].T * 10
    inverse, shift = draw_places(1.0)
    place = np.array([7.0, -3.0])
    got = np.einsum("bij,bj->bi", inverse, place - shift)
    without = np.einsum("bij,bj->bi", inverse, place - part)
    flip, turn = np.where(u[0] < 0.5, -1, 1), np.floor(4 * u[1]) * np.pi / 2
    back = np.stack([flip * (np.cos(turn) * whole[:, 0] - np.sin(turn) * whole[:, 1]),
                     np.sin(turn) * whole[:, 0] + np.cos(turn) * whole[:, 1]], axis=1)  # fmt: skip
    np.testing.assert_allclose(got, without - back, atol=1e-2)


def test_images_follow_the_places():
    """A ramp along x, mirrored, turned and moved, is a plane with the slope of that place."""
    x = images_of(lambda x, y: SLOPE * x, MANY // 64, 16, 16)
    inverse, shift = (v[: len(x)] for v in adaptive._places(KEY, jnp.float32(0.5), x.shape[:3]))
    got = jax.jit(adaptive.warp)(x, inverse, shift)
    expected = -SLOPE * np.einsum("bj,bj->b", inverse[:, 0], shift)
    inside = np.abs(np.asarray(expected)) < SLOPE * 4
    middle = np.asarray(got)[:, 7:9, 7:9, 0].mean(axis=(1, 2))
    np.testing.assert_allclose(middle[inside], np.asarray(expected)[inside], atol=SLOPE * 0.2)


def affine_maps(x, y):
    """The map of colours of each image, f64[B, 4, 3], from its pixels."""
    x = np.asarray(x, np.float64).reshape(len(x), -1, 3)
    y = np.asarray(y, np.float64).reshape(len(y), -1, 3)
    rows = np.concatenate([x, np.ones((*x.shape[:2], 1))], axis=2)
    maps = np.stack([np.linalg.lstsq(a, b, rcond=None)[0] for a, b in zip(rows, y, strict=True)])
    np.testing.assert_allclose(rows @ maps, y, atol=1e-4)  # and nothing else
    return maps


def test_colours():
    """Grey stays grey, dark or bright; the rest turns about it and is scaled by one factor."""
    x = jax.random.normal(jax.random.key(1), (512, 2, 4, 3))
    colours = jax.jit(lambda x, p: adaptive._colors(KEY, p, x))
    maps = affine_maps(x, colours(x, 1.0))
    matrix, offset = maps[:, :3], maps[:, 3]
    grey = np.ones(3) / np.sqrt(3)
    gain = grey @ matrix @ grey
    np.testing.assert_allclose(grey @ matrix, gain[:, None] * grey[None], atol=1e-4)
    assert np.mean(gain < 0) == pytest.approx(0.5, abs=0.08)
    assert np.log2(np.abs(gain)).std() == pytest.approx(0.5, abs=0.05)
    brighter = offset / gain[:, None]  # before contrast and sign
    np.testing.assert_allclose(brighter, np.repeat(brighter[:, :1], 3, axis=1), atol=1e-3)
    assert brighter[:, 0].std() == pytest.approx(0.2, abs=0.02)
    rest = matrix - gain[:, None, None] * np.outer(grey, grey)[None]
    square = np.einsum("bij,bkj->bik", rest, rest)
    factor = np.sqrt(np.trace(square, axis1=1, axis2=2) / 2)
    plane = np.eye(3) - np.outer(grey, grey)
    np.testing.assert_allclose(square, factor[:, None, None] ** 2 * plane[None], atol=1e-3)
    assert np.log2(factor / np.abs(gain)).std() == pytest.approx(1, abs=0.1)
    cosine = np.trace(rest, axis1=1, axis2=2) / (2 * factor)
    assert cosine.std() == pytest.approx(np.sqrt(0.5), abs=0.05)  # of angles of a full turn
    some = colours(x, 0.25)
    share = np.mean(np.isclose(some, x, atol=1e-6).all(axis=(1, 2, 3)))
    assert share == pytest.approx(0.75**4 * (1 - 0.25 / 2), abs=0.06)


def test_images_of_one_channel():
    x = jnp.full((512, 2, 2, 1), 1000.0)
    y = np.asarray(augment(KEY, x, 1.0))[:, 0, 0, 0] / 1000
    assert np.mean(y < 0) == pytest.approx(0.5, abs=0.08)
    assert np.log2(np.abs(y)).std() == pytest.approx(0.5, abs=0.05)


def test_second_derivatives_pass():
    """R1's: the gradient of a gradient's square is finite and not zero."""
    x = jax.random.normal(KEY, (2, 4, 4, 1))

    def square(x):
        gradient = jax.grad(lambda x: jnp.sum(jnp.sin(ada_augment(KEY, x, 0.8))))(x)
        return jnp.sum(gradient**2)

    slope = jax.jit(jax.grad(square))(x)
    assert np.isfinite(slope).all()
    assert np.abs(slope).max() > 1e-3


def test_the_controller():
    """Every four turns one step of the ramp, up where real images are called real too often."""
    options = Adaptive(64)
    step = 64 * 4 / 500_000
    state, seen = start(), []
    for sign in [0.9, 0.5, 0.5, 0.9, *[0.61] * 4, *[0.59] * 4, *[-1.0] * 8]:
        state = follow(options, state, jnp.float32(sign))
        seen.append(float(state["probability"]) / step)
    np.testing.assert_allclose(seen[3::4], [1, 2, 1, 0, 0], atol=1e-4)
    np.testing.assert_allclose(seen[:3], 0)
    assert int(state["turns"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Adaptive(0), "augment: images must be at least 1, got 0"),
        (Adaptive(64, every=0), "augment: every must be at least 1, got 0"),
        (Adaptive(64, ramp=0), "augment: ramp must be at least 1, got 0"),
        (Adaptive(64, target=1.5), r"augment: target must be in \[-1, 1\], got 1.5"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        adaptive.check(options)


def test_bad_images():
    with pytest.raises(ValueError, match="images must have 1 or 3 channels, got 2"):
        ada_augment(KEY, jnp.zeros((1, 4, 4, 2)), 0.5)
    with pytest.raises(ValueError, match="at least 2x2 pixels, got 1x4"):
        ada_augment(KEY, jnp.zeros((1, 1, 4, 1)), 0.5)
