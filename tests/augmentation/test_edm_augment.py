"""EDM's augmentation: what is done is what the labels say, how often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pictures_of import images_of

from jaxgen.augmentation.edm_augment import edm_augment

KEY = jax.random.key(0)


def smooth(x, y):
    return np.sin(0.25 * x + 0.4) * np.cos(0.2 * y - 0.3)


@pytest.fixture(scope="module")
def augmented():
    x = images_of(smooth, 256, 32, 24)
    return jax.jit(lambda x: edm_augment(KEY, x, 0.5))(x)


def shown(label, x, y, sign):
    """The places that the pixels (x, y) show, by hand: what was done is undone from its end."""
    flip_x, flip_y, scale, cos, sin, along, across, right, down = label
    a, b = x - right * 3, y - down * 4
    size = np.hypot(along, across)
    if size:
        c, s = sign * along / size, sign * across / size
        p, q = c * a - s * b, s * a + c * b
        p, q = p * 2 ** (-0.2 * sign * size), q * 2 ** (0.2 * sign * size)
        a, b = c * p + s * q, -s * p + c * q
    a, b = (cos + 1) * a - sin * b, sin * a + (cos + 1) * b
    a, b = a * 2 ** (-0.2 * scale), b * 2 ** (-0.2 * scale)
    return a * (1 - 2 * flip_x), b * (1 - 2 * flip_y)


def test_what_is_done_is_what_the_labels_say(augmented):
    """The image at the middle is the function at places that follow from the labels alone.

    But for one thing: n along v and -n along v + pi have the same labels, in the authors' code too.
    """
    images, labels = (np.asarray(v, float) for v in augmented)
    y, x = np.mgrid[:32, :24].astype(float)
    worst = []
    for image, label in zip(images, labels, strict=True):
        errors = []
        for sign in (1, -1):
            a, b = shown(label, x - 11.5, y - 15.5, sign)
            inside = (abs(a) < 8) & (abs(b) < 12)
            errors.append(np.abs(image[..., 0] - smooth(a, b))[inside].max(initial=0))
        worst.append(min(errors))
    assert max(worst) < 0.05
    assert np.median(worst) < 0.01
    plain = (labels == 0).all(axis=1)
    assert plain.any()
    np.testing.assert_allclose(images[plain], images_of(smooth, plain.sum(), 32, 24), atol=1e-5)


def test_how_often(augmented):
    """Half are mirrored, half of p upside down, p for each of the others; apart from each other."""
    _, labels = augmented
    shares = np.mean(np.asarray(labels) != 0, axis=0)
    np.testing.assert_allclose(shares[[0, 1]], [0.5, 0.25], atol=0.1)
    np.testing.assert_allclose(shares[[2, 4, 5, 7, 8]], 0.5, atol=0.1)
    assert shares[6] == pytest.approx(0.25, abs=0.1)
    taken = np.asarray(labels)[:, [2, 4, 5, 7]] != 0
    correlation = np.corrcoef(taken.T) - np.eye(4)
    assert np.abs(correlation).max() < 0.25
    _, many = jax.jit(lambda x: edm_augment(KEY, x, 1.0))(jnp.zeros((4096, 2, 2, 1)))
    deviations = np.asarray(many)[:, [2, 7, 8]].std(axis=0)
    np.testing.assert_allclose(deviations, 1, atol=0.05)
    assert np.asarray(many)[:, 3].mean() == pytest.approx(-1, abs=0.05)  # angles of a full turn
    assert np.asarray(many)[:, 4].mean() == pytest.approx(0, abs=0.05)


def test_without_a_probability_images_are_only_mirrored():
    x = images_of(smooth, 32, 8, 8) + jnp.arange(32.0).reshape(-1, 1, 1, 1)
    got, labels = jax.jit(lambda x: edm_augment(KEY, x, 0.0))(x)
    assert not labels[:, 1:].any()
    assert 8 < labels[:, 0].sum() < 24
    want = jnp.where(labels[:, 0].reshape(-1, 1, 1, 1) == 1, x[:, :, ::-1], x)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_bad_arguments():
    x = jnp.zeros((1, 4, 4, 1))
    with pytest.raises(ValueError, match=r"probability must lie in \[0, 1\], got 1.5"):
        edm_augment(KEY, x, 1.5)
    with pytest.raises(ValueError, match="images must be of at least 2x2 pixels, got 1x4"):
        edm_augment(KEY, x[:, :1], 0.1)
