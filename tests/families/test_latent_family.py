"""Two stages: a PixelCNN over the codes of a small VQ-VAE, on the embedded digits."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from autoencoders import (
    batch,
    evaluated,
    logged,
    make_autoencoder,
    make_vae,
    make_vqvae,
    trained_on,
)

from jaxgen.conditioning.labels import labels
from jaxgen.core import Bound, Variables
from jaxgen.data.latents import LATENTS, cache_latents, prepare_latents
from jaxgen.data.sources import ArraySource, digits
from jaxgen.data.transforms import prepare_images
from jaxgen.distributions import likelihoods
from jaxgen.families.autoregressive import autoregressive
from jaxgen.families.latent import NAME, Codec, codes, continuous, latent_scale, on_latents
from jaxgen.models.pixelcnn import GatedPixelCNN, PixelCNN
from jaxgen.training import averages
from jaxgen.training.fit import fit

CODES, MAP = 8, (4, 4, 1)
KEY = jax.random.key(0)


@cache
def first_stage():
    """A VQ-VAE, trained a little, and its variables on the host."""
    family = make_vqvae(optax.adam(3e-3))
    return family, jax.device_get(fit(family, batch(64), 60).variables)


@cache
def make_codec():
    return codes(*first_stage(), num_codes=CODES)


def second_stage(optimizer=None, **options):
    return autoregressive(
        PixelCNN(1, CODES, 8, 1, 8),
        optimizer or optax.adam(1e-2),
        **{"image_shape": MAP, "num_values": CODES, **options},
    )


def decoded(indices):
    """What the first stage makes of indices of codes."""
    family, variables = first_stage()
    return jax.jit(family.decode)(variables, jnp.asarray(indices), KEY)


@cache
def trained():
    """The second stage on its first one, and what forty steps made of it."""
    family = on_latents(second_stage(), make_codec())
    return family, fit(family, batch(64), 40, averages={"ema": averages.warmed_up(0.9)})


@pytest.mark.parametrize("num_codes", [2, 3, 512, 65_536])
def test_every_index_there_and_back(num_codes):
    """Exactly, through values that the autoregressive family takes for different ones; no
    likelihood is needed."""
    indices = jnp.arange(num_codes).reshape(1, -1, 1)

    def decode(variables, latents, key):
        assert latents.dtype == jnp.int32
        return latents

    functions = {"encode": lambda v, b, key: b["image"], "decode": decode, "log_prob": None}
    codec = codes(make_vqvae()._replace(**functions), Variables({}), num_codes=num_codes)
    assert codec.log_ratio is None
    encoded = jax.jit(codec.encode)(codec.fixed, {"image": indices}, KEY)["image"]
    assert encoded.shape == (1, num_codes, 1, 1)
    assert encoded.dtype == jnp.float32
    np.testing.assert_allclose(encoded.ravel(), np.linspace(-1, 1, num_codes), atol=1e-6)
    np.testing.assert_array_equal(jax.jit(codec.decode)(codec.fixed, encoded, KEY), indices)
    classes = jnp.round((encoded + 1) / 2 * (num_codes - 1))  # the autoregressive family's
    np.testing.assert_array_equal(classes[..., 0], indices)
    lost = codec.decode(codec.fixed, encoded.at[0, 0].set(jnp.nan), KEY)
    assert (lost[0, 0] == num_codes).all()  # the index of no code
    beyond = codec.encode(codec.fixed, {"image": indices + 1}, KEY)["image"]
    np.testing.assert_array_equal(np.isnan(beyond).ravel(), indices.ravel() + 1 == num_codes)


def real_first_stage():
    """Latents 3 x + noise of deviation 0.1, and an option that shifts them."""

    def encode(variables, batch, key, *, shift=0.0):
        x = batch["image"]
        return variables.params["w"] * x + shift + 0.1 * jax.random.normal(key, x.shape)

    def decode(variables, latents, key, *, condition=None):
        return latents / variables.params["w"]

    family = make_vae()._replace(encode=encode, decode=decode)
    return family, Variables({"w": jnp.float32(3.0)})


def test_real_latents_there_and_back():
    """Of unit deviation by the scale that is measured; the scale travels with the arrays."""
    first, data = real_first_stage(), batch(16)
    halves = [{k: v[i::2] for k, v in data.items()} for i in range(2)]
    scale = latent_scale(*first, halves)
    deviation = np.sqrt(9 * np.var(data["image"]) + 0.01)
    assert scale == pytest.approx(1 / deviation, rel=2e-2)
    assert scale == float(f"{scale:.4g}")
    assert latent_scale(*first, halves, shift=5.0) == pytest.approx(scale, rel=1e-3)
    codec = continuous(*first, scale=scale)
    encoded = jax.jit(codec.encode)(codec.fixed, data, KEY)
    assert np.std(encoded["image"]) == pytest.approx(1, rel=2e-2)
    assert set(encoded) == set(data)
    latents = first[0].encode(first[1], data, KEY)
    np.testing.assert_allclose(encoded["image"], scale * latents, rtol=1e-5)
    rebuilt = jax.jit(codec.decode)(codec.fixed, encoded["image"], KEY)
    np.testing.assert_allclose(rebuilt, data["image"], atol=0.2)
    shifted = continuous(*first, scale=scale, shift=5.0)
    moved = shifted.encode(shifted.fixed, data, KEY)["image"] - encoded["image"]
    np.testing.assert_allclose(moved, 5 * scale, rtol=1e-3)
    changed = {**codec.fixed, "scale": 2 * codec.fixed["scale"]}
    doubled = codec.encode(changed, data, KEY)["image"]
    np.testing.assert_allclose(doubled, 2 * encoded["image"], rtol=1e-5)
    assert codec.log_ratio is None


def test_latents_that_are_not_real():
    first = real_first_stage()
    same = [{"image": jnp.zeros((2, 8, 8, 1))}]
    silent = first[0]._replace(encode=lambda variables, batch, key: 0 * batch["image"])
    for batches in ([], same):
        with pytest.raises(ValueError, match="batches must have latents that differ"):
            latent_scale(silent, first[1], batches)
    with pytest.raises(ValueError, match="scale must be positive, got 0"):
        continuous(*first, scale=0.0)
    whole = first[0]._replace(encode=lambda variables, batch, key: jnp.zeros(3, jnp.int32))
    codec = continuous(whole, first[1])
    with pytest.raises(ValueError, match="latents must be real, got int32: codes?"):
        codec.encode(codec.fixed, same[0], KEY)
    with pytest.raises(ValueError, match="must have encode and decode"):
        continuous(first[0]._replace(decode=None), first[1])


def test_codec_passes_on_conditions_and_weights():
    family, variables = first_stage()
    data = {**batch(), "weight": jnp.ones(32).at[5].set(0.0)}
    codec = make_codec()
    encoded = jax.jit(codec.encode)(codec.fixed, data, KEY)
    assert set(encoded) == set(data)
    for name in ("label", "weight"):
        np.testing.assert_array_equal(encoded[name], data[name])
    rebuilt = jax.jit(codec.decode)(codec.fixed, encoded["image"], KEY)
    expected = decoded(jax.jit(family.encode)(variables, data, KEY))
    np.testing.assert_allclose(rebuilt, expected, rtol=1e-6)


def test_training_lowers_the_loss_and_leaves_the_first_stage():
    family, result = trained()
    data = batch(64)
    before = jax.jit(family.init)(KEY, data, family.fixed)
    assert result.num_skipped == 0
    values = [evaluated(family, v, data)[0].mean() for v in (before, result.variables)]
    assert values[1] < values[0] - 1
    # What is fixed is what it was, and nowhere but in `fixed`.
    assert set(result.variables.fixed) == {NAME}
    jax.tree.map(np.testing.assert_array_equal, result.variables.fixed[NAME], first_stage()[1])
    kept = {
        name for leaf in (result.state.params, *result.state.averages.values()) for name in leaf
    }
    assert kept == set(result.variables.params) == set(before.params)
    own = {p.shape for p in jax.tree.leaves(result.state.params)}
    first = {p.shape for p in jax.tree.leaves(first_stage()[1].params)}
    assert {p.shape for p in jax.tree.leaves(result.state.opt_state) if p.ndim} <= own
    assert not first <= own  # else this says nothing


def test_gradients_stay_out_of_the_first_stage():
    """Not even where its latents are continuous and one asks for the gradient."""
    scaled = Codec(
        lambda fixed, batch, key: {**batch, "image": fixed * batch["image"]},
        lambda fixed, latents, key: latents / fixed,
        jnp.float32(0.5),
    )
    second = make_vae(likelihoods.gaussian(), features=(), eight_bit=False)
    data, key = batch(4), jax.random.key(1)
    halved = {**data, "image": 0.5 * data["image"]}
    family = on_latents(second, scaled)
    variables = jax.jit(family.init)(key, data, family.fixed)

    def total(fixed):
        changed = variables._replace(fixed={NAME: fixed})
        return family.phases[0].loss(changed, data, KEY, jnp.int32(0))[0].sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(family.fixed[NAME])
    assert gradient == 0
    np.testing.assert_allclose(value, trained_on(second, variables, halved)[0].sum(), rtol=1e-6)
    assert family.latents is second.latents
    latents = jax.jit(family.encode)(variables, data, KEY)
    np.testing.assert_allclose(latents, second.encode(variables, halved, KEY), rtol=1e-6)
    assert family.log_prob is None  # a scale has a density to account for, which nobody stated


def test_samples_are_images():
    family, result = trained()
    sample = jax.jit(lambda key: family.sample(result.variables, key, 6))
    images = np.asarray(sample(KEY))
    assert images.shape == (6, 8, 8, 1)
    assert np.abs(images).max() <= 1
    assert not np.array_equal(images, sample(jax.random.key(1)))
    assert family.sampling.passes == 4 * 4 + 1  # of each code, and of the decoder


def test_images_are_completed_by_their_latents():
    """Those of which all pixels are known; the others are drawn, and known pixels stay."""
    first, variables = first_stage()

    def complete(variables, key, given, known, *, condition=None):
        return jnp.where(known[..., None], given, 2 * condition.reshape(-1, 1, 1, 1) / 7 - 1)

    second = second_stage()._replace(complete=complete)
    family = on_latents(second, make_codec())
    assert on_latents(second, make_codec(), cached=True).complete is None
    x, condition = batch(2)["image"], jnp.array([3, 5])
    known = jnp.broadcast_to(jnp.arange(8) < 5, (2, 8, 8)).swapaxes(1, 2)  # two rows and a half
    given = Variables({}, fixed=family.fixed)
    completed = jax.jit(family.complete)(given, KEY, x, known, condition=condition)
    np.testing.assert_array_equal(completed[:, :5], x[:, :5])
    seen = {"image": jnp.where(known[..., None], x, 0)}
    indices = np.array(jax.jit(first.encode)(variables, seen, KEY))
    indices[:, 2:] = np.array([3, 5])[:, None, None]
    np.testing.assert_allclose(completed[:, 5:], decoded(indices)[:, 5:], atol=1e-6)
    # What is not known has no part in it.
    other = jax.jit(family.complete)(given, KEY, x.at[:, 5:].set(1.0), known, condition=condition)
    np.testing.assert_array_equal(other, completed)
    vectors = make_codec()._replace(encode=lambda *_: {"image": jnp.zeros((2, 16))})
    with pytest.raises(ValueError, match=r"latents must be maps \[B, h, w, D\].*got \[2, 16\]"):
        on_latents(second, vectors).complete(given, KEY, x, known, condition=condition)


def test_the_second_stage_chooses_the_codes():
    """Its conditions reach it; what it draws is decoded, and what is encoded is what it sees."""
    first, variables = first_stage()

    def sample(variables, key, num, *, condition=None, shift=0):
        index = (condition + shift).reshape(-1, 1, 1, 1)
        return jnp.broadcast_to(2 * index / (CODES - 1) - 1, (num, *MAP)).astype(jnp.float32)

    second = second_stage()._replace(
        sample=sample,
        encode=lambda variables, batch, key: batch["image"][:, 0, 0],
        decode=lambda variables, latents, key, *, condition=None: jnp.broadcast_to(
            latents[:, None, None], (latents.shape[0], *MAP)
        ),
    )
    family = on_latents(second, make_codec())
    two = Variables({}, {}, family.fixed)
    draw = jax.jit(lambda two: family.sample(two, KEY, 32, condition=jnp.arange(32) % 7, shift=1))
    ones = np.ones((1, 4, 4), np.int32)
    expected = decoded((np.arange(32) % 7 + 1).reshape(-1, 1, 1) * ones)
    np.testing.assert_allclose(draw(two), expected, rtol=1e-6)
    corners = jax.jit(family.encode)(two, batch(), KEY)
    indices = jax.jit(first.encode)(variables, batch(), KEY)
    np.testing.assert_allclose(corners[:, 0], 2 * indices[:, 0, 0] / (CODES - 1) - 1, atol=1e-6)
    rebuilt = jax.jit(family.decode)(two, corners, KEY)
    np.testing.assert_allclose(rebuilt, decoded(indices[:, :1, :1] * ones), rtol=1e-6)


def test_conditions_of_the_second_stage():
    """A second stage of classes learns from the batch's labels, beside images."""
    network = GatedPixelCNN(1, CODES, 8, 1, 3, 8)
    second = autoregressive(
        network, optax.sgd(0.1), image_shape=MAP, num_values=CODES, conditioning=labels(10)
    )
    family = on_latents(second, make_codec())
    assert family.conditioning is second.conditioning
    assert family.bound.given == "label"
    variables = jax.jit(family.init)(KEY, batch(), family.fixed)
    variables = variables._replace(params=jax.tree.map(lambda p: p + 0.1, variables.params))
    nats = logged(family, variables, batch())
    others = logged(family, variables, {**batch(), "label": (batch()["label"] + 1) % 10})
    assert np.isfinite(nats).all()
    assert not np.allclose(nats, others, rtol=1e-5)


def test_likelihood_of_the_data():
    """-log p(x | codes) - log p(codes): with uniform codes the first stage's own bound."""
    first, first_variables = first_stage()
    family, result = trained()
    data = batch()
    assert family.bound == Bound("ELBO", 64, eight_bit=True)
    values, metrics = evaluated(family, result.variables, data)
    np.testing.assert_allclose(logged(family, result.variables, data), -values, rtol=1e-6)
    np.testing.assert_allclose(metrics["first_stage"] + metrics["second_stage"], values, rtol=1e-6)
    _, of_first = evaluated(first, first_variables, data)
    np.testing.assert_allclose(metrics["first_stage"], of_first["reconstruction"], rtol=1e-4)
    np.testing.assert_allclose(metrics["bits_per_dim"], values / 64 / math.log(2), rtol=1e-5)
    latent_bits = metrics["second_stage"] / 16 / math.log(2)
    np.testing.assert_allclose(metrics["bits_per_latent_dim"], latent_bits, rtol=1e-5)
    # All logits 0 are a uniform prior.
    uniform = result.variables._replace(
        params=jax.tree.map(jnp.zeros_like, result.variables.params)
    )
    bound = logged(first, first_variables, data)
    np.testing.assert_allclose(logged(family, uniform, data), bound, rtol=1e-4)
    assert values.mean() < -bound.mean()  # a fitted prior tightens it


def test_no_likelihood_without_both_parts():
    codec, second = make_codec(), second_stage()
    for family in (
        on_latents(second, codec._replace(log_ratio=None)),
        on_latents(second._replace(log_prob=None, bound=None), codec),
        on_latents(second, codec, cached=True),
    ):
        assert family.log_prob is None
        assert family.bound is None
    assert on_latents(make_vae(), codec).encode is not None
    assert on_latents(make_vae(), codec, cached=True).encode is None
    without = make_autoencoder()._replace(encode=lambda v, b, key: jnp.zeros((2, 4, 4), jnp.int32))
    assert codes(without, Variables({}), num_codes=2).log_ratio is None


def cached_source(path=None, first_stage="the codes of a test", **options):
    codec = make_codec()
    prepare = prepare_images(flip=False)
    encode = jax.jit(lambda fixed, raw: codec.encode(fixed, prepare(KEY, raw, False), KEY)["image"])
    calls = []

    def counted(raw, number):
        assert number == len(calls)
        calls.append(raw["image"].shape)
        return encode(codec.fixed, raw)

    source = options.pop("source", digits("test"))
    latents = cache_latents(counted, source, path, first_stage=first_stage, batch_size=64)
    return latents, calls


def test_cached_latents_train_alike():
    """The loss on cached latents is that on the images they are of, number for number."""
    latents, calls = cached_source()
    assert calls == [(64, 8, 8, 1)] * 5  # 297 examples; one shape, one compilation
    source = digits("test")
    assert len(latents) == 297
    assert latents.num_classes == 10
    np.testing.assert_array_equal(latents.arrays["label"], source.arrays["label"])
    assert latents.spec[LATENTS] == (MAP, np.float32)
    codec, rows = make_codec(), np.array([296, 3, 64, 7])
    on_images = on_latents(second_stage(), codec)
    on_cached = on_latents(second_stage(), codec, cached=True)
    images = prepare_images(flip=False)(KEY, jax.tree.map(jnp.asarray, source[rows]), False)
    stored = prepare_latents()(KEY, jax.tree.map(jnp.asarray, latents[rows]), True)
    assert set(stored) == {"image", "label"}
    variables = jax.jit(on_images.init)(KEY, images, on_images.fixed)
    same = jax.jit(on_cached.init)(KEY, stored, on_cached.fixed)
    jax.tree.map(np.testing.assert_array_equal, variables, same)
    values = [
        trained_on(family, variables, data)
        for family, data in ((on_images, images), (on_cached, stored))
    ]
    np.testing.assert_allclose(values[0][0], values[1][0], rtol=1e-6)
    assert set(values[0][1].metrics) == set(values[1][1].metrics) == {"bits_per_latent_dim"}


def test_cached_latents_on_disk(tmp_path):
    """Computed once, read after, and refused where they are of something else."""
    path = tmp_path / "below" / "latents.npz"
    written, calls = cached_source(path)
    assert len(calls) == 5
    assert [p.name for p in path.parent.iterdir()] == ["latents.npz"]
    read, calls = cached_source(path)
    assert calls == []
    assert read.protocol == written.protocol
    assert digits("test").protocol in read.protocol
    assert "the codes of a test" in read.protocol
    for name, values in written.arrays.items():
        np.testing.assert_array_equal(read.arrays[name], values)
        assert read.arrays[name].dtype == values.dtype
    with pytest.raises(ValueError, match=r"holds latents of .* test .* needed are .* by another"):
        cached_source(path, "another first stage")
    with pytest.raises(ValueError, match=r"split test .* needed are latents of .* split train"):
        cached_source(path, source=digits("train"))
    other = ArraySource(digits("train").arrays, protocol="UCI digits")
    with pytest.raises(ValueError, match=r"content \w+\] by .* needed are .* content \w+\] by"):
        cached_source(path, source=other)
    options = {"batch_size": 64, "first_stage": "the codes of a test"}
    with pytest.raises(ValueError, match=r"has the entries \['label', 'latents'\], needed are"):
        cache_latents(dict, digits("test"), path, replaces=("image", "label"), **options)
    np.savez(path, image=np.zeros(3))
    with pytest.raises(ValueError, match="is no file of latents: it has"):
        cached_source(path)
    path.write_bytes(b"not at all")
    with pytest.raises(ValueError, match="is no file of latents"):
        cached_source(path)


def test_refusals():
    codec = make_codec()
    with pytest.raises(ValueError, match="num_codes must be at least 2, got 1"):
        codes(*first_stage(), num_codes=1)
    with pytest.raises(ValueError, match="must have encode and decode"):
        codes(make_vae()._replace(encode=None), Variables({}), num_codes=2)
    with pytest.raises(ValueError, match="must be unconditional, got 'label'"):
        codes(make_vae(conditioning=labels(10)), Variables({}), num_codes=2)
    two = on_latents(second_stage(), codec)
    with pytest.raises(ValueError, match="it is on latents"):
        on_latents(two, codec)
    with pytest.raises(ValueError, match=r"fixed must hold 'codec', .* got \[\]"):
        two.init(KEY, batch())
    other = ArraySource({LATENTS: np.zeros((2, 1))})
    with pytest.raises(ValueError, match="must have no entry 'latents' of its own"):
        cache_latents(lambda raw, _: raw[LATENTS], other, batch_size=2, first_stage="none")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        cache_latents(lambda raw, _: raw["image"], digits(), batch_size=0, first_stage="none")
