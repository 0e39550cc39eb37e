"""Spacings against the tables of the papers, exact arithmetic and diffusers."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.noise.spacing import leading, linspace, quadratic, trailing

SPACINGS = {f.__name__: f for f in (linspace, leading, trailing, quadratic)}


@pytest.mark.parametrize(
    ("spacing", "total", "num", "expected"),
    [
        (leading, 10, 5, [0, 2, 4, 6, 8]),
        (leading, 10, 3, [0, 3, 6]),
        (linspace, 10, 4, [0, 3, 6, 9]),
        (linspace, 11, 3, [0, 5, 10]),
        (linspace, 1000, 7, [0, 166, 333, 500, 666, 832, 999]),
        (trailing, 10, 5, [1, 3, 5, 7, 9]),
        (trailing, 1000, 6, [166, 332, 499, 666, 832, 999]),
        (quadratic, 1000, 10, [0, 9, 39, 88, 158, 246, 355, 483, 632, 800]),
        (quadratic, 20, 10, [0, 1, 2, 3, 4, 5, 7, 9, 12, 16]),  # never below i
    ],
)
def test_tables(spacing, total, num, expected):
    timesteps = spacing(total, num)
    assert timesteps.dtype == jnp.int32
    np.testing.assert_array_equal(timesteps[:num], expected)
    np.testing.assert_array_equal(timesteps[num:], total - 1)


@pytest.mark.parametrize("spacing", SPACINGS.values(), ids=SPACINGS)
def test_one_step_starts_at_the_noisiest_level(spacing):
    for num in (1, np.int64(1), jnp.int32(1)):
        np.testing.assert_array_equal(spacing(10, num), 9)


@pytest.mark.parametrize("spacing", SPACINGS.values(), ids=SPACINGS)
def test_timesteps_increase_for_every_count(spacing):
    timesteps = jax.jit(jax.vmap(lambda n: spacing(53, n)))(jnp.arange(1, 54))
    for num, row in enumerate(np.asarray(timesteps), start=1):
        assert (np.diff(row[:num]) > 0).all()
        assert row[0] >= 0
        assert row[num - 1] < 53
    np.testing.assert_array_equal(timesteps[-1], np.arange(53))


@pytest.mark.parametrize("total", [1000, 2**14])
def test_quadratic_is_exact(total):
    """In int32, where its terms are far out of range."""
    for num in (2, 3, 10, 11, 50, 106, 999, 1000, total):  # 11 and 106: the float is not
        want = [
            max(Fraction(4 * total * i * i, 5 * (num - 1) ** 2).__floor__(), i) for i in range(num)
        ]
        np.testing.assert_array_equal(quadratic(total, num)[:num], want)


@pytest.mark.parametrize(("spacing", "name"), [(linspace, "linspace"), (trailing, "trailing")])
def test_rounding_is_that_of_diffusers(spacing, name):
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(1000, timestep_spacing=name)
    # Halves, where rounding must choose: of 16 and 80 trailing ones, and 7 linear ones.
    ours = jax.jit(lambda num: spacing(1000, num))
    for num in (2, 6, 7, 10, 16, 50, 80, 100, 300, 1000):  # (of one step theirs asks at t = 0)
        scheduler.set_timesteps(num)
        np.testing.assert_array_equal(ours(num)[:num], scheduler.timesteps.numpy()[::-1])


@pytest.mark.parametrize("spacing", SPACINGS.values(), ids=SPACINGS)
def test_bad_arguments(spacing):
    for num, message in [(0, "got 0"), (11, "num_steps must be from 1 to T = 10, got 11")]:
        with pytest.raises(ValueError, match=message):
            spacing(10, num)
    with pytest.raises(ValueError, match="num_timesteps must be at most"):
        spacing(10**5, 5)
    with pytest.raises(TypeError, match="num_steps"):  # jaxtyping's own, with it
        spacing(10, 2.5)
