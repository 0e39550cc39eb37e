"""MaskGIT as a family: its loss, samples of known laws, completions, conditions, two stages."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from devices import equal_on_one_and_eight
from few_steps import train
from flax import linen as nn
from jax import jit

from jaxgen.conditioning.base import Condition
from jaxgen.conditioning.labels import labels
from jaxgen.core import Variables
from jaxgen.data.sources import digits
from jaxgen.data.transforms import to_model_space
from jaxgen.families.latent import Codec, on_latents
from jaxgen.families.masked import NAME, Sampler, masked
from jaxgen.losses.masked import masked_cross_entropy
from jaxgen.models.masked_transformer import MaskedTransformer
from jaxgen.noise.masking import draw_masks, power
from jaxgen.sampling.masked import parallel_decode

SHAPE, VALUES = (2, 3, 2), 5
NETWORK = MaskedTransformer(VALUES, 12, 8, 1, 2)
LABELS = labels(3)
IMAGES = 2 * jax.random.randint(jax.random.key(1), (4, *SHAPE), 0, VALUES) / (VALUES - 1) - 1
BATCH = {"image": IMAGES, "label": jnp.array([0, 2, 1, 1])}


class Known(MaskedTransformer):
    """Independent tokens, whose logits grow with the token and with the class."""

    @nn.compact
    def __call__(self, tokens, masked, condition=None, *, train=False):
        slope = self.param("slope", nn.initializers.ones, ())
        of_class = condition.vector @ jnp.arange(3.0)  # 0 of no class
        logits = slope * of_class[:, None] * jnp.linspace(0, 1, VALUES)[None]
        return jnp.tile(logits[:, None], (1, self.length, 1))


KNOWN = Known(VALUES, 12)


def build(network=NETWORK, **options):
    arguments = {"image_shape": SHAPE, "num_values": VALUES, "conditioning": LABELS, **options}
    return masked(network, optax.adam(3e-3), **arguments)


def variables_of(family, seed=0):
    """Variables away from the initial ones: what is known matters."""
    variables = jit(family.init)(jax.random.key(seed), BATCH)
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda p: p + 0.5 * np.asarray(rng.normal(size=p.shape), np.float32), variables
    )


FAMILY = build()
VARIABLES = variables_of(FAMILY)


def test_evaluate_is_the_cross_entropy_of_what_is_masked(key):
    """Without smoothing, with masks of the key; tokens in raster order, channels innermost."""
    values, metrics = jit(FAMILY.evaluate)(VARIABLES, BATCH, key)
    tokens = jnp.round((IMAGES + 1) / 2 * (VALUES - 1)).astype(jnp.int32).reshape(4, 12)

    @jit
    def by_hand(variables, key):
        hidden = draw_masks(key, 4, 12)
        condition = Condition(jax.nn.one_hot(BATCH["label"], 3))
        own = {"params": variables.params[NAME]}
        logits = NETWORK.apply(own, tokens, hidden, condition)
        return hidden, logits, masked_cross_entropy(logits, tokens, hidden)

    hidden, logits, loss = by_hand(VARIABLES, key)
    np.testing.assert_allclose(values, loss, rtol=1e-5)
    right = np.asarray(logits.argmax(-1) == tokens)
    expected = [row[mask].mean() for row, mask in zip(right, np.asarray(hidden), strict=True)]
    np.testing.assert_allclose(metrics["accuracy"], expected, rtol=1e-6)


def test_training_smooths_and_drops_conditions(key):
    """Smoothed targets; without its condition an example is one of no class."""
    variables, step = Variables({NAME: {"slope": jnp.ones(())}}), jnp.array(0)
    smooth, plain = (build(KNOWN, label_smoothing=s).phases[0].loss for s in (0.2, 0.0))
    a, b = (jit(loss)(variables, BATCH, key, step)[0] for loss in (smooth, plain))
    of_class = np.asarray(BATCH["label"], np.float64)
    logits = of_class[:, None] * np.linspace(0, 1, VALUES)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(a, 0.8 * b - 0.2 * log_p.mean(1), rtol=1e-5)
    dropping = build(KNOWN, label_smoothing=0.0, condition_dropout=0.5).phases[0].loss
    keys = jax.random.split(key, 200)
    losses = jit(jax.vmap(lambda key: dropping(variables, BATCH, key, step)[0]))(keys)
    dropped = np.isclose(losses[:, 1:], np.log(VALUES)).mean()  # of class 0 both are alike
    assert dropped == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_samples_of_a_known_law(scale, key):
    """Each class its own; guidance from no class, whose tokens are alike, scales the logits."""
    family = build(KNOWN, sampler=Sampler(2, 1.0, None, scale))
    variables = Variables({NAME: {"slope": jnp.ones(())}})
    label = jnp.repeat(jnp.arange(3), 800)
    images = jit(lambda v, k: family.sample(v, k, 2400, condition=label))(variables, key)
    tokens = np.round((np.asarray(images) + 1) / 2 * (VALUES - 1)).reshape(3, -1)
    for of_class in range(3):
        p = np.exp(scale * of_class * np.linspace(0, 1, VALUES))
        shares = np.bincount(tokens[of_class].astype(int), minlength=VALUES) / tokens.shape[1]
        np.testing.assert_allclose(shares, p / p.sum(), atol=0.02)


def test_samples_are_decoded_tokens(key):
    """By the options of the sampler, which a call may change."""
    by = Sampler(3, 0.9, 2.0, 1.5)
    condition = BATCH["label"]
    images = jit(lambda v: FAMILY.sample(v, key, 4, condition=condition, sampler=by))(VARIABLES)
    own, encoded = {"params": VARIABLES.params[NAME]}, jax.nn.one_hot(condition, 3)

    def predict(codes, hidden):
        c, u = (NETWORK.apply(own, codes, hidden, Condition(e)) for e in (encoded, 0 * encoded))
        return u + 1.5 * (c - u)

    options = {"temperature": 0.9, "choice_temperature": 2.0}
    codes = jit(lambda: parallel_decode(predict, (4, 12), key, 3, **options))()
    np.testing.assert_allclose(images, (2 * codes / (VALUES - 1) - 1).reshape(4, *SHAPE), atol=1e-6)
    assert len(np.unique(images)) > 2


def test_completions_keep_what_is_known(key):
    known = jax.random.bernoulli(key, 0.5, IMAGES.shape[:3])

    @jit
    def both(variables, given):
        options = {"condition": BATCH["label"]}
        return (
            FAMILY.complete(variables, key, given, known, **options),
            FAMILY.complete(
                variables, key, jnp.where(known[..., None], given, 0.5), known, **options
            ),
        )

    completed, again = both(VARIABLES, IMAGES)
    np.testing.assert_allclose(completed[known], IMAGES[known], atol=1e-6)
    np.testing.assert_array_equal(completed, again)  # by what is known alone
    other, _ = both(VARIABLES, -IMAGES)
    assert not np.allclose(completed[~known], other[~known])
    with pytest.raises(ValueError, match=r"known must have the shape \(4, 2, 3\), got \(4, 2\)"):
        FAMILY.complete(VARIABLES, key, IMAGES, jnp.ones((4, 2), bool), condition=BATCH["label"])


def test_a_network_of_nan_draws_nan(key):
    lost = jax.tree.map(lambda p: p * jnp.nan, VARIABLES)
    images = jit(lambda v: FAMILY.sample(v, key, 2, condition=jnp.zeros(2, int)))(lost)
    assert np.isnan(images).all()


def test_images_of_nan_are_noticed(key):
    """By the loss, wherever the pixel is masked or not."""
    batch = {**BATCH, "image": IMAGES.at[1].set(jnp.nan)}
    values, _ = jit(FAMILY.evaluate)(VARIABLES, batch, key)
    np.testing.assert_array_equal(np.isnan(values), [False, True, False, False])


def test_a_few_steps_lower_the_loss_of_digits():
    raw = digits("train")[np.arange(32)]
    batch = {"image": to_model_space(jnp.asarray(raw["image"])), "label": jnp.asarray(raw["label"])}
    family = masked(
        MaskedTransformer(17, 64, 16, 1, 2, dropout=0.1),
        optax.adam(1e-2),
        image_shape=(8, 8, 1),
        num_values=17,
        conditioning=labels(10),
        condition_dropout=0.1,
    )
    start, variables, metrics = train(family, batch, 30)
    key, evaluate = jax.random.key(0), jit(family.evaluate)
    first, last = (float(evaluate(v, batch, key)[0].mean()) for v in (start, variables))
    assert last < 0.8 * first
    assert float(metrics["accuracy"]) > 0.2
    assert family.log_prob is None


def test_on_codes(key):
    """A first stage's codes are drawn, and decoded; known codes are those of known pixels."""

    def encode(fixed, batch, key):
        return {**batch, "image": batch["image"][:, ::2, ::2]}

    def decode(fixed, latents, key):
        return jnp.repeat(jnp.repeat(latents, 2, axis=1), 2, axis=2)

    codes = masked(
        MaskedTransformer(VALUES, 4, 8, 1, 2),
        optax.sgd(0.1),
        image_shape=(2, 2, 1),
        num_values=VALUES,
    )
    family = on_latents(codes, Codec(encode, decode, {}))
    x = jnp.tile(jnp.linspace(-1, 1, 16).reshape(1, 4, 4, 1), (3, 1, 1, 1))
    known = jnp.arange(4)[None, :, None] < jnp.full((3, 1, 4), 2)

    @jit
    def run(key):
        variables = family.init(key, {"image": x}, family.fixed)
        return family.sample(variables, key, 3), family.complete(variables, key, x, known)

    drawn, completed = run(key)
    assert drawn.shape == x.shape
    np.testing.assert_array_equal(drawn[:, ::2, ::2], drawn[:, 1::2, 1::2])
    np.testing.assert_array_equal(completed[:, :2], x[:, :2])
    assert family.log_prob is None


@pytest.mark.slow
def test_one_device_and_eight():
    big = jax.tree.map(lambda v: jnp.tile(v, (4, *(1,) * (v.ndim - 1))), BATCH)
    equal_on_one_and_eight(build(), big)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_shape": (4, 4)}, r"image_shape must be \(height, width, channels\), got \(4, 4\)"),
        ({"num_values": 9}, "must be of 9 tokens and 12 positions, got one of 5 and 12"),
        ({"image_shape": (2, 2, 2)}, "must be of 5 tokens and 8 positions, got one of 5 and 12"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"condition_dropout": 1.0}, r"condition_dropout must be in \[0, 1\), got 1.0"),
        (
            {"condition_dropout": 0.1, "conditioning": None},
            "condition_dropout needs a conditioning",
        ),
        ({"sampler": Sampler(0)}, "num_steps must be at least 1, got 0"),
        ({"sampler": Sampler(guidance_scale=math.nan)}, "guidance_scale must be finite, got nan"),
        (
            {"sampler": Sampler(guidance_scale=2.0), "conditioning": None},
            "guidance_scale must be 1 where the network takes no condition, got 2.0",
        ),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_other_images_and_other_schedules(key):
    with pytest.raises(
        ValueError, match=r"image_shape is \(2, 3, 2\), the images have \(3, 3, 2\)"
    ):
        FAMILY.evaluate(VARIABLES, {**BATCH, "image": jnp.zeros((4, 3, 3, 2))}, key)
    values = build(schedule=power(1.0)).evaluate(VARIABLES, BATCH, key)[0]
    assert not np.allclose(values, FAMILY.evaluate(VARIABLES, BATCH, key)[0])
