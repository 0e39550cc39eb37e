"""First stages keep the contract; their loss is the papers', and both kinds of latents decode."""

from functools import cache, partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from autoencoders import SHAPE, batch, evaluated, trained_on
from devices import equal_on_one_and_eight

from jaxgen.core import Variables
from jaxgen.families import bottlenecks
from jaxgen.families.first_stage import first_stage
from jaxgen.families.patch_game import PatchGame
from jaxgen.losses.gan import hinge
from jaxgen.models import autoencoder as networks
from jaxgen.models.conv.layers import Conv, ConvTranspose
from jaxgen.models.patch_gan import PatchDiscriminator
from jaxgen.models.vq import FiniteScalars
from jaxgen.training.step import init_state, make_step

DIMS, KEY = 3, jax.random.key(0)
BOTTLENECKS = {
    "gaussian": lambda: bottlenecks.gaussian(1e-3),
    "codebook": lambda: bottlenecks.codebook(16, DIMS),
    "finite_scalars": lambda: bottlenecks.finite_scalars(FiniteScalars((4, 3, 3))),
}


class Encoder(nn.Module):
    """A convolution down: the published networks take long to compile."""

    moments: int

    @nn.compact
    def __call__(self, x):
        return Conv(self.moments * DIMS, (2, 2), strides=(2, 2))(x)


class Decoder(nn.Module):
    """A transposed convolution up, a nonlinearity, and the last layer."""

    image_channels: int = 1

    def setup(self):
        self.up = ConvTranspose(8, (4, 4), strides=(2, 2))
        self.conv_out = Conv(self.image_channels, (3, 3))

    def __call__(self, z):
        return self.pixels(self.features(z))

    def features(self, z):
        return nn.relu(self.up(z))

    def pixels(self, features):
        return self.conv_out(features)


class Scaled(NamedTuple):
    """A perceptual distance that reads an array."""

    fixed: dict

    def distance(self, fixed, x, y):
        return fixed["scale"] * jnp.square(x - y).sum(axis=(1, 2, 3))


PERCEPTUAL = Scaled({"scale": jnp.float32(0.3)})


def make_family(name="gaussian", *, game=True, start=0, **options):
    bottleneck = BOTTLENECKS[name]()
    adversary = PatchGame(PatchDiscriminator(4, 1), optax.adam(1e-3, b1=0.5), 0.8, start)
    return first_stage(
        options.pop("encoder", Encoder(bottleneck.moments)),
        options.pop("decoder", Decoder()),
        bottleneck,
        optax.adam(1e-2, b1=0.5),
        **{
            "image_shape": SHAPE,
            "perceptual": PERCEPTUAL,
            "perceptual_weight": 0.5,
            "game": adversary if game else None,
            **options,
        },
    )


@pytest.fixture(scope="module", params=list(BOTTLENECKS))
def trained(request):
    """(name, family, data, first state, what thirty steps make of it), the game from step 10 on."""
    family, data = make_family(request.param, start=10), batch()
    first = jax.jit(lambda fixed: init_state(family, KEY, data, fixed=fixed))(family.fixed)
    step = jax.jit(make_step(family))
    results, state = [], first
    for i in range(30):
        results.append(step(state, family.fixed, data, jax.random.key(i)))
        state = results[-1].state
    assert step._cache_size() == 1
    return request.param, family, data, first, results


def of(state, family):
    return Variables(state.params, state.state, family.fixed)


def test_steps_lower_the_loss(trained):
    name, family, data, first, results = trained
    last = results[-1].state
    assert set(last.params) == {"encoder", "decoder", "discriminator"} | (
        {"codebook"} if name == "codebook" else set()
    )
    same = jax.tree.map(np.array_equal, first.params, last.params)
    # Of the hinge loss, within its margin, both sides push the last bias by as much.
    del same["discriminator"]["conv_out"]["bias"]
    assert not any(jax.tree.leaves(same))
    assert all(int(result.bad) == -1 for result in results)
    before, after = (evaluated(family, of(s, family), data) for s in (first, last))
    assert after[0].shape == (32,)
    assert after[0].mean() < 0.9 * before[0].mean()
    assert after[1]["psnr"].mean() > before[1]["psnr"].mean() + 0.5
    for total, weight in results[-1].metrics.values():
        assert np.isfinite(total)
        assert weight > 0


def test_the_game_starts_late(trained):
    """Before its start the discriminator is untouched, and its verdict has no weight."""
    _, family, _, first, results = trained
    for t in (0, 9):
        early = results[t]
        for part in ("params", "state"):
            jax.tree.map(
                np.testing.assert_array_equal,
                getattr(early.state, part)["discriminator"],
                getattr(first, part)["discriminator"],
            )
        assert early.metrics["autoencoder/weight"][0] == 0
        assert early.metrics["discriminator/loss"][1] == 0
    assert results[10].metrics["autoencoder/weight"][0] > 0
    assert results[10].metrics["discriminator/loss"][1] == 32
    assert family.phases[1].start == 10


def test_both_kinds_of_latents(trained):
    """What diffusion is trained on decodes to what `encode` decodes to."""
    name, family, data, _, results = trained
    variables = of(results[-1].state, family)
    encode = jax.jit(family.encode, static_argnames="continuous")
    latents, real = (encode(variables, data, KEY, continuous=c) for c in (False, True))
    decode = jax.jit(family.decode)
    rebuilt, of_real = decode(variables, latents, KEY), decode(variables, real, KEY)
    assert rebuilt.shape == data["image"].shape
    assert np.abs(rebuilt).max() <= 1
    assert real.shape == (32, 4, 4, DIMS)
    assert family.sample is None
    if name == "gaussian":
        assert not np.array_equal(latents, real)  # the mean, a draw
        assert not np.array_equal(real, encode(variables, data, jax.random.key(1), continuous=True))
        path = family.latents.interpolate(latents[:2], latents[2:4], 3)
        np.testing.assert_allclose(path[1], (latents[:2] + latents[2:4]) / 2, rtol=1e-5)
        return
    num_codes = {"codebook": 16, "finite_scalars": 36}[name]
    assert family.latents is None
    assert (latents.shape, latents.dtype) == ((32, 4, 4), jnp.int32)
    np.testing.assert_allclose(of_real, rebuilt, rtol=1e-4, atol=1e-5)
    _, metrics = evaluated(family, variables, data)
    shares = np.bincount(np.asarray(latents).ravel(), minlength=num_codes) / latents.size
    np.testing.assert_allclose(metrics["usage"], (shares > 0).mean(), rtol=1e-6)
    entropy = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    np.testing.assert_allclose(metrics["perplexity"], np.exp(entropy), rtol=1e-4)
    lost = (latents.at[0].set(num_codes), real.at[0, 0].set(jnp.nan))
    for latent in lost:  # no code: not another one instead
        made = decode(variables, latent, KEY)
        assert np.isnan(made[0]).any()
        assert np.isfinite(made[1:]).all()


@cache
def place(name="gaussian"):
    """Variables away from their initialization, and data."""
    family, data = make_family(name), batch(8)
    variables = jax.jit(family.init)(KEY, data, family.fixed)
    return variables._replace(params=jax.tree.map(lambda p: p + 0.05, variables.params)), data


@pytest.mark.parametrize("name", ["gaussian", "codebook"])
def test_the_loss_is_the_papers(name):
    """By its parts, the adaptive weight from gradients that are taken here."""
    variables, data = place(name)
    loss, aux = trained_on(make_family(name), variables, data)
    alone = make_family(name, game=False)
    plain, _ = trained_on(alone, variables, data)
    m, scale = aux.metrics, 64 if name == "gaussian" else 1  # summed over pixels, or averaged
    penalty = 1e-3 * m.get("kl", 0) if name == "gaussian" else 1.25 * m["commitment"]
    np.testing.assert_allclose(
        plain, scale * (m["l1"] + 0.5 * m["perceptual"]) + penalty, rtol=1e-5
    )
    np.testing.assert_allclose(m["perceptual"], 0.3 * 64 * m["mse"], rtol=1e-5)
    np.testing.assert_allclose(m["psnr"], 10 * np.log10(4 / m["mse"]), rtol=1e-5)

    params = variables.params

    def with_kernel(kernel):
        last = {**params["decoder"]["conv_out"], "kernel": kernel}
        changed = {**params, "decoder": {**params["decoder"], "conv_out": last}}
        return variables._replace(params=changed)

    def reconstruction(kernel):
        return alone.phases[0].loss(with_kernel(kernel), data, KEY, jnp.int32(0))[0].mean()

    def verdicts(kernel):
        changed = with_kernel(kernel)
        apply = lambda n, module, *a: module.apply({"params": changed.params[n]}, *a)  # noqa: E731
        encoded = apply("encoder", Encoder(2 if name == "gaussian" else 1), data["image"])
        codes = changed.params.get("codebook")
        z = BOTTLENECKS[name]().squeeze(codes, encoded, KEY).latents
        judged, _ = PatchDiscriminator(4, 1).apply(
            {"params": params["discriminator"], **variables.state["discriminator"]},
            apply("decoder", Decoder(), z),
            train=True,
            mutable=["batch_stats"],
        )
        return -judged.mean(axis=(1, 2))

    kernel = params["decoder"]["conv_out"]["kernel"]
    gradients = jax.jit(
        lambda k: (jax.grad(reconstruction)(k), jax.grad(lambda k: verdicts(k).mean())(k))
    )(kernel)
    norms = [np.linalg.norm(g) for g in gradients]
    np.testing.assert_allclose(m["weight"], min(norms[0] / (norms[1] + 1e-4), 1e4), rtol=1e-3)
    np.testing.assert_allclose(m["adversarial"], jax.jit(verdicts)(kernel), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(loss - plain, 0.8 * m["weight"] * m["adversarial"], rtol=2e-3)


def test_the_discriminators_loss():
    """Half the hinge loss on patches; it leaves its statistics of images, then of fakes."""
    variables, data = place()
    family = make_family()
    play = jax.jit(family.phases[1].loss)
    loss, aux = play(variables, data, KEY, jnp.int32(0))
    network, state = PatchDiscriminator(4, 1), variables.state["discriminator"]
    rebuilt = jax.jit(partial(family.encode, continuous=True))(variables, data, KEY)

    @jax.jit
    def discriminate(params, state):
        logits = []
        for x in (data["image"], Decoder().apply({"params": params["decoder"]}, rebuilt)):
            out, state = network.apply(
                {"params": params["discriminator"], **state},
                x,
                train=True,
                mutable=["batch_stats"],
            )
            logits.append(out)
        return logits, state

    logits, state = discriminate(variables.params, state)
    expected = 0.5 * hinge.discriminator(*(v.ravel() for v in logits)).reshape(8, -1).mean(axis=1)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        aux.state["discriminator"],
        state,
    )
    gradient = jax.jit(
        jax.grad(lambda p: play(variables._replace(params=p), data, KEY, jnp.int32(0))[0].sum())
    )(variables.params)
    assert not any(g.any() for g in jax.tree.leaves((gradient["encoder"], gradient["decoder"])))
    assert gradient["discriminator"]["conv0"]["kernel"].any()
    real, fake = logits
    np.testing.assert_allclose(aux.metrics["real_logit"], real.mean(axis=(1, 2)), rtol=1e-4)
    np.testing.assert_allclose(aux.metrics["fake_accuracy"], (fake < 0).mean(axis=(1, 2)))


def test_codes_learn_by_the_papers_terms():
    """The codebook's gradient is its own term's alone; the encoder's passes straight through."""
    bottleneck = bottlenecks.codebook(4, 2, codebook_weight=0.25, commitment_weight=1.0)
    codes = jax.random.normal(KEY, (4, 2))
    z = jax.random.normal(jax.random.key(1), (1, 2, 2, 2))

    def loss(codes, z):
        passed = bottleneck.squeeze(codes, z, KEY)
        return passed.penalty.sum() + 3.0 * passed.latents.sum()

    of_codes, of_z = jax.jit(jax.grad(loss, argnums=(0, 1)))(codes, z)
    indices = np.asarray(bottleneck.encode(codes, z)).ravel()
    apart = np.asarray(z).reshape(-1, 2) - np.asarray(codes)[indices]
    expected = np.zeros((4, 2))
    np.add.at(expected, indices, -0.25 * 2 * apart / 8)  # the mean over positions and dimensions
    np.testing.assert_allclose(of_codes, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(of_z.reshape(-1, 2), 3 + 2 * apart / 8, rtol=1e-4, atol=1e-6)
    drawn = bottlenecks.codebook(100, 3).init(KEY)
    assert np.abs(drawn).max() <= 0.01
    assert np.abs(drawn).max() > 0.009


def test_gaussians_are_cut_off():
    bottleneck = bottlenecks.gaussian(2.0)
    encoded = jnp.concatenate([jnp.full((1, 1, 1, 1), 3.0), jnp.full((1, 1, 1, 1), -90.0)], axis=-1)
    passed = bottleneck.squeeze(None, encoded, KEY)
    np.testing.assert_allclose(passed.latents, 3.0, atol=1e-5)
    np.testing.assert_allclose(passed.metrics["kl"], (9 + np.exp(-30) - 1 + 30) / 2, rtol=1e-6)
    np.testing.assert_allclose(passed.penalty, 2 * passed.metrics["kl"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gaussian", "codebook"])
def test_one_device_and_eight(name):
    family = make_family(name)
    sgd = {k: o._replace(transform=optax.sgd(1e-3)) for k, o in family.optimizers.items()}
    equal_on_one_and_eight(family._replace(optimizers=sgd), jax.tree.map(np.asarray, batch(16)))


@pytest.mark.slow
def test_the_published_networks_train():
    """Small ones, with attention, in one step of both phases."""
    sizes = networks.Sizes((1, 2), DIMS, (2,), channels=8, num_res_blocks=1)
    family, data = (
        make_family(encoder=networks.Encoder(sizes, 2), decoder=networks.Decoder(sizes, 1)),
        batch(8),
    )
    state = jax.jit(lambda fixed: init_state(family, KEY, data, fixed=fixed))(family.fixed)
    result = jax.jit(make_step(family))(state, family.fixed, data, KEY)
    assert int(result.bad) == -1
    assert result.metrics["autoencoder/weight"][0] > 0


def test_watch():
    watch = make_family("codebook").watch
    assert watch({"autoencoder/usage": 0.5, "discriminator/real_accuracy": 0.8}) == []
    (message,) = watch({"autoencoder/usage": 0.01})
    assert "codebook has collapsed" in message
    right = {"discriminator/real_accuracy": 0.999, "discriminator/fake_accuracy": 0.999}
    (message,) = watch(right)
    assert "the discriminator has won" in message


def test_bad_input():
    family, data = make_family(), batch(2)
    with pytest.raises(ValueError, match="fixed must hold 'perceptual', as the family's own does"):
        jax.eval_shape(lambda: family.init(KEY, data))
    small, colourful = make_family(image_shape=(4, 4, 1)), make_family(decoder=Decoder(3))
    with pytest.raises(ValueError, match=r"image_shape is \(4, 4, 1\), but the data has \(8, 8,"):
        jax.eval_shape(lambda: small.init(KEY, data, small.fixed))
    with pytest.raises(ValueError, match=r"decoder makes \(8, 8, 3\) images, the data has"):
        jax.eval_shape(lambda: colourful.init(KEY, data, colourful.fixed))
    with pytest.raises(ValueError, match="condition must be None"):
        family.decode(place()[0], jnp.zeros((1, 4, 4, DIMS)), KEY, condition=jnp.zeros(1))
    with pytest.raises(ValueError, match="perceptual_weight must be 0 or more, got -1"):
        make_family(perceptual_weight=-1.0)
    with pytest.raises(ValueError, match="game.start must be at least 0, got -1"):
        make_family(start=-1)
    with pytest.raises(ValueError, match="kl_weight must be 0 or more, got nan"):
        bottlenecks.gaussian(float("nan"))
    with pytest.raises(ValueError, match="num_codes must be at least 2 and dims"):
        bottlenecks.codebook(1, 3)
