"""The families of autoencoders keep the contract, and their numbers are those of the papers."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from autoencoders import (
    CLASSES,
    LATENT,
    SHAPE,
    batch,
    evaluated,
    logged,
    make_autoencoder,
    make_vae,
    make_vqvae,
    moved,
    trained_on,
)
from devices import equal_on_one_and_eight

from jaxgen.core import Variables
from jaxgen.distributions import likelihoods
from jaxgen.families import vae
from jaxgen.losses.perceptual import by_features
from jaxgen.models import vae as networks
from jaxgen.models.realnvp import realnvp
from jaxgen.training import averages
from jaxgen.training.step import init_state, make_step

FIVE = jnp.float32(5)
VARIANTS = {
    "conditional, all modifications": (
        make_vae,
        {
            "conditioning": CLASSES,
            "beta": 2.0,
            "kl_warmup_steps": 3,
            "free_bits": 0.1,
            "mmd_weight": 10.0,
            "perceptual": by_features(lambda scale, x: [scale * x[:, ::2], 0.1 * x], FIVE),
        },
    ),
    "conditional, learned prior": (
        make_vae,
        {"conditioning": CLASSES, "prior": realnvp(2, (4,)), "mmd_weight": 10.0},
    ),
    "dreg": (make_vae, {"objective": "dreg", "num_importance": 4, "bound_samples": 5}),
    "autoencoder": (make_autoencoder, {}),
    "vqvae": (make_vqvae, {}),
}


@pytest.fixture(scope="module", params=list(VARIANTS))
def trained(request):
    """(name, family, data, first state, what forty steps make of it)."""
    maker, options = VARIANTS[request.param]
    family, data = maker(**options), batch()
    kept = {"ema": averages.warmed_up(0.9)}
    first = jax.jit(lambda: init_state(family, jax.random.key(0), data, averages=kept))()
    step = jax.jit(make_step(family, averages=kept))
    results, state = [], first
    for i in range(40):
        results.append(step(state, family.fixed, data, jax.random.key(i)))
        state = results[-1].state
    assert step._cache_size() == 1
    return request.param, family, data, first, results


def test_steps_lower_the_loss(trained):
    """Every metric is finite, every parameter moves, and so does what is evaluated, downwards."""
    _, family, data, first, results = trained
    last = results[-1].state
    pairs = zip(*(jax.tree.leaves(s.params) for s in (first, last)), strict=True)
    assert not any(np.array_equal(a, b) for a, b in pairs)
    for total, weight in results[-1].metrics.values():
        assert np.isfinite(total)
        assert weight > 0
    assert int(results[-1].bad) == -1
    before, after = (
        evaluated(family, Variables(s.params, s.state, family.fixed), data, 9)[0]
        for s in (first, last)
    )
    assert after.shape == (32,)
    assert after.dtype == jnp.float32
    assert after.mean() < 0.95 * before.mean()


def test_metrics(trained):
    name, family, data, _, results = trained
    variables = last_variables(results, family)
    values, metrics = evaluated(family, variables, data)
    assert all(v.shape == (32,) for v in metrics.values())
    if name == "autoencoder":
        np.testing.assert_allclose(metrics["mse"] * 64, values, rtol=1e-5)
        assert family.log_prob is None
        return
    np.testing.assert_allclose(metrics["bits_per_dim"] * 64 * np.log(2), values, rtol=1e-5)
    log_prob = logged(family, variables, data)
    np.testing.assert_allclose(log_prob, -values, rtol=1e-5)
    if name == "vqvae":
        bound = metrics["reconstruction"] + 16 * math.log(8)  # 4x4 positions, 8 codes
        np.testing.assert_allclose(bound, values, rtol=1e-6)
        indices = np.asarray(family.encode(variables, data, jax.random.key(0)))
        shares = np.bincount(indices.ravel(), minlength=8) / indices.size
        entropy = -sum(p * math.log(p) for p in shares if p)
        np.testing.assert_allclose(metrics["perplexity"], math.exp(entropy), rtol=1e-5)
        np.testing.assert_allclose(metrics["usage"], (shares > 0).mean(), rtol=1e-6)
    else:
        parts = metrics["reconstruction"] + metrics["kl"]
        np.testing.assert_allclose(parts, metrics["negative_elbo"], rtol=1e-5)


def test_sample_encode_decode(trained):
    name, family, data, _, results = trained
    variables, key = last_variables(results, family), jax.random.key(0)
    digits = None if "conditional" not in name else jnp.array([0, 1, 2])
    latents = jax.jit(family.encode)(variables, data, key)
    options = {} if digits is None else {"condition": data["label"]}
    rebuilt = jax.jit(lambda z: family.decode(variables, z, key, **options))(latents)
    assert rebuilt.shape == data["image"].shape
    assert np.abs(rebuilt).max() <= 1
    if name in ("autoencoder", "vqvae"):
        assert family.sample is None
        return
    sample = jax.jit(lambda key: family.sample(variables, key, 3, condition=digits))
    images = sample(key)
    assert images.shape == (3, *SHAPE)
    assert np.abs(images).max() <= 1
    np.testing.assert_array_equal(images, sample(key))
    assert not np.array_equal(images, sample(jax.random.key(1)))


def test_latent_spaces(trained):
    """Normal vectors of a VAE; an autoencoder's have no prior; codes are none that one walks in."""
    name, family, data, _, results = trained
    if name == "vqvae":
        assert family.latents is None
        return
    assert family.latents.width == LATENT
    latents = family.encode(last_variables(results, family), data, jax.random.key(0))
    path = family.latents.interpolate(latents[:2], latents[2:4], 3)
    assert path.shape == (3, 2, LATENT)
    np.testing.assert_allclose(path[::2], latents[:4].reshape(2, 2, LATENT), rtol=1e-4, atol=1e-5)
    if name == "autoencoder":
        assert family.latents.draw is None
        return
    drawn = family.latents.draw(jax.random.key(0), 1000)
    assert drawn.shape == (1000, LATENT)
    np.testing.assert_allclose(drawn.std(axis=0), 1, atol=0.1)


def last_variables(results, family):
    """What the forty steps made, without the average."""
    return Variables(results[-1].state.params, results[-1].state.state, family.fixed)


def values(**options):
    """(loss, metrics) in training at equal parameters and key."""
    family = make_vae(likelihoods.gaussian(), features=(), eight_bit=False, **options)
    variables, data = place()
    return trained_on(family, variables._replace(fixed=family.fixed), data)


@cache
def place():
    """Variables and data, the same for all weights."""
    family, data = make_vae(likelihoods.gaussian(), features=(), eight_bit=False), batch(16)
    return moved(family, data), data


def test_what_each_weight_weighs():
    base, aux = values()
    kl = aux.metrics["kl"]
    np.testing.assert_allclose(values(beta=3.0)[0] - base, 2 * kl, rtol=1e-3)
    loss, aux = values(mmd_weight=1000.0)
    np.testing.assert_allclose(loss - base, 1000 * aux.metrics["mmd"], rtol=1e-2, atol=1e-2)
    assert len(set(np.asarray(aux.metrics["mmd"]).tolist())) == 1
    loss, _ = values(free_bits=5.0)  # above every latent's KL
    np.testing.assert_allclose(loss - aux.metrics["reconstruction"], LATENT * 5.0, rtol=1e-3)
    distance = by_features(lambda scale, x: scale * x, FIVE)
    loss, aux = values(perceptual=distance, perceptual_weight=0.5)
    np.testing.assert_allclose(loss - base, 0.5 * aux.metrics["perceptual"], rtol=1e-3)
    zero, aux = values(kl_warmup_steps=4)
    np.testing.assert_allclose(zero, aux.metrics["reconstruction"], rtol=1e-6)


def test_the_perceptual_distance_is_a_metric_of_the_reconstruction():
    """In the arrays of `fixed`, whatever its weight; the bound is as it is without."""
    distance = by_features(lambda scale, x: scale * x, FIVE)
    family = make_vae(likelihoods.gaussian(), features=(), eight_bit=False, perceptual=distance)
    plain = make_vae(likelihoods.gaussian(), features=(), eight_bit=False)
    variables, data = place()
    variables = variables._replace(fixed={"perceptual": jnp.float32(2)})
    value, metrics = evaluated(family, variables, data)
    np.testing.assert_allclose(value, evaluated(plain, variables, data)[0], rtol=1e-6)
    # Of a Gaussian the reconstruction error is half the squares, and a constant.
    squares = 2 * (metrics["reconstruction"] - 32 * math.log(2 * math.pi))
    np.testing.assert_allclose(metrics["perceptual"], 2**2 * squares, rtol=1e-3)
    assert family.fixed == {"perceptual": FIVE}


def test_iwae_and_dreg_are_one_number_and_tighter():
    iwae, aux = values(objective="iwae", num_importance=8)
    np.testing.assert_allclose(values(objective="dreg", num_importance=8)[0], iwae, rtol=1e-5)
    assert iwae.mean() < aux.metrics["negative_elbo"].mean()


def test_warmup_follows_the_step_in_training_only():
    data = batch(16)
    family = make_vae(kl_warmup_steps=4, beta=2.0)
    variables = moved(family, data)
    shares = []
    for step in range(6):
        loss, aux = trained_on(family, variables, data, step=step)
        excess = (loss - aux.metrics["reconstruction"]) / aux.metrics["kl"]
        shares.append(float(excess.mean()))
        assert aux.state is None
    np.testing.assert_allclose(shares, [0, 0.5, 1, 1.5, 2, 2], atol=1e-3)
    values, metrics = evaluated(family, variables, data)
    np.testing.assert_allclose(values, metrics["negative_elbo"], rtol=1e-6)


@pytest.mark.parametrize(
    ("maker", "metrics", "word"),
    [
        (make_vae, {"active_units": 0.01}, "posterior has collapsed"),
        (make_vae, {"active_units": 0.05}, None),
        (make_vae, {"loss": 1.0}, None),
        (make_vqvae, {"usage": 0.01}, "codebook has collapsed"),
        (make_vqvae, {"usage": 0.02}, None),
    ],
)
def test_warnings(maker, metrics, word):
    warnings = maker().watch(metrics)
    assert [word in w for w in warnings] == ([] if word is None else [True])


def test_outputs():
    """Samples of the model have noise in each pixel; means have none."""
    data = batch()
    bernoulli = likelihoods.bernoulli()
    images = {}
    for output in ("mean", "mode", "sample"):
        family = make_vae(bernoulli, output=output, eight_bit=False)
        variables = moved(family, data)
        sample = jax.jit(family.sample, static_argnums=2)
        images[output] = np.asarray(sample(variables, jax.random.key(0), 4))
    np.testing.assert_array_equal(np.sign(images["mean"]), images["mode"])
    assert set(np.unique(images["sample"])) == {-1, 1}
    assert not np.array_equal(images["sample"], images["mode"])


@pytest.mark.slow
def test_eight_devices_equal_one():
    """Parameters and warm-up after two steps under jit, statistics of the batch in the loss."""
    family = make_vae(
        optimizer=optax.sgd(1e-3), mmd_weight=1.0, free_bits=0.1, kl_warmup_steps=2, features=()
    )
    equal_on_one_and_eight(family, batch(16))


@pytest.mark.parametrize(
    ("maker", "options", "message"),
    [
        (make_vae, {"latent_dim": 0}, "latent_dim must be at least 1, got 0"),
        (make_vae, {"image_shape": (8, 8, 0)}, "image_shape must be"),
        (make_vae, {"num_importance": 0}, "num_importance must be at least 1, got 0"),
        (make_vae, {"bound_samples": 0}, "bound_samples must be at least 1, got 0"),
        (make_vae, {"bound_chunk": -1}, "bound_chunk must be at least 1"),
        (make_vae, {"beta": -1.0}, "beta must be 0 or more, got -1"),
        (make_vae, {"mmd_weight": float("nan")}, "mmd_weight must be 0 or more"),
        (make_vae, {"objective": "elbow"}, "objective must be"),
        (make_vae, {"free_bits": 1.0, "prior": realnvp()}, r"free_bits needs the prior N\(0, I\)"),
        (make_vae, {"output": "median"}, "output must be"),
        (make_vae, {"objective": "iwae", "beta": 2.0}, "belong to the objective 'elbo'"),
        (make_vqvae, {"num_codes": 1}, "num_codes must be at least 2, got 1"),
        (make_vqvae, {"decay": 1.0}, r"decay must lie in \[0, 1\), got 1"),
        (make_vqvae, {"revive_below": -0.1}, "revive_below must lie in"),
        (make_vqvae, {"commitment_weight": -1.0}, "commitment_weight must be 0 or more"),
    ],
)
def test_bad_options(maker, options, message):
    with pytest.raises(ValueError, match=message):
        maker(**options)


@pytest.mark.parametrize("maker", [make_vae, make_vqvae])
def test_data_outside_the_support(maker):
    """Refused with concrete data, before any training."""
    data = batch(4)
    with pytest.raises(ValueError, match=r"data must lie in \[-1, 1\]"):
        maker().init(jax.random.key(0), {**data, "image": data["image"] * 255})
    with pytest.raises(ValueError, match="must be one of the 256 values"):
        maker().init(jax.random.key(0), {**data, "image": data["image"] * 0.999})


def test_networks_that_do_not_fit():
    data, key = batch(4), jax.random.key(0)
    with pytest.raises(ValueError, match=r"image_shape is \(8, 9, 1\), but the data has"):
        make_vae(image_shape=(8, 9, 1)).init(key, data)
    with pytest.raises(ValueError, match=r"latent_dim is 4, but the encoder has \(3,\)"):
        make_vae(latent_dim=4).init(key, data)
    decoder = networks.DenseDecoder((8, 8), 1, ())
    family = vae.vae(
        networks.DenseEncoder(LATENT, ()),
        decoder,
        likelihoods.discretized_logistic(),
        optax.adam(1e-3),
        latent_dim=LATENT,
        image_shape=SHAPE,
    )
    with pytest.raises(
        ValueError, match=r"decoder makes \(8, 8, 1\), but images .* need \(8, 8, 2\)"
    ):
        family.init(key, data)
    conditional = make_vae(conditioning=CLASSES)
    variables = conditional.init(key, data)
    with pytest.raises(ValueError, match="condition must be given"):
        conditional.sample(variables, key, 2)


def test_gradients_at_extremes():
    """Images at both ends and latents far out: loss and gradient stay finite."""
    family = make_vae()
    data = {"image": jnp.where(jnp.arange(64).reshape(1, 8, 8, 1) % 2 == 0, 1.0, -1.0)}
    data = {"image": jnp.tile(data["image"], (2, 1, 1, 1))}
    variables = jax.jit(family.init)(jax.random.key(0), data)
    wild = jax.tree.map(lambda p: 100 * p, variables.params)

    def objective(params):
        return trained_on(family, Variables(params), data)[0].sum()

    value, grads = jax.jit(jax.value_and_grad(objective))(wild)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
