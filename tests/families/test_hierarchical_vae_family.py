"""The family of very deep VAEs keeps the contract, and its numbers are a bound."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from autoencoders import SHAPE, batch, evaluated, logged
from devices import equal_on_one_and_eight
from few_steps import train

from jaxgen.core import Variables
from jaxgen.distributions import likelihoods
from jaxgen.distributions.elementwise import gaussian_log_prob
from jaxgen.families.hierarchical_vae import hierarchical_vae
from jaxgen.models.hierarchical_vae import VDVAE
from jaxgen.training import pictures

NETWORK = VDVAE("8d2,4x1", "4x1,8m4,8x1", width=8, num_params=2, latent_dim=2)
SHAPES = {4: (1, 4, 4, 2), 8: (2, 8, 8, 2)}


def make(optimizer=None, network=NETWORK, likelihood=None, **options):
    return hierarchical_vae(
        network,
        likelihood or likelihoods.discretized_logistic(),
        optimizer or optax.adam(3e-3),
        **{"image_shape": SHAPE, "eight_bit": True, **options},
    )


@pytest.fixture(scope="module")
def trained():
    """(family, data, variables at first, after thirty steps, mean metrics).

    One image is at both ends of the values, pixel by pixel: its gradient is finite too.
    """
    family, data = make(), batch()
    ends = jnp.where(jnp.arange(64).reshape(1, *SHAPE) % 2 == 0, 1.0, -1.0)
    data = {"image": data["image"].at[:1].set(ends)}
    return family, data, *train(family, data, 30)


def test_steps_lower_the_loss(trained):
    family, data, first, last, metrics = trained
    pairs = zip(*(jax.tree.leaves(v.params) for v in (first, last)), strict=True)
    assert not any(np.array_equal(a, b) for a, b in pairs)
    assert all(np.isfinite(value) for value in metrics.values())
    before, after = (evaluated(family, v, data)[0] for v in (first, last))
    assert after.shape == (32,)
    assert after.dtype == jnp.float32
    assert after.mean() < 0.95 * before.mean()


def test_metrics(trained):
    """The parts add up, resolution by resolution; `log_prob` is the negative."""
    family, data, _, last, _ = trained
    values, metrics = evaluated(family, last, data)
    np.testing.assert_allclose(metrics["kl_4x4"] + metrics["kl_8x8"], metrics["kl"], rtol=1e-5)
    np.testing.assert_allclose(metrics["reconstruction"] + metrics["kl"], values, rtol=1e-5)
    np.testing.assert_allclose(metrics["bits_per_dim"] * 64 * np.log(2), values, rtol=1e-5)
    np.testing.assert_allclose(logged(family, last, data), -values, rtol=1e-5)
    assert (family.bound.kind, family.bound.num_dims, family.bound.eight_bit) == ("ELBO", 64, True)
    assert "bits_per_dim" not in evaluated(make(eight_bit=False), last, data)[1]


def test_the_bound_is_below_the_likelihood_of_a_linear_model():
    """Of a Gaussian likelihood whose image is one latent: log p(x) is known, and the bound, whose
    posterior is exact, meets it on average.

    The decoder's mean is z, the likelihood N(z, 1), so x is N(0, 2) and z given x is N(x/2, 1/2).
    """
    network = VDVAE("1x1", "1x1", width=1, num_params=1, latent_dim=1, bottleneck=1.0)
    family = make(network=network, likelihood=likelihoods.gaussian(), image_shape=(1, 1, 1))
    x = jnp.array([0.3, -0.8]).reshape(2, 1, 1, 1)
    shapes = jax.eval_shape(family.init, jax.random.key(0), {"image": x})
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes.params)
    for path in ("latents", "conv_out"):  # z to the image, as it is
        tree = params["decoder"]
        leaf = tree[path] if path == "conv_out" else tree["blocks1"][path]
        leaf["kernel"] = jnp.ones_like(leaf["kernel"])
    params["decoder"]["gain"] = jnp.ones(1)
    # The posterior says the same of every image: N(0.15, 1/2), exact for the first of them.
    bias = params["decoder"]["blocks1"]["posterior"]["conv4"]["bias"]
    params["decoder"]["blocks1"]["posterior"]["conv4"]["bias"] = bias.at[:].set(
        jnp.array([[0.15, 0.5 * np.log(0.5)]])
    )
    draw = jax.jit(jax.vmap(lambda key: family.log_prob(Variables(params), {"image": x}, key)))
    bound = draw(jax.random.split(jax.random.key(0), 4000)).mean(axis=0)
    exact = gaussian_log_prob(x[:, 0, 0, 0], 0.0, float(np.log(2)))
    # KL(q || p(z | x)) is what the bound lacks: 0, and (0.15 + 0.4)^2 of the second.
    np.testing.assert_allclose(bound, exact - jnp.array([0.0, 0.55**2]), atol=0.03)


def test_sample_encode_decode(trained):
    family, data, _, last, _ = trained
    key = jax.random.key(0)
    latents = jax.jit(family.encode)(last, data, key)
    assert jax.tree.map(lambda z: z.shape[1:], latents) == SHAPES
    rebuilt = jax.jit(family.decode)(last, latents, key)
    assert rebuilt.shape == data["image"].shape
    errors = [np.square(x - data["image"]).mean() for x in (rebuilt, 0 * rebuilt)]
    assert errors[0] < 0.9 * errors[1]
    sample = jax.jit(family.sample, static_argnums=2)
    images = sample(last, key, 3)
    assert images.shape == (3, *SHAPE)
    np.testing.assert_array_equal(images, sample(last, key, 3))
    assert not np.array_equal(images, sample(last, jax.random.key(1), 3))


def test_temperature(trained):
    """That many times noise are its latents; at 0 they are their priors' means."""
    _, _, _, last, _ = trained
    family, keys = make(output="mean", temperature=0.5), jax.random.split(jax.random.key(3))
    sample = jax.jit(family.sample, static_argnums=2, static_argnames="temperature")
    noise = jax.tree.map(lambda z: 0.5 * z, family.latents.draw(keys[0], 2))
    half = jax.jit(family.decode)(last, noise, jax.random.key(0))
    np.testing.assert_allclose(sample(last, jax.random.key(3), 2), half, atol=1e-5)
    one, other = (sample(last, key, 2, temperature=0.0) for key in keys)
    np.testing.assert_array_equal(one, other)


def test_what_can_be_drawn(trained):
    family, data, _, last, _ = trained
    drawn = pictures.of(family)
    assert set(drawn) == {"interpolation", "between_examples", "reconstructions"}
    draw = jax.jit(drawn["between_examples"], static_argnums=(3, 4))
    assert draw(last, data, jax.random.key(0), 2, 3).shape == (6, *SHAPE)


def test_who_hears_of_updates_that_are_left_out():
    family = make(skip_norm=400.0)
    assert family.optimizers["vae"].skip_norm == 400.0
    assert "more than 50% of the updates are skipped" in family.watch({"left_out": 0.6})[0]
    assert not family.watch({"left_out": 0.5})
    assert not family.watch({"loss": 1.0})


@pytest.mark.slow
def test_eight_devices_equal_one():
    equal_on_one_and_eight(make(optax.sgd(1e-4)), batch(16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_shape": (8, 4, 1)}, "image_shape must be that of the network, 8x8 pixels"),
        ({"image_shape": (16, 16, 1)}, r"8x8 pixels, got \(16, 16, 1\)"),
        ({"image_shape": (8, 8, 3)}, "must be 6, as the likelihood of 3 channels needs, got 2"),
        ({"output": "median"}, "output must be one of mean, mode, sample"),
        ({"temperature": -1.0}, "temperature must be 0 or more and finite, got -1"),
        ({"network": NETWORK.clone(latent_dim=0)}, "latent_dim must be at least 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_data_that_do_not_fit():
    data, key = batch(4), jax.random.key(0)
    with pytest.raises(ValueError, match="must be one of the 256 values"):
        make().init(key, {**data, "image": data["image"] * 0.999})
    with pytest.raises(ValueError, match=r"image_shape is \(8, 8, 1\), but the data has"):
        make().init(key, {"image": jnp.zeros((4, 8, 4, 1))})
    family = make()
    variables = jax.eval_shape(family.init, key, data)
    with pytest.raises(ValueError, match="condition"):
        family.sample(variables, key, 2, condition=jnp.zeros(2, jnp.int32))
    with pytest.raises(ValueError, match="temperature must be 0 or more"):
        family.sample(variables, key, 2, temperature=-0.5)
