"""A discriminator against the reconstructions of a family that has none of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from autoencoders import batch, make_autoencoder, make_vae, make_vqvae
from flax import linen as nn

from jaxgen.core import Variables
from jaxgen.families.patch_game import PatchGame, with_game
from jaxgen.losses.gan import non_saturating
from jaxgen.training.states import init_state
from jaxgen.training.step import make_step

KEY = jax.random.key(0)


class Mean(nn.Module):
    """Four logits of an image: a trained multiple of the mean of each quarter."""

    @nn.compact
    def __call__(self, x, *, train):
        scale = self.param("scale", nn.initializers.constant(2.0), ())
        quarters = x.reshape(x.shape[0], 2, x.shape[1] // 2, 2, x.shape[2] // 2, -1)
        return scale * quarters.mean(axis=(2, 4, 5))


def game(**options):
    return PatchGame(Mean(), optax.sgd(0.1), **{"weight": 3.0, "losses": non_saturating, **options})


def test_three_parts():
    """The family's own loss and the game's, by hand; the discriminator sees both sides."""
    own, data = make_autoencoder(), batch(4)
    family = with_game(own, game())
    variables = jax.jit(family.init)(KEY, data)
    assert variables.params["discriminator"] == {"scale": 2.0}
    (play, turn), free = family.phases, with_game(own, game(weight=0.0)).phases[0]

    @jax.jit
    def run(variables):
        losses = [
            phase.loss(variables, data, KEY, jnp.int32(0))
            for phase in (play, own.phases[0], turn, free)
        ]
        return losses, own.decode(variables, own.encode(variables, data, KEY), KEY)

    ((values, aux), (alone, metrics), of_turn, (of_free, _)), rebuilt = run(variables)
    real, fake = (2 * x.reshape(4, 2, 4, 2, 4).mean(axis=(2, 4)) for x in (data["image"], rebuilt))
    deceiving = jax.nn.softplus(-fake).mean(axis=(1, 2))
    np.testing.assert_allclose(values, alone + 3.0 * deceiving, rtol=1e-5)
    np.testing.assert_allclose(aux.metrics["adversarial"], deceiving, rtol=1e-5)
    assert set(aux.metrics) == {*metrics.metrics, "adversarial"}
    values, aux = of_turn
    halves = jax.nn.softplus(-real) + jax.nn.softplus(fake)
    np.testing.assert_allclose(values, 0.5 * halves.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(aux.metrics["real_logit"], real.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(of_free, alone)


def test_steps_and_the_late_start():
    """Each turn moves its own networks; before the start there is no game; one trace for all."""
    data = batch(8)
    family = with_game(make_vae(), game(start=1))
    first = jax.jit(lambda: init_state(family, KEY, data))()
    traces, one_step = [], make_step(family)

    @jax.jit
    def step(*args):
        traces.append(args)
        return one_step(*args)

    before = step(first, {}, data, KEY)
    after = step(before.state, {}, data, KEY)
    assert len(traces) == 1
    same = [
        jax.tree.map(np.array_equal, *jax.device_get((one.params, other.params)))
        for one, other in ((first, before.state), (before.state, after.state))
    ]
    assert all(jax.tree.leaves(same[0]["discriminator"]))
    assert not any(jax.tree.leaves(same[1]))
    assert before.metrics["vae/adversarial"][0] == 0
    assert after.metrics["vae/adversarial"][0] > 0
    variables = Variables(after.state.params, after.state.state)
    assert jax.jit(lambda v: family.sample(v, KEY, 3))(variables).shape == (3, 8, 8, 1)
    assert jax.jit(family.evaluate)(variables, data, KEY)[0].shape == (8,)


def test_what_cannot_play():
    own = make_autoencoder()
    with pytest.raises(ValueError, match="must have encode, decode and one phase"):
        with_game(own._replace(encode=None), game())
    with pytest.raises(ValueError, match="must have encode, decode and one phase"):
        with_game(with_game(own, game()), game())
    with pytest.raises(ValueError, match="encodes to codes"):
        with_game(make_vqvae(), game())
    with pytest.raises(ValueError, match=r"game\.start must be at least 0, got -1"):
        with_game(own, game(start=-1))
    with pytest.raises(ValueError, match=r"game\.weight must be 0 or more, got nan"):
        with_game(own, game(weight=float("nan")))
