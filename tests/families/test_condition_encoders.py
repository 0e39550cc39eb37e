"""Flows and autoregressive families with encoders of conditions, trained or pretrained."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.conditioning.base import NAME, Condition
from jaxgen.conditioning.labels import labels
from jaxgen.families.autoregressive import autoregressive
from jaxgen.families.flow import flow
from jaxgen.families.wavenet import wavenet
from jaxgen.models.bijectors.coupling import Affine, LearnedPrior
from jaxgen.models.pixelcnn import GatedPixelCNN
from jaxgen.models.wavenet import WaveNet

KEY, SGD, LABEL = jax.random.key(0), optax.sgd(0.1), jnp.array([0, 1, 2, 1])
PIXELS = GatedPixelCNN(1, 4, 4, 1, 3, 4)
AUDIO = WaveNet(4, 4, stacks=1, layers=2, channels=4, skip_channels=4)
RANDOM = np.random.default_rng(0)
FAMILIES = {
    "flow": (
        lambda kind: flow(LearnedPrior(Affine()), SGD, event_shape=(2,), conditioning=kind),
        {"vector": jnp.asarray(RANDOM.normal(size=(4, 2)), jnp.float32)},
    ),
    "autoregressive": (
        lambda kind: autoregressive(
            PIXELS, SGD, image_shape=(2, 2, 1), num_values=4, conditioning=kind
        ),
        {"image": jnp.asarray(RANDOM.integers(0, 4, (4, 2, 2, 1)) * 2 / 3 - 1, jnp.float32)},
    ),
    "wavenet": (
        lambda kind: wavenet(AUDIO, SGD, num_samples=6, num_values=4, conditioning=kind),
        {"audio": jnp.asarray(RANDOM.integers(0, 4, (4, 6)), jnp.int32)},
    ),
}


def embedded(place, **options):
    """Labels through a table in the parameters or among the fixed arrays."""

    def encode(variables, condition):
        return Condition(getattr(variables, place)[NAME]["table"][condition])

    return labels(3)._replace(encode=encode, **options)


def moved(tree):
    """Parameters away from zero, so that conditions matter."""
    return jax.tree.map(lambda p: p + 0.3 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), tree)


@pytest.fixture(params=list(FAMILIES))
def case(request):
    """(maker, batch, the variables of the family with plain labels)."""
    make, data = FAMILIES[request.param]
    batch = {**data, "label": LABEL}
    return make, batch, jax.jit(make(labels(3)).init)(KEY, batch)


def test_a_trained_encoder_is_trained_with_the_network(case):
    """It is a network of the optimizer's, with a gradient; the others begin as without it."""
    make, batch, plain = case
    kind = embedded("params", init=lambda key: {"table": jnp.eye(3)}, trained=True)
    family = make(kind)
    variables = jax.jit(family.init)(KEY, batch)
    assert set(variables.params) == {*plain.params, NAME}
    jax.tree.map(
        np.testing.assert_array_equal, {k: variables.params[k] for k in plain.params}, plain.params
    )
    (optimizer,) = family.optimizers.values()
    assert set(optimizer.trains) == set(variables.params)

    @jax.jit
    def gradient(table):
        params = {**moved(variables.params), NAME: {"table": table}}
        loss = family.phases[0].loss
        return loss(variables._replace(params=params), batch, KEY, jnp.int32(0))[0].sum()

    assert (jnp.abs(jax.grad(gradient)(jnp.eye(3))).sum(1) > 0).all()


def test_a_pretrained_encoder_is_read_from_the_fixed_arrays(case):
    """Its classes turned round are the classes turned round, in likelihoods and in samples."""
    make, batch, plain = case
    table = jnp.eye(3)[::-1]
    family = make(embedded("fixed", fixed={"table": table}))
    np.testing.assert_array_equal(family.fixed[NAME]["table"], table)
    variables = jax.jit(family.init)(KEY, batch, family.fixed)
    assert set(variables.params) == set(plain.params)
    assert set(variables.fixed) == {NAME}
    params = moved(plain.params)
    variables, plain = (v._replace(params=params) for v in (variables, plain))
    turned = {**batch, "label": 2 - LABEL}
    log_prob = jax.jit(family.log_prob)(variables, batch, KEY)
    expected = jax.jit(make(labels(3)).log_prob)
    np.testing.assert_allclose(log_prob, expected(plain, turned, KEY), rtol=1e-5)
    assert not np.allclose(log_prob, expected(plain, batch, KEY))
    drawn = [
        jax.jit(lambda v, c, f=f: f.sample(v, KEY, 4, condition=c))(v, c)
        for f, v, c in ((family, variables, LABEL), (make(labels(3)), plain, 2 - LABEL))
    ]
    np.testing.assert_allclose(*drawn, atol=1e-5)
