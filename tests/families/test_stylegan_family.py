"""The StyleGAN2 family: its turns, its mean of path lengths, styles, truncation and noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from devices import equal_on_one_and_eight
from small_gans import CLASSES, FIRST, LATENT, batch

from jaxgen.families.gan_players import DISCRIMINATOR, GENERATOR
from jaxgen.families.stylegan import PATH_LENGTH, PathLength, stylegan, styles_of
from jaxgen.losses.gan import r1_penalty
from jaxgen.models.stylegan2 import Generator
from jaxgen.models.stylegan2_discriminator import Discriminator
from jaxgen.training import averages
from jaxgen.training.step import init_state, make_step

SIZES = {"channel_base": 32, "channel_max": 4}
NETWORKS = (
    Generator(8, 1, **SIZES, latent_dim=LATENT, style_dim=4, mapping_layers=1),
    Discriminator(**SIZES, stddev_group=2, mapping_layers=1),
)
KEY = jax.random.key(1)
DATA = batch(8)


def make(*, optimizer=None, networks=NETWORKS, **options):
    optimizer = optimizer or optax.adam(1e-3, b1=0.0)
    options.setdefault("conditioning", CLASSES)
    return stylegan(*networks, optimizer, optimizer, **options)


@pytest.fixture(scope="module")
def family():
    return make(r1_weight=2.0, r1_every=4, path_length=PathLength(every=2))


@pytest.fixture(scope="module")
def variables(family):
    """As initialized, with noise as strong as the images."""
    drawn = jax.jit(family.init)(jax.random.key(0), DATA)

    def louder(path, leaf):
        return leaf + 1.0 if "noise_strength" in jax.tree_util.keystr(path) else leaf

    return drawn._replace(params=jax.tree_util.tree_map_with_path(louder, drawn.params))


def test_turns(family):
    phases = [(p.name, p.optimizer, p.every) for p in family.phases]
    assert phases == [
        ("discriminator", "discriminator", 1),
        ("penalty", "discriminator", 4),
        ("generator", "generator", 1),
        ("path_length", "generator", 2),
    ]
    plain = make(path_length=None, r1_weight=0.0)
    assert [p.name for p in plain.phases] == ["discriminator", "generator"]
    assert family.latents.width == LATENT


def test_training():
    """Four steps: the mean style and the mean of lengths move, the constant noise does not."""
    family = make(r1_weight=0.0, path_length=PathLength(every=2, decay=0.5))
    kept = {"ema": averages.half_life(100, 16, ramp_up=0.5, of=(GENERATOR,))}
    data = DATA
    state = jax.jit(functools.partial(init_state, family, averages=kept))(jax.random.key(0), data)
    step, first, seen = jax.jit(make_step(family, averages=kept)), state, []
    for i in range(4):
        result = step(state, {}, data, jax.random.key(i))
        assert int(result.bad) == -1
        total, weight = result.metrics["path_length/length"]
        means = [float(s.state[PATH_LENGTH]) for s in (state, result.state)]
        assert float(weight) == (16 if i % 2 == 0 else 0)
        if weight:
            length = float(total / weight)
            expected = length if i == 0 else 0.5 * (means[0] + length)
            np.testing.assert_allclose(means[1], expected, rtol=1e-5)
        else:
            assert means[0] == means[1]
        seen.append(means[1])
        state = result.state
    assert seen[0] > 0
    own = state.state[GENERATOR], first.state[GENERATOR]
    assert not np.allclose(*(s["average"]["mapping"]["w"] for s in own), atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, *(s["noise"] for s in own))
    for name in (GENERATOR, DISCRIMINATOR):
        pairs = zip(*(jax.tree.leaves(s.params[name]) for s in (first, state)), strict=True)
        assert all(np.isfinite(b).all() for _, b in pairs)
    counts = {name: int(opt_state[0].count) for name, opt_state in state.opt_state.items()}
    assert counts == {"discriminator": 4, "generator": 6}


def test_r1_is_of_real_images(family, variables):
    """The turn's loss is its weight times what makes up for the steps left out."""
    data = DATA
    value, aux = jax.jit(family.phases[1].loss)(variables, data, KEY, FIRST)
    condition = CLASSES.encode(variables, data["label"])
    params = {"params": variables.params[DISCRIMINATOR]}

    def critic(x):
        return NETWORKS[1].apply(params, x, condition, train=False).logits

    expected = jax.jit(lambda x: r1_penalty(critic, x))(data["image"])
    np.testing.assert_allclose(aux.metrics["penalty"], expected, rtol=1e-4)
    np.testing.assert_allclose(value, 4 * 2 * expected, rtol=1e-4)


def test_path_lengths_are_compared_with_their_mean(family, variables):
    """Of half as many latents; the mean is the state's, and stays as it is in the loss."""
    data, mean = DATA, 0.3
    assert variables.state[PATH_LENGTH] < 0  # before the first turn
    first, aux = jax.jit(family.phases[3].loss)(variables, data, KEY, FIRST)
    lengths = aux.metrics["length"]
    np.testing.assert_allclose(first, 2 * 2 * (lengths - lengths.mean()) ** 2, rtol=1e-4, atol=1e-8)
    told = variables._replace(state={**variables.state, PATH_LENGTH: jnp.float32(mean)})
    value, aux = jax.jit(family.phases[3].loss)(told, data, KEY, FIRST)
    lengths = aux.metrics["length"]
    assert aux.state is None
    assert value.shape == lengths.shape == (16,)
    np.testing.assert_array_equal(lengths[::2], lengths[1::2])
    assert len(set(np.asarray(lengths).tolist())) == 8
    np.testing.assert_allclose(value, 2 * 2 * (lengths - mean) ** 2, rtol=1e-5)


def test_samples_by_truncation(family, variables):
    """Psi 0 shows the mean style of all latents; a psi of the family's is the default."""
    label = jnp.array([0, 1, 2])
    z = jax.random.normal(jax.random.split(KEY)[0], (3, LATENT))
    halves = make(truncation=0.5)

    @jax.jit
    def draw(variables):
        decode = functools.partial(family.decode, variables, z, KEY, condition=label)
        sample = functools.partial(family.sample, variables, KEY, 3, condition=label)
        by_default = halves.sample(variables, KEY, 3, condition=label)
        return sample(), decode(), decode(truncation=0.0), decode(truncation=0.5), by_default

    images, same, none, half, by_default = draw(variables)
    assert images.shape == (3, 8, 8, 1)
    np.testing.assert_allclose(images, same, atol=1e-6)
    np.testing.assert_allclose(none[0], none[1], atol=1e-5)
    assert not np.allclose(images[0], images[1], atol=1e-2)
    assert not np.allclose(images, half, atol=1e-2)
    np.testing.assert_allclose(half, by_default, atol=1e-6)


def test_latents_are_z_or_styles(family, variables):
    label = jnp.array([0, 1, 2])
    z = jax.random.normal(KEY, (3, LATENT))
    images = jax.jit(family.decode)(variables, z, KEY, condition=label)
    styles = jax.jit(styles_of(NETWORKS[0], CLASSES))(variables, z, condition=label)
    assert styles.shape == (3, NETWORKS[0].num_styles, 4)
    decode = jax.jit(family.decode)
    np.testing.assert_allclose(decode(variables, styles, KEY), images, atol=1e-5)
    coarse = jnp.concatenate([styles[:1, :2], styles[1:2, 2:]], axis=1)
    mixed = decode(variables, jnp.repeat(coarse, 3, axis=0), KEY)[0]
    assert not np.allclose(mixed, images[0], atol=1e-3)
    assert not np.allclose(mixed, images[1], atol=1e-3)


def test_noise_of_samples(family, variables):
    """Constant unless it is to be drawn: then by the key that decodes."""
    z, label = jnp.ones((2, LATENT)), jnp.array([0, 0])
    for noisy in (False, True):
        decode = jax.jit(make(random_noise=noisy).decode)
        first, second = (decode(variables, z, jax.random.key(i), condition=label) for i in range(2))
        assert np.allclose(first, second, atol=1e-5) != noisy
        assert np.allclose(first[0], first[1], atol=1e-5) != noisy


def test_evaluation(family, variables):
    loss, metrics = jax.jit(family.evaluate)(variables, DATA, KEY)
    assert loss.shape == (16,)
    assert np.isfinite(loss).all()
    assert {"real_logit", "diversity"} <= set(metrics)


@pytest.mark.slow
def test_eight_devices_equal_one():
    """The mean style, path lengths and both penalties over the whole batch."""
    family = make(r1_every=2, path_length=PathLength(every=2), optimizer=optax.sgd(1e-3))
    equal_on_one_and_eight(family, batch(8, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinges"}, "name must be"),
        ({"r1_weight": -1.0}, "r1_weight must be finite and at least 0, got -1"),
        ({"r1_every": 0}, "r1_every must be at least 1, got 0"),
        ({"truncation": -0.5}, "truncation must be finite and at least 0, got -0.5"),
        ({"path_length": PathLength(float("nan"))}, "path_length.weight must be finite"),
        ({"path_length": PathLength(every=0)}, "path_length.every must be at least 1, got 0"),
        ({"path_length": PathLength(shrink=0)}, "path_length.shrink must be at least 1, got 0"),
        ({"path_length": PathLength(decay=0.0)}, r"path_length.decay must be in \(0, 1\], got 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_bad_calls(family, variables):
    with pytest.raises(ValueError, match="truncation must be finite"):
        family.sample(variables, KEY, 2, condition=jnp.array([0, 1]), truncation=float("inf"))
    styles = jnp.zeros((2, NETWORKS[0].num_styles, 4))
    with pytest.raises(ValueError, match="truncation must be None with styles"):
        family.decode(variables, styles, KEY, truncation=0.5)
    with pytest.raises(ValueError, match="condition must be given"):
        family.sample(variables, KEY, 2)
    thirds = make(path_length=PathLength(shrink=3))
    with pytest.raises(ValueError, match="path_length.shrink must divide the batch of 16, got 3"):
        thirds.phases[-1].loss(variables, DATA, KEY, FIRST)
