"""Importance sampling of timesteps: the history by hand, unbiased, with less variance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.noise.importance import LossHistory, LossResampler

RESAMPLER = LossResampler(length=3, uniform=0.1)


def by_hand(num_timesteps, length, batches):
    """The last losses of each timestep, one after another."""
    last = [[] for _ in range(num_timesteps)]
    for t, losses in batches:
        for step, loss in zip(t, losses, strict=True):
            last[step] = [*last[step], loss][-length:]
    return last


def test_the_history_is_the_last_losses():
    """With timesteps that come several times in a batch, more often than there are places too."""
    rng = np.random.default_rng(0)
    batches = [
        (rng.choice(5, 12, p=[0.6, 0.2, 0.1, 0.1, 0]), rng.normal(size=12)) for _ in range(6)
    ]
    history = RESAMPLER.init(5)
    for t, losses in batches:
        history = RESAMPLER.update(history, jnp.asarray(t), jnp.asarray(losses, jnp.float32))
    want = by_hand(5, 3, batches)
    for squares, losses in zip(history.squares, want, strict=True):
        padded = np.sort(np.square([*losses, *[0.0] * (3 - len(losses))]))
        np.testing.assert_allclose(np.sort(squares), padded, rtol=1e-5)
    counts = [sum((t == i).sum() for t, _ in batches) for i in range(5)]
    np.testing.assert_array_equal(history.counts, counts)
    # One timestep has no loss yet: all are drawn alike.
    np.testing.assert_allclose(RESAMPLER.probabilities(history), np.full(5, 0.2), rtol=1e-6)


def test_probabilities_by_hand():
    squares = jnp.array([[1.0, 4.0, 4.0], [9.0, 9.0, 9.0], [0.0, 0.0, 0.0]])
    history = LossHistory(squares, jnp.full(3, 3.0))
    size = np.sqrt([3.0, 9.0, 0.0])
    want = 0.9 * size / size.sum() + 0.1 / 3
    np.testing.assert_allclose(RESAMPLER.probabilities(history), want, rtol=1e-6)
    early = history._replace(counts=jnp.array([3.0, 3.0, 2.0]))
    np.testing.assert_allclose(RESAMPLER.probabilities(early), np.full(3, 1 / 3), rtol=1e-6)
    nothing = LossHistory(jnp.zeros((3, 3)), jnp.full(3, 3.0))
    np.testing.assert_allclose(RESAMPLER.probabilities(nothing), np.full(3, 1 / 3), rtol=1e-6)


def test_draws_are_unbiased_and_vary_less():
    """Of losses that differ by a thousand, as the bound's do."""
    losses = 1000 / (1 + jnp.arange(50.0)) ** 2
    resampler = LossResampler()
    history = LossHistory(jnp.square(losses)[:, None] * jnp.ones((1, 10)), jnp.full(50, 10.0))

    @jax.jit
    def estimates(history):
        t, weight = resampler.draw(jax.random.key(0), history, 20_000)
        return weight * losses[t], weight

    values, weight = estimates(history)
    assert values.mean() == pytest.approx(float(losses.mean()), rel=0.01)
    assert weight.mean() == pytest.approx(1, abs=0.1)
    uniform, ones = estimates(resampler.init(50))
    np.testing.assert_allclose(ones, 1, rtol=1e-5)
    assert uniform.mean() == pytest.approx(float(losses.mean()), rel=0.05)
    assert values.std() < 0.05 * uniform.std()


def test_no_gradient_reaches_the_history():
    def moved(scale):
        return RESAMPLER.update(RESAMPLER.init(2), jnp.array([0, 1]), scale * jnp.ones(2)).squares

    assert not jax.grad(lambda scale: moved(scale).sum())(2.0).any()


@pytest.mark.parametrize(
    ("resampler", "message"),
    [
        (LossResampler(length=0), "length must be at least 1, got 0"),
        (LossResampler(uniform=0.0), r"uniform must lie in \(0, 1\], got 0.0"),
    ],
)
def test_bad_fields(resampler, message):
    with pytest.raises(ValueError, match=message):
        resampler.check()
