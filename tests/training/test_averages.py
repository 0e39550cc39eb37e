"""Moving averages of the parameters: their decays by hand, one or several, of some networks."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from jaxgen.training.averages import (
    Snapshot,
    constant,
    half_life,
    post_hoc_weights,
    power_exponent,
    power_function,
    reconstruct,
    update,
    warmed_up,
)
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


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.25])
def test_power_functions_by_hand(sigma_rel):
    """The profile has the deviation it is named by; the decay is that of the profile."""
    exponent = power_exponent(sigma_rel)
    u = (np.arange(200_000) + 0.5) / 200_000  # the share of the training that is over
    weight = (exponent + 1) * u**exponent / 200_000
    assert weight.sum() == pytest.approx(1, rel=1e-4)
    mean = (weight * u).sum()
    assert np.sqrt((weight * (u - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=1e-3)
    average = power_function(sigma_rel)
    assert at(average, 0) == 0
    assert at(average, 99) == pytest.approx(0.99 ** (exponent + 1), rel=1e-4)
    assert power_exponent(0.1) == pytest.approx(6.94, abs=0.01)  # Karras et al. 2024, section 3.1
    assert power_exponent(0.05) == pytest.approx(16.97, abs=0.01)


def walk(num_steps):
    """Parameters that wander for a training, [num_steps, 5]."""
    steps = np.random.default_rng(0).normal(size=(num_steps, 5))
    return jnp.asarray(np.cumsum(steps, axis=0) / np.sqrt(num_steps), jnp.float32)


def averaged(path, sigma_rels, kept):
    """{(step, sigma_rel): average} as training would track them, at the steps that are kept."""
    averages = {str(sigma): power_function(sigma) for sigma in sigma_rels}

    def move(old, inputs):
        step, value = inputs
        new = update(averages, old, {"net": value}, step)
        return new, new

    start = {name: {"net": jnp.zeros(5)} for name in averages}
    _, history = jax.lax.scan(move, start, (jnp.arange(len(path)), path))
    return {
        (step, sigma): {"net": history[str(sigma)]["net"][step - 1]}
        for step in kept
        for sigma in sigma_rels
    }


def test_reconstructed_averages_are_those_of_a_training():
    """Of two averages, kept now and then, any other one, in between and of earlier steps."""
    path, kept = walk(2000), range(125, 2001, 125)
    tracked = averaged(path, (0.05, 0.1), kept)
    snapshots = [Snapshot(params, *key) for key, params in tracked.items()]
    for sigma, step, most in ((0.07, 2000, 0.01), (0.15, 2000, 0.01), (0.2, 1500, 0.02)):
        want = averaged(path, (sigma,), (step,))[step, sigma]["net"]
        got = reconstruct(snapshots, step, sigma)["net"]
        spread = np.abs(np.asarray(want) - np.asarray(path[step - 1])).max()
        assert spread > 0.1
        np.testing.assert_allclose(got, want, atol=most * spread)
    own = reconstruct(snapshots, 1000, 0.1)["net"]
    np.testing.assert_allclose(own, tracked[1000, 0.1]["net"], rtol=1e-4, atol=1e-5)


def test_weights_of_a_reconstruction():
    """They add up to 1; an average that is there is taken as it is; one alone too."""
    weights = post_hoc_weights([50, 100, 100], [0.1, 0.05, 0.1], 100, 0.08)
    assert weights.sum() == pytest.approx(1)
    same = post_hoc_weights([50, 100, 100], [0.1, 0.05, 0.1], 100, 0.05)
    np.testing.assert_allclose(same, [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(post_hoc_weights([70], [0.1], 90, 0.2), [1])


def test_weights_of_a_reconstruction_by_hand():
    """The least squares of profiles that are drawn on a fine grid of times."""
    t = (np.arange(120_000) + 0.5) / 1000

    def profile(step, sigma):
        power = power_exponent(sigma)
        return np.where(t < step, (power + 1) * (t / step) ** power / step, 0)

    known = [(80, 0.1), (120, 0.05), (120, 0.2)]
    columns = np.stack([profile(*key) for key in known], axis=1)
    want = np.linalg.lstsq(columns, profile(100, 0.12), rcond=None)[0]
    steps, sigmas = zip(*known, strict=True)
    got = post_hoc_weights(steps, sigmas, 100, 0.12)
    np.testing.assert_allclose(got, want / want.sum(), rtol=2e-3)


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
        (lambda: power_function(0.0), r"sigma_rel must lie in \(0, 0.288\d*\), got 0.0"),
        (lambda: power_function(0.3), r"sigma_rel must lie in \(0, 0.288\d*\), got 0.3"),
        (lambda: reconstruct([], 10, 0.1), "snapshots must hold at least one"),
        (lambda: post_hoc_weights([1, 2], [0.1], 10, 0.1), "steps and sigma_rels must match"),
        (lambda: post_hoc_weights([0], [0.1], 10, 0.1), "steps must be positive, got 0"),
        (lambda: post_hoc_weights([1], [0.1], 0, 0.1), "steps must be positive, got 0"),
    ],
)
def test_bad_numbers(call, message):
    with pytest.raises(ValueError, match=message):
        call()
