"""VQ-VAE: straight-through gradients, and a codebook that is the same on any devices."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from autoencoders import batch, make_vqvae, trained_on
from devices import close, runner

from jaxgen.distributions import likelihoods
from jaxgen.families import vq
from jaxgen.models import vq as codebooks
from jaxgen.training.strategies import make_strategy


class Shift(nn.Module):
    """x + b: the simplest encoder or decoder."""

    @nn.compact
    def __call__(self, x):
        return x + self.param("b", nn.initializers.zeros, (x.shape[-1],)).reshape(1, 1, 1, -1)


def test_straight_through_gradients():
    """The decoder's gradient at the code, and the commitment's, arrive at the encoder's output."""
    family = vq.vqvae(
        Shift(),
        Shift(),
        likelihoods.gaussian(1.0),
        optax.sgd(1.0),
        num_codes=3,
        image_shape=(2, 2, 2),
        commitment_weight=0.25,
    )
    x = jax.random.normal(jax.random.key(0), (5, 2, 2, 2))
    variables = jax.jit(family.init)(jax.random.key(1), {"image": x})
    book = variables.state["codebook"]
    encoded = np.asarray(x)
    codes = np.asarray(book.codes)[np.asarray(codebooks.nearest(book.codes, x))]
    assert np.abs(encoded - codes).max() > 0.1

    def objective(params):
        return trained_on(family, variables._replace(params=params), {"image": x})[0].sum()

    value, grads = jax.jit(jax.value_and_grad(objective))(variables.params)
    squares = np.square(codes - encoded).sum()
    constant = 0.5 * math.log(2 * math.pi) * encoded.size
    # The likelihood is summed over pixels, the commitment averaged over the four codes.
    assert value == pytest.approx(0.5 * squares + constant + 0.25 * squares / 4, rel=1e-5)
    at_decoder = (codes - encoded).sum(axis=(0, 1, 2))  # of |code + b - x|^2 / 2
    commitment = 0.25 * 2 * (encoded - codes).sum(axis=(0, 1, 2)) / 4
    np.testing.assert_allclose(grads["decoder"]["b"], at_decoder, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grads["encoder"]["b"], at_decoder + commitment, rtol=1e-4, atol=1e-4)


def kill(state, code=3):
    """Sets a code far away, its share near death."""
    book = jax.tree.map(np.copy, state.state["codebook"])
    book.shares[code], book.sums[code] = 1e-6, 1.0
    return state._replace(state={"codebook": book})


@pytest.mark.slow
def test_codebook_on_one_and_eight_devices():
    """Equal under jit, revival included; under pmap the averages are those of the whole batch, and
    a revived code is one device's output, not a mean of several."""
    data = jax.tree.map(np.asarray, batch(16))
    runs = {}
    for name, devices in (("one", 1), ("eight", 8), ("pmap", 8)):
        strategy = make_strategy("pmap" if name == "pmap" else "jit", jax.devices()[:devices])
        family = make_vqvae(optax.sgd(1e-3), axis_name=strategy.axis_name)
        first, runs[name] = runner(family, data, strategy)
    alive = {name: run(first, 2) for name, run in runs.items()}
    assert int(alive["one"].step) == 2
    for name in ("eight", "pmap"):
        close(alive["one"].params, alive[name].params)
        close(alive["one"].state, alive[name].state)
    revived = {name: run(kill(first), 1) for name, run in runs.items()}
    close(revived["one"].state, revived["eight"].state)
    outputs = jax.jit(codebooks.Encoder(4, 4, 1, 0).apply)(
        {"params": first.params["encoder"]}, data["image"]
    )
    for state in revived.values():
        book = state.state["codebook"]
        assert book.shares[3] == pytest.approx(1 / 8)
        code = book.sums[3] / book.shares[3]
        assert np.abs(np.asarray(outputs).reshape(-1, 4) - code).max(axis=1).min() < 1e-5


def test_codes_that_there_are_not():
    family, key = make_vqvae(), jax.random.key(0)
    variables = jax.jit(family.init)(key, batch())
    decode = jax.jit(family.decode)
    assert np.isfinite(decode(variables, jnp.full((2, 4, 4), 7), key)).all()
    nothing = decode(variables, jnp.full((2, 4, 4), 8), key)
    assert np.isnan(nothing).all()  # no such code: not another one instead
    with pytest.raises(ValueError, match="must be indices of codes, integers, got float32"):
        family.decode(variables, jnp.zeros((1, 4, 4)), key)
    with pytest.raises(ValueError, match="condition must be None"):
        family.decode(variables, jnp.zeros((1, 4, 4), jnp.int32), key, condition=jnp.zeros(1))
