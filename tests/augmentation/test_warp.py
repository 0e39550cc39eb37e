"""Images at other places: what stays, what moves how far."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pictures_of import images_of

from jaxgen.augmentation import warp as warping
from jaxgen.augmentation.warp import warp


def test_the_filter_is_the_wavelets():
    """Orthonormal at even shifts, with six vanishing moments: Daubechies' definition."""
    h = warping._SYM6
    for shift in range(6):
        assert h[2 * shift :] @ h[: 12 - 2 * shift] == pytest.approx(1.0 * (shift == 0), abs=1e-9)
    k = np.arange(12.0)
    for moment in range(6):
        assert ((-1) ** k * k**moment) @ h == pytest.approx(0, abs=1e-5 * 11**moment)
    assert h.sum() == pytest.approx(2**0.5)


@pytest.mark.parametrize("size", [(8, 8), (5, 6), (2, 3)])
def test_whole_pixels_change_nothing(size):
    """Not at the borders either: beyond them the image is mirrored."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, *size, 2)), jnp.float32)
    shift = jnp.array([[0.0, 0.0], [1.0, 0.0], [-2.0, 3.0]])
    got = jax.jit(warp)(x, jnp.broadcast_to(jnp.eye(2), (3, 2, 2)), shift)
    padded = np.pad(x, ((0, 0), *((3 * (n - 1),) * 2 for n in size), (0, 0)), mode="reflect")
    for image, mirrored, (right, down) in zip(got, padded, shift.astype(int), strict=True):
        top, left = 3 * (size[0] - 1) - down, 3 * (size[1] - 1) - right
        want = mirrored[top : top + size[0], left : left + size[1]]
        np.testing.assert_allclose(image, want, atol=2e-5)


def test_a_ramp_stays_straight():
    """Rotated, scaled and moved by parts of a pixel; away from the borders.

    To 0.1 of a pixel: the filter's first moment lies a twentieth beside its place.
    """
    x = images_of(lambda x, y: 0.3 * x - 0.2 * y, 2, 24, 20)
    inverse = jnp.array([[[0.8, -0.3], [0.25, 0.9]], [[0.0, 1.0], [-1.0, 0.0]]])
    shift = jnp.array([[0.3, -0.7], [0.0, 0.0]])
    got = np.asarray(jax.jit(warp)(x, inverse, shift))[:, 8:16, 7:13, 0]
    v, u = np.mgrid[:24, :20].astype(float)
    for image, m, (right, down) in zip(got, np.asarray(inverse), np.asarray(shift), strict=True):
        a, b = u - 9.5 - right, v - 11.5 - down
        want = 0.3 * (m[0, 0] * a + m[0, 1] * b) - 0.2 * (m[1, 0] * a + m[1, 1] * b)
        np.testing.assert_allclose(image, want[8:16, 7:13], atol=0.03)
