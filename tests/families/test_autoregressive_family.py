"""PixelCNNs and transformers: the family's contract, and samplers that draw the same values."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from devices import equal_on_one_and_eight
from few_steps import train
from jax import jit

from jaxgen.conditioning.base import Condition
from jaxgen.conditioning.labels import labels
from jaxgen.core import Variables
from jaxgen.data.sources import digits
from jaxgen.data.transforms import to_model_space
from jaxgen.distributions.logistic import mixture_of_logistics_log_prob
from jaxgen.families.autoregressive import autoregressive
from jaxgen.families.classify import evaluate_as_classifier
from jaxgen.models.pixelcnn import GatedPixelCNN, PixelCNN
from jaxgen.models.pixelcnnpp import PixelCNNPP
from jaxgen.models.transformer import Size, Transformer

# These programs are compiled often and run once.
LABELS = labels(3)
MIXTURE = "mixture_of_logistics"
SMALL = Size(8, 2, 2)
# name -> network, image shape, likelihood, values, conditioning
KINDS = {
    "pixelcnn": (PixelCNN(1, 16, 8, 1, 8), (5, 6, 1), "categorical", 16, None),
    "pixelcnn, colours": (PixelCNN(2, 8, 8, 1, 8), (4, 5, 2), "categorical", 8, None),
    "gated": (GatedPixelCNN(1, 16, 8, 2, 3, 8), (5, 6, 1), "categorical", 16, LABELS),
    "gated, colours": (GatedPixelCNN(2, 8, 8, 2, 5, 8), (4, 5, 2), "categorical", 8, None),
    "transformer": (Transformer(16, 30, *SMALL), (5, 6, 1), "categorical", 16, LABELS),
    "transformer, colours": (Transformer(8, 24, *SMALL), (3, 4, 2), "categorical", 8, None),
    "pixelcnnpp": (PixelCNNPP(1, 4, 1, 2, 2), (6, 4, 1), MIXTURE, 256, LABELS),
    "pixelcnnpp, 3 levels": (PixelCNNPP(2, 4, 1, 3, 2), (8, 8, 2), MIXTURE, 256, None),
}
LONG = ("pixelcnnpp", "pixelcnnpp, 3 levels")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in LONG]


def build(name, **options):
    network, shape, likelihood, values, conditioning = KINDS[name]
    return autoregressive(
        network,
        optax.sgd(0.1),
        image_shape=shape,
        likelihood=likelihood,
        num_values=values,
        conditioning=conditioning,
        **options,
    )


@cache
def example(name):
    """A batch, and variables far from the initial ones: the past matters."""
    _, shape, _, values, conditioning = KINDS[name]
    rng = np.random.default_rng(0)
    x = rng.integers(0, values, (3, *shape)) * 2 / (values - 1) - 1
    batch = {"image": jnp.asarray(x, jnp.float32)}
    if conditioning is not None:
        batch["label"] = jnp.array([0, 2, 1])
    variables = jit(build(name).init)(jax.random.key(0), batch)
    assert variables.state == {}
    moved = jax.tree.map(
        lambda p: p + 0.3 * np.asarray(rng.normal(size=p.shape), np.float32), variables.params
    )
    return batch, Variables(moved)


@pytest.mark.parametrize("sampler", ["cached", "naive"])
def test_a_network_of_nan_draws_nan(key, sampler):
    """And no image of the first class, black."""
    _, variables = example("pixelcnn")
    lost = jax.tree.map(lambda p: p * jnp.nan, variables)
    family = build("pixelcnn", sampler=sampler)
    images = jit(lambda v: family.sample(v, key, 2))(lost)
    assert np.isnan(images).all()


@pytest.mark.parametrize("name", [*(name for name in KINDS if name not in LONG), *SLOW])
def test_cached_sampler_draws_what_the_naive_one_draws(name, key):
    """Value for value, freely and completing an image."""
    batch, variables = example(name)
    x = batch["image"]
    known = jax.random.bernoulli(key, 0.4, x.shape[:3])

    def run(sampler):
        family = build(name, sampler=sampler, temperature=0.9)
        options = {"condition": batch.get("label")}

        @jit
        def both(variables, key):
            free = family.sample(variables, key, 3, **options)
            return free, family.complete(variables, key, x, known, **options)

        return both(variables, key)

    (free, completed), naive = run("cached"), run("naive")
    np.testing.assert_allclose(free, naive[0], atol=1e-5)
    np.testing.assert_allclose(completed, naive[1], atol=1e-5)
    np.testing.assert_allclose(completed[known], x[known], atol=1e-6)
    assert len(np.unique(free)) > 5
    assert not np.allclose(free[~known], completed[~known])


def test_loss_is_log_prob_and_metrics_are_bits(key):
    batch, variables = example("gated")
    family = build("gated")
    evaluate = jax.jit(family.evaluate)
    nats, metrics = evaluate(variables, batch, key)
    log_prob = jax.jit(family.log_prob)(variables, batch, key)
    np.testing.assert_allclose(log_prob, -nats, rtol=1e-6)
    np.testing.assert_allclose(metrics["bits_per_dim"], nats / 30 / np.log(2), rtol=1e-6)
    # Only the values' order counts: the nearest of the 16 is taken.
    moved = {**batch, "image": batch["image"] + 0.03}
    network = KINDS["gated"][0]
    condition = Condition(np.eye(3, dtype=np.float32)[np.asarray(batch["label"])])
    own = {"params": variables.params["pixelcnn"]}
    logits = jax.jit(network.apply)(own, moved["image"], condition)
    classes = np.round((np.asarray(batch["image"]) + 1) / 2 * 15).astype(int)
    log_p = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), classes[..., None], -1)
    expected = -log_p.sum((1, 2, 3, 4))
    np.testing.assert_allclose(evaluate(variables, moved, key)[0], expected, rtol=1e-5)


def test_log_prob_of_a_transformer_is_of_its_tokens(key):
    """A pixel's channels one after another, rows from the top."""
    batch, variables = example("transformer, colours")
    classes = np.round((np.asarray(batch["image"]) + 1) / 2 * 7).astype(int).reshape(3, -1)
    own = {"params": variables.params["transformer"]}
    logits = jax.jit(KINDS["transformer, colours"][0].apply)(own, jnp.asarray(classes))
    log_p = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), classes[..., None], -1)
    got = jax.jit(build("transformer, colours").log_prob)(variables, batch, key)
    np.testing.assert_allclose(got, log_p.sum((1, 2)), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_values": 9}, "must be of 9 tokens and 30 positions, got one of 16 and 30"),
        ({"image_shape": (5, 5, 1)}, "must be of 16 tokens and 25 positions, got one of 16 and 30"),
        ({"likelihood": MIXTURE}, "likelihood must be categorical for a transformer"),
    ],
)
def test_transformers_that_do_not_fit(options, message):
    arguments = {"image_shape": (5, 6, 1), "num_values": 16, **options}
    with pytest.raises(ValueError, match=message):
        autoregressive(KINDS["transformer"][0], optax.sgd(0.1), **arguments)


@pytest.mark.slow
def test_log_prob_of_mixtures_is_of_the_networks_outputs(key):
    batch, variables = example("pixelcnnpp")
    family, x = build("pixelcnnpp"), batch["image"]
    condition = Condition(jax.nn.one_hot(batch["label"], 3))

    @jit
    def both(variables):
        own = {"params": variables.params["pixelcnn"]}
        outputs = KINDS["pixelcnnpp"][0].apply(own, x, condition)
        return family.log_prob(variables, batch, key), mixture_of_logistics_log_prob(outputs, x)

    got, by_pixel = both(variables)
    np.testing.assert_allclose(got, by_pixel.reshape(3, -1).sum(axis=1), rtol=1e-5)


def test_a_few_steps_lower_the_loss_of_digits():
    """And the classifier by Bayes' rule is made of the same likelihoods."""
    family = autoregressive(
        GatedPixelCNN(1, 256, 8, 2, 3, 16),
        optax.adam(1e-2),
        image_shape=(8, 8, 1),
        conditioning=labels(10),
    )
    raw = digits("train")[np.arange(32)]
    batch = {"image": to_model_space(jnp.asarray(raw["image"])), "label": jnp.asarray(raw["label"])}
    start, variables, _ = train(family, batch, 30)
    key, log_prob = jax.random.key(0), jit(family.log_prob)
    first = -log_prob(start, batch, key)
    classify = evaluate_as_classifier(family, 10)
    last, metrics = jit(classify.evaluate)(variables, batch, key)
    assert float(last.mean()) < 0.6 * float(first.mean())
    by_class = jnp.stack(
        [log_prob(variables, {**batch, "label": jnp.full(32, k)}, key) for k in range(10)]
    )
    np.testing.assert_array_equal(
        metrics["accuracy"], np.asarray(by_class.argmax(0)) == raw["label"]
    )
    log_p = jax.nn.log_softmax(by_class, axis=0)[raw["label"], np.arange(32)]
    np.testing.assert_allclose(metrics["label_nats"], -log_p, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "passes"), [("gated, colours", 4 * 5 * 2), (LONG[1], 8 * 8)])
def test_how_many_passes_an_image_takes(name, passes):
    """One a number, or a pixel where a mixture has all of its channels."""
    assert build(name).sampling.passes == passes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gated", "pixelcnnpp", "transformer"])
def test_one_device_and_eight(name):
    """Also weight normalization's initialization, which sees the whole batch."""
    batch, _ = example(name)
    big = jax.tree.map(lambda v: jnp.tile(v, (8, *(1,) * (v.ndim - 1)))[:16], dict(batch))
    equal_on_one_and_eight(build(name), big)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_shape": (4, 4)}, "image_shape must be"),
        ({"likelihood": "gaussian"}, "likelihood must be one of categorical, mixture_of_logistics"),
        ({"num_values": 1}, "num_values must be at least 2, got 1"),
        ({"sampler": "quick"}, "sampler must be one of cached, naive, got 'quick'"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
    ],
)
def test_bad_input(options, message):
    arguments = {"image_shape": (4, 4, 1), **options}
    with pytest.raises(ValueError, match=message):
        autoregressive(PixelCNN(1), optax.sgd(0.1), **arguments)


def test_bad_batches_and_masks(key):
    batch, variables = example("pixelcnn")
    family = build("pixelcnn")
    with pytest.raises(ValueError, match=r"image_shape is \(5, 6, 1\), the images have"):
        family.log_prob(variables, {"image": jnp.zeros((2, 4, 4, 1))}, key)
    x = batch["image"]
    with pytest.raises(ValueError, match=r"known must have the shape \(3, 5, 6\), got \(3, 5\)"):
        family.complete(variables, key, x, jnp.ones((3, 5), bool))
    with pytest.raises(ValueError, match=r"given must have the shape \(3, 5, 6, 1\), got"):
        family.complete(variables, key, x[:, :4], jnp.ones((3, 5, 6), bool))
    with pytest.raises(ValueError, match="given and known must be given together"):
        family.complete(variables, key, x, None)


@pytest.mark.slow
def test_scales_of_pixelcnnpp_are_initialized_with_dropout(key):
    """As its authors' are: what dropout adds to the variance is normalized away too."""
    batch = {"image": jax.random.uniform(key, (4, 4, 4, 1), minval=-1.0)}
    scales = []
    for rate in (0.0, 0.5):
        network = PixelCNNPP(1, 4, 1, 1, 2, rate)
        family = autoregressive(
            network, optax.sgd(0.1), image_shape=(4, 4, 1), likelihood="mixture_of_logistics"
        )
        params = jit(family.init)(key, batch).params["pixelcnn"]
        scales.append(params["vertical"]["down0_0"]["conv2"]["scale"])
    assert not np.allclose(*scales)
