"""The GAN family with StackGAN's parts: wrong pairs, codes of conditions, a frozen first stage."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from devices import equal_on_one_and_eight

from jaxgen.conditioning.attributes import attributes
from jaxgen.conditioning.base import NAME, Condition, frozen
from jaxgen.conditioning.labels import labels
from jaxgen.core import Variables
from jaxgen.families import gan
from jaxgen.families.gan_players import DISCRIMINATOR, GENERATOR
from jaxgen.losses.gan import ADVERSARIAL, augmentation_kl
from jaxgen.models import stackgan
from jaxgen.models.blocks.gan_layers import Verdict
from jaxgen.training.fit import fit

KEY, FIRST = jax.random.key(1), jnp.int32(0)
TWO = attributes(2)


class Generator(nn.Module):
    """A generator of one pixel through a code of its condition; its parts have names."""

    latent_dim: int = 2
    momentum: float = 0.9
    axis_name: str | None = None

    def setup(self):
        self.code, self.base = nn.Dense(4), nn.Dense(3)

    def condition_code(self, condition):
        return jnp.split(self.code(condition.vector), 2, axis=-1)

    def __call__(self, z, condition=None, *, train):
        mean, log_sigma = self.condition_code(condition)
        return nn.tanh(self.base(mean + jnp.exp(log_sigma) * z)).reshape(-1, 1, 1, 3)


class Discriminator(nn.Module):
    """A verdict that is a function of one image and its condition alone, and counts its passes."""

    mixes_examples: bool = False
    batch_statistics: bool = False

    @nn.compact
    def __call__(self, x, condition=None, *, train):
        calls = self.variable("calls", "n", lambda: jnp.zeros(()))
        if train:
            calls.value += 1.0
        h = jnp.concatenate([x.reshape(len(x), -1), condition.vector], axis=-1)
        return Verdict(nn.Dense(1)(nn.tanh(nn.Dense(8)(h)))[:, 0])


def make(**options):
    options = {"conditioning": TWO, "standing_batches": 0, **options}
    generator = options.pop("generator", Generator())
    sgd = optax.sgd(0.1)
    return gan.gan(generator, options.pop("judge", Discriminator()), sgd, sgd, **options)


def batch(num=4, rows=((0, 1), (0, 1), (1, 1), (1, 0))):
    x = jax.random.uniform(jax.random.key(7), (num, 1, 1, 3), minval=-1.0)
    return {"image": x, "attributes": jnp.asarray(rows * (num // len(rows)))}


def init(family, data):
    return jax.jit(family.init)(jax.random.key(0), data, family.fixed)


@pytest.mark.parametrize("loss", ["non_saturating", "hinge", "relativistic_average"])
def test_wrong_pairs(loss):
    """(1 - m) of the game with fakes and m of that with wrong pairs; equal conditions are no wrong
    pair, and the fake has all their weight."""
    data, share = batch(), 0.25
    plain, family = make(loss=loss), make(loss=loss, mismatch=share)
    variables = init(family, data)
    with_fakes, before = jax.jit(plain.phases[0].loss)(variables, data, KEY, FIRST)
    value, aux = jax.jit(family.phases[0].loss)(variables, data, KEY, FIRST)
    collections = {"params": variables.params[DISCRIMINATOR], **variables.state[DISCRIMINATOR]}
    told = Condition(2.0 * jnp.roll(data["attributes"], -1, axis=0) - 1)
    on_wrong = Discriminator().apply(collections, data["image"], told, train=False).logits
    with_wrong = ADVERSARIAL[loss].discriminator(before.metrics["real_logit"], on_wrong)
    weight = share * np.array([0, 1, 1, 1])  # the first two are told the same
    np.testing.assert_allclose(
        value, (1 - weight) * with_fakes + weight * with_wrong, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(aux.metrics["wrong_logit"], on_wrong, rtol=1e-5)
    assert set(aux.metrics) == {*before.metrics, "wrong_logit", "wrong_accuracy"}
    calls = [v.state[DISCRIMINATOR]["calls"]["n"] for v in (variables, before, aux)]
    assert [int(n - calls[0]) for n in calls[1:]] == [1, 2]  # the state goes through all verdicts
    held_out, metrics = jax.jit(family.evaluate)(variables, data, KEY)
    np.testing.assert_allclose(held_out, value, rtol=1e-5, atol=1e-6)
    assert set(metrics) == set(aux.metrics)


def test_no_pair_is_wrong_where_all_conditions_are_the_same():
    data = batch(rows=((0, 1),) * 4)
    plain, family = make(), make(mismatch=0.5)
    variables = init(family, data)
    expected, _ = jax.jit(plain.phases[0].loss)(variables, data, KEY, FIRST)
    value, _ = jax.jit(family.phases[0].loss)(variables, data, KEY, FIRST)
    np.testing.assert_array_equal(value, expected)


def test_the_code_is_part_of_the_generators_loss():
    """Its weight times the divergence; with as many fakes a condition as are asked for."""
    data = batch()
    plain, family = make(fakes_per_real=2), make(fakes_per_real=2, kl_weight=3.0)
    variables = init(family, data)
    expected, _ = jax.jit(plain.phases[1].loss)(variables, data, KEY, FIRST)
    value, aux = jax.jit(family.phases[1].loss)(variables, data, KEY, FIRST)
    told = Condition(2.0 * data["attributes"] - 1)
    code = Generator().apply({"params": variables.params[GENERATOR]}, told, method="condition_code")
    kl = augmentation_kl(*code)
    np.testing.assert_allclose(aux.metrics["kl"], kl, rtol=1e-6)
    np.testing.assert_allclose(value, expected + 3.0 * kl, rtol=1e-5)


def test_a_frozen_part():
    """Its parameters are in `fixed`, not among those that are trained, and used in every image."""
    data = batch()
    part = {"kernel": jnp.full((2, 3), 0.3), "bias": jnp.zeros(3)}
    family, plain = make(frozen={"base": part}), make()
    variables, whole = init(family, data), init(plain, data)
    assert set(variables.params[GENERATOR]) == {"code"}
    assert family.fixed == {GENERATOR: {"base": part}}
    params = {**whole.params, GENERATOR: {**whole.params[GENERATOR], "base": part}}
    whole = whole._replace(params=params)
    losses = [
        jax.jit(f.phases[1].loss)(v, data, KEY, FIRST)[0]
        for f, v in ((family, variables), (plain, whole))
    ]
    np.testing.assert_array_equal(*losses)
    condition = data["attributes"]
    images = [
        jax.jit(lambda v, f=f: f.sample(v, KEY, 4, condition=condition))(v)
        for f, v in ((family, variables), (plain, whole))
    ]
    np.testing.assert_array_equal(*images)


@pytest.mark.parametrize(
    ("part", "fixed", "message"),
    [
        ({"base": {"kernel": jnp.zeros((2, 4)), "bias": jnp.zeros(4)}}, None, "12 parameters in"),
        ({"stage1": {"kernel": jnp.zeros((2, 3))}}, None, "'stage1' is of another network"),
        ({"base": {"kernel": jnp.zeros((2, 3))}}, {}, r"frozen parts \['base'\] .* got \[\]"),
    ],
)
def test_a_frozen_part_of_another_network(part, fixed, message):
    family = make(frozen=part)
    with pytest.raises(ValueError, match=message):
        family.init(KEY, batch(), family.fixed if fixed is None else fixed)


def embedded(where):
    """Classes by a table in the parameters or among the fixed arrays."""

    def encode(variables, values):
        return Condition(getattr(variables, where)[NAME]["table"][values])

    return labels(2)._replace(
        encode=encode, init=lambda key: {"table": jnp.eye(2)}, trained=where == "params"
    )


def test_an_encoder_does_not_learn_to_spoil_fakes():
    """In the discriminator's turn its gradient is that through verdicts, not through fakes."""
    data = {**batch(), "label": jnp.array([0, 1, 1, 0])}
    family = make(conditioning=embedded("params"))
    variables = init(family, data)

    @jax.jit
    def loss(table):
        told = variables._replace(params={**variables.params, NAME: {"table": table}})
        return family.phases[0].loss(told, data, KEY, FIRST)[0].sum()

    @jax.jit
    def through_verdicts(table):
        told = Condition(table[data["label"]])
        fixed = Condition(jnp.eye(2)[data["label"]])
        z = jax.random.normal(jax.random.split(KEY, 5)[0], (4, 2))
        fake = Generator().apply({"params": variables.params[GENERATOR]}, z, fixed, train=True)
        collections = {"params": variables.params[DISCRIMINATOR], **variables.state[DISCRIMINATOR]}
        real, on_fake = (
            Discriminator().apply(collections, x, told, train=False).logits
            for x in (data["image"], fake)
        )
        return (jax.nn.softplus(-real) + jax.nn.softplus(on_fake)).sum()

    table = variables.params[NAME]["table"]
    gradient, expected = jax.grad(loss)(table), jax.grad(through_verdicts)(table)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_a_frozen_encoder():
    """A first stage's, that was trained with it, is no network of the second one."""
    kind = embedded("params")
    still = frozen(kind, Variables({NAME: {"table": jnp.eye(2)}}))
    family = make(conditioning=still, kl_weight=1.0, mismatch=0.5)
    data = {**batch(), "label": jnp.array([0, 1, 1, 0])}
    assert set(init(family, data).params) == {GENERATOR, DISCRIMINATOR}


def test_eight_devices_equal_one():
    """Wrong pairs, codes and a frozen part: of the whole batch on any number of devices."""
    part = {"kernel": jnp.full((2, 3), 0.3), "bias": jnp.zeros(3)}
    family = make(mismatch=0.5, kl_weight=1.0, frozen={"base": part}, discriminator_repeats=2)
    equal_on_one_and_eight(family, batch(32))


@pytest.mark.slow
def test_stackgan_itself(key):
    """Both stages at 8 pixels: a step of training each, a sample with standing statistics."""
    small = stackgan.Generator(8, 3, 2, 2, 2)
    judge = stackgan.Discriminator(2, 2)
    data = {**batch(8), "image": jnp.zeros((8, 8, 8, 3))}
    options = {"judge": judge, "mismatch": 0.5, "kl_weight": 2.0, "standing_batches": 1}
    first = make(generator=small, **options)
    trained = fit(first, data, 1).state
    stage1 = {stackgan.FIRST: trained.params[GENERATOR]}
    second = make(generator=stackgan.Refiner(small, 8, 2, 2, 1), frozen=stage1, **options)
    state = fit(second, data, 1).state
    assert stackgan.FIRST not in state.params[GENERATOR]
    assert stackgan.FIRST in state.state[GENERATOR]["batch_stats"]
    variables = Variables(state.params, state.state, second.fixed)
    draw = jax.jit(lambda v: second.sample(v, key, 2, condition=jnp.array([[0, 1], [1, 1]])))
    assert draw(variables).shape == (2, 8, 8, 3)
    assert second.latents.width == 2 + 2 + 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mismatch": 1.5}, r"mismatch must be in \[0, 1\], got 1.5"),
        ({"kl_weight": -1.0}, "kl_weight must be finite and at least 0, got -1"),
        ({"mismatch": 0.5, "conditioning": None}, "mismatch must be 0 without a condition"),
        ({"kl_weight": 2.0, "conditioning": None}, "kl_weight must be 0 without a condition"),
        ({"kl_weight": 2.0, "generator": nn.Dense(1)}, "draws no code"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_wrong_pairs_with_a_classifier():
    judge = stackgan.Discriminator(2)
    object.__setattr__(judge, "num_classes", 2)
    with pytest.raises(ValueError, match="mismatch must be 0 with an auxiliary classifier"):
        make(judge=judge, conditioning=labels(2), auxiliary=gan.Auxiliary(), mismatch=0.5)
