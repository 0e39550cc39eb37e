"""Moving averages of the parameters: their decays by hand, one or several, of some networks."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
import toys

from jaxgen.training.averages import constant, half_life, warmed_up
from jaxgen.training.step import init_state, make_step


def at(average, step):
    return float(average.decay(jnp.int32(step)))


def test_decays_by_hand():
    assert at(constant(0.9), 0) == at(constant(0.9), 10**6) == pytest.approx(0.9)
    assert at(warmed_up(0.9999), 0) == pytest.approx(0.1)
    assert at(warmed_up(0.9999), 90) == pytest.approx(0.91)
    assert at(warmed_up(0.9999), 10**6) == pytest.approx(0.9999)
    # After 500,000 images of 512 a step half of it is left.
    steps = 500_000 / 512
    assert at(half_life(500_000, 512), 0) ** steps == pytest.approx(0.5, rel=1e-3)


def test_half_life_ramps_up():
    """EDM's: at most 5 % of the images seen, so that the first average is the parameters."""
    average = half_life(500_000, 512, ramp_up=0.05)
    assert at(average, 0) == 0
    assert at(average, 1000) == pytest.approx(0.5 ** (512 / (1000 * 512 * 0.05)))
    assert at(average, 10**6) == pytest.approx(at(half_life(500_000, 512), 0))


def test_two_averages_in_a_step(key):
    """Each by its own decay, after the update; of the networks that it names."""
    family = toys.adversarial(repeats=1)
    batch = {"x": jnp.full((4, toys.WIDTH), 3.0)}
    averages = {"slow": warmed_up(0.9), "fast": constant(0.25, of=("critic",))}
    state = init_state(family, key, batch, averages=averages)
    assert {name: set(value) for name, value in state.averages.items()} == {
        "slow": {"critic", "generator"},
        "fast": {"critic"},
    }
    step = jax.jit(make_step(family, averages=averages))
    slow, fast = 0.0, 0.0
    for t in range(3):
        state = step(state, {}, batch, key).state
        critic, decay = float(state.params["critic"]), (1 + t) / (10 + t)
        slow, fast = decay * slow + (1 - decay) * critic, 0.25 * fast + 0.75 * critic
        assert float(state.averages["slow"]["critic"]) == pytest.approx(slow)
        assert float(state.averages["fast"]["critic"]) == pytest.approx(fast)


def test_a_skipped_step_leaves_the_averages(key):
    family, averages = toys.regression(optax.sgd(0.1)), {"ema": constant(0.5)}
    batch = toys.batch(key)
    state = init_state(family, key, batch, averages=averages)
    bad = {**batch, "y": batch["y"].at[0].set(jnp.nan)}
    new = make_step(family, averages=averages)(state, {}, bad, key).state
    chex.assert_trees_all_equal(new.averages, state.averages)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: constant(1.0), r"decay must lie in \[0, 1\), got 1.0"),
        (lambda: warmed_up(-0.1), r"decay must lie in \[0, 1\), got -0.1"),
        (lambda: half_life(0, 64), "images must be positive, got 0"),
        (lambda: half_life(10, 0), "batch_size must be positive, got 0"),
        (lambda: half_life(10, 1, ramp_up=-1.0), "ramp_up must be positive, got -1.0"),
    ],
)
def test_bad_numbers(call, message):
    with pytest.raises(ValueError, match=message):
        call()
