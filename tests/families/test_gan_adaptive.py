"""Adaptive augmentation in a game: every verdict of training sees it, its probability follows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from devices import equal_on_one_and_eight
from small_gans import FIRST, batch, make

from jaxgen.augmentation.adaptive import Adaptive
from jaxgen.families.gan_adaptive import AUGMENT
from jaxgen.losses.gan import r1_penalty
from jaxgen.training.step import init_state, make_step

KEY = jax.random.key(1)


def dimmed(key, images, probability):
    """In the place of a transformation: its probability can be read from what it does."""
    return images * (1 - probability)


def r1(critic, real, fake, key):
    return r1_penalty(critic, real)


def at(probability, variables):
    state = {**variables.state[AUGMENT], "probability": jnp.float32(probability)}
    return variables._replace(state={**variables.state, AUGMENT: state})


def test_every_verdict_sees_what_the_state_says():
    """At probability 0 the losses are those without it; at 1 all images are alike."""
    family = make("plain", augment=Adaptive(16, dimmed), penalty=r1, penalty_every=2)
    plain = make("plain", penalty=r1, penalty_every=2)
    data = batch(8)
    variables = jax.jit(family.init)(jax.random.key(0), data)
    for phase, without in zip(family.phases, plain.phases, strict=True):
        loss = jax.jit(phase.loss)
        expected, _ = jax.jit(without.loss)(variables, data, KEY, FIRST)
        np.testing.assert_allclose(loss(variables, data, KEY, FIRST)[0], expected, rtol=1e-6)
        value, aux = loss(at(1.0, variables), data, KEY, FIRST)
        assert np.ptp(value) < 1e-6
        if phase.name == "penalty":  # of the gradient before the augmentation
            np.testing.assert_allclose(value, 0, atol=1e-12)
        if phase.name == "discriminator":
            np.testing.assert_array_equal(aux.metrics["augment_probability"], np.ones(16))
    metrics = [jax.jit(f.evaluate)(at(1.0, variables), data, KEY)[1] for f in (family, plain)]
    np.testing.assert_array_equal(*(m["real_logit"] for m in metrics))


def test_the_probability_follows_the_discriminators_turns():
    """A discriminator that calls every real image real, in two updates a step."""
    options = Adaptive(8, dimmed, target=-1.0, every=3, ramp=100)  # a mean of -1 would keep it
    family = make("plain", augment=options, discriminator_repeats=2)
    data, step = batch(8), jax.jit(make_step(family))
    state = jax.jit(functools.partial(init_state, family))(jax.random.key(0), data)
    seen = []
    for i in range(3):
        result = step(state, {}, data, jax.random.key(i))
        state = result.state
        assert int(result.bad) == -1
        seen.append(
            (float(state.state[AUGMENT]["probability"]), int(state.state[AUGMENT]["turns"]))
        )
    np.testing.assert_allclose(seen, [(0.0, 2), (0.24, 1), (0.48, 0)], rtol=1e-5)
    total, weight = result.metrics["discriminator/augment_probability"]
    np.testing.assert_allclose(total / weight, 0.24, rtol=1e-5)


def test_eight_devices_equal_one():
    family = make("plain", augment=Adaptive(32, dimmed, every=1), optimizer=optax.sgd(1e-2))
    equal_on_one_and_eight(family, batch(8, 32))


def test_bad_options():
    with pytest.raises(ValueError, match="augment: every must be at least 1, got 0"):
        make("plain", augment=Adaptive(16, every=0))
