"""Where each image of a picture must be, with a family that shows its latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.conditioning.attributes import embeddings
from jaxgen.conditioning.base import Condition
from jaxgen.conditioning.labels import labels
from jaxgen.core import Denoising, Family, LatentSpace, Variables
from jaxgen.noise.levels import levels_at
from jaxgen.noise.parametrization import Denoised
from jaxgen.noise.process import edm
from jaxgen.noise.times import karras_times
from jaxgen.sampling.latent import interpolate
from jaxgen.sampling.ode_solvers import heun
from jaxgen.training import pictures


def linear(start, end, steps):
    return interpolate(start, end, steps, "linear")


def constants(key, num):
    """The "prior": latents (i, -i)."""
    return jnp.arange(num, dtype=jnp.float32)[:, None] * jnp.array([[1.0, -1.0]])


def identity(conditioning=None, space=LatentSpace(linear, constants, 2)):  # noqa: B008
    """A family whose latents are the images' first two pixels, decoded to two pixels, to which ten
    times the label is added."""

    def encode(variables, batch, key):
        return batch["image"][:, 0, :, 0]

    def decode(variables, latents, key, *, condition=None):
        if isinstance(condition, Condition):  # between two labels, their mean
            condition = condition.vector @ jnp.arange(condition.vector.shape[1])
        shift = 0.0 if condition is None else 10.0 * condition.reshape(-1, 1, 1, 1)
        return latents[:, None, :, None] + shift

    return Family(
        None,
        {},
        (),
        None,
        encode=encode,
        decode=decode,
        latents=space,
        conditioning=conditioning,
    )


def draw(picture, x, rows, columns, **entries):
    data = {"image": jnp.asarray(x).reshape(-1, 1, 2, 1), **entries}
    drawn = picture(Variables({}), data, jax.random.key(0), rows, columns)
    return np.asarray(drawn).reshape(-1, 2)


def test_what_can_be_drawn_follows_from_the_family():
    """Each function and each kind of latent adds its pictures; nothing is refused."""
    examples = {"reconstructions", "between_examples", "traversal"}
    assert set(pictures.of(identity())) == {*examples, "interpolation", "latent_plane"}
    told = {"interpolation", "conditions", "between_conditions"}
    assert set(pictures.of(identity(labels(3)))) == {*examples, *told}
    # Embeddings have no sweep: only the examples' own are known.
    assert set(pictures.of(identity(embeddings(3)))) == examples
    no_prior = LatentSpace(linear, None, 2)
    assert set(pictures.of(identity(space=no_prior))) == examples
    hierarchy = LatentSpace(linear, constants)
    assert set(pictures.of(identity(space=hierarchy))) == {*examples, "interpolation"} - {
        "traversal"
    }
    assert set(pictures.of(identity(space=None))) == {"reconstructions"}
    generator = identity()._replace(encode=None)
    assert set(pictures.of(generator)) == {"interpolation", "latent_plane"}
    nothing = Family(None, {}, (), None)
    assert pictures.of(nothing) == {}
    assert set(pictures.of(nothing._replace(complete=lambda *a, **k: None))) == {"completions"}


def test_conditions_in_turn():
    assert pictures.in_turn(identity(), 5) is None
    assert pictures.in_turn(identity(labels(3)), 6).tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="conditioned on 'embedding', of which there is no sweep"):
        pictures.in_turn(identity(embeddings(3)), 6)


def test_pictures_of_the_prior():
    """Rows go from latent i to latent i, here the same two draws; one row a condition."""
    rows = draw(pictures.interpolation(identity()), np.zeros((1, 2)), 3, 2).reshape(3, 2, 2)
    np.testing.assert_array_equal(rows[:, 0], [[0, 0], [1, -1], [2, -2]])
    rows = draw(pictures.interpolation(identity(labels(2))), np.zeros((1, 2)), 3, 2)
    np.testing.assert_array_equal(rows.reshape(3, 2, 2)[:, 1], [[0, 0], [11, 9], [2, -2]])
    rows = draw(pictures.condition_sweep(identity(labels(2))), np.zeros((1, 2)), 7, 3)
    np.testing.assert_array_equal(rows.reshape(2, 3, 2)[1], [[10, 10], [11, 9], [12, 8]])


def test_a_picture_between_conditions():
    """One latent a row, from each condition of the sweep to the next, the last to the first."""
    rows = draw(pictures.between_conditions(identity(labels(3))), np.zeros((1, 2)), 4, 3)
    expected = [[0, 5, 10], [11, 16, 21], [22, 12, 2], [3, 8, 13]]  # latents (i, -i)
    np.testing.assert_allclose(rows.reshape(4, 3, 2)[..., 0], expected, rtol=1e-6)


def test_sampled_conditions():
    """Where latents cannot be drawn: one row a condition, one seed a column, the same in each."""

    def sample(variables, key, num, *, condition=None):
        seeds = jax.random.uniform(key, (num, 1, 1, 1))
        return seeds + 10.0 * condition.reshape(-1, 1, 1, 1) * jnp.ones((1, 1, 2, 1))

    family = Family(None, {}, (), None, sample=sample, conditioning=labels(3))
    drawn = pictures.of(family)
    assert set(drawn) == {"conditions"}
    rows = draw(drawn["conditions"], np.zeros((1, 2)), 9, 4).reshape(3, 4, 2)
    seeds = rows - 10.0 * np.arange(3).reshape(3, 1, 1)
    np.testing.assert_allclose(seeds, np.stack([seeds[0]] * 3), atol=1e-5)
    assert len(np.unique(seeds[0, :, 0])) == 4
    assert pictures.of(family._replace(conditioning=embeddings(3))) == {}


def test_completions():
    """The example, its upper half, and what the family makes of it, told its own condition."""

    def complete(variables, key, given, known, *, condition=None):
        return jnp.where(known[..., None], given, condition.reshape(-1, 1, 1, 1))

    family = Family(None, {}, (), None, complete=complete, conditioning=labels(5))
    x = jnp.arange(16.0).reshape(2, 4, 2, 1)
    batch = {"image": x, "label": jnp.array([3, 4])}
    drawn = pictures.completions(family)(Variables({}), batch, jax.random.key(0), 2, 5)
    cells = np.asarray(drawn).reshape(2, 5, 4, 2)
    np.testing.assert_array_equal(cells[:, 0], x[..., 0])
    np.testing.assert_array_equal(cells[:, 1:, :2], np.stack([x[:, :2, :, 0]] * 4, axis=1))
    assert (cells[:, 1, 2:] == -1).all()
    assert (cells[0, 2:, 2:] == 3).all()
    assert (cells[1, 2:, 2:] == 4).all()


def test_pictures():
    """Where each image of a grid must be, with a family that shows its latents."""
    family = identity()
    many = np.arange(30, dtype=np.float32).reshape(15, 2)
    found = draw(pictures.reconstructions(family), many, 5, 3)
    np.testing.assert_array_equal(found, [*many[:3], *many[:3], *many[3:6], *many[3:6]])
    found = draw(pictures.reconstructions(family), many, 1, 3)
    np.testing.assert_array_equal(found, [*many[:3], *many[:3]])

    found = draw(pictures.between_examples(family), many, 5, 3)
    x = many[:5]
    rows = found.reshape(5, 3, 2)
    np.testing.assert_allclose(rows[:, 0], x, rtol=1e-5)
    np.testing.assert_allclose(rows[:, 2], np.roll(x, -1, axis=0), rtol=1e-5)
    np.testing.assert_allclose(rows[0, 1], (x[0] + x[1]) / 2, rtol=1e-5)

    varied = np.array([[0.5, 1.0], [0.6, 9.0]], np.float32)  # the second varies more
    rows = draw(pictures.traversal(family), varied, 2, 3).reshape(2, 3, 2)
    np.testing.assert_allclose(rows[0], [[0.5, -3], [0.5, 0], [0.5, 3]], atol=1e-6)
    np.testing.assert_allclose(rows[1], [[-3, 1], [0, 1], [3, 1]], atol=1e-6)

    groups = [
        lambda v=v: {"image": jnp.asarray(v, jnp.float32).reshape(-1, 1, 2, 1)}
        for v in ([[0, 0], [2, 0]], [[1, 3], [1, 5]])
    ]
    picture = pictures.attribute_direction(family, *groups, strength=2.0)
    rows = draw(picture, x, 2, 3).reshape(2, 3, 2)
    np.testing.assert_allclose(rows[1], [[2, 0], [2, 4], [2, 8]], atol=1e-6)

    rows = draw(pictures.latent_plane(family), x, 3, 5).reshape(3, 5, 2)
    side, top = 1.2815516, 0.9674216  # the normal distribution's quantiles of 9/10 and 5/6
    np.testing.assert_allclose(rows[0, 0], [-side, top], rtol=1e-5)
    np.testing.assert_allclose(rows[2, 4], [side, -top], rtol=1e-5)
    np.testing.assert_allclose(rows[1, 2], [0, 0], atol=1e-6)
    with pytest.raises(ValueError, match="limit must be positive"):
        pictures.traversal(family, limit=0.0)


def test_pictures_tell_the_condition():
    """Each image is decoded under its own example's condition."""
    family, x = identity(labels(3)), np.zeros((2, 2), np.float32)
    label = jnp.array([1, 2])
    found = draw(pictures.reconstructions(family), x, 2, 2, label=label)
    np.testing.assert_array_equal(found[2:], [[10, 10], [20, 20]])
    found = draw(pictures.between_examples(family), x, 2, 2, label=label)
    np.testing.assert_array_equal(found[:, 0], [10, 10, 20, 20])
    found = draw(pictures.traversal(family), x, 1, 3, label=label)
    np.testing.assert_array_equal(found, [[7, 10], [10, 10], [13, 10]])
    with pytest.raises(ValueError, match="the batch must have the condition 'label'"):
        draw(pictures.reconstructions(family), x, 2, 2)


def gaussian(conditioning=None):
    """A family of a denoiser that is right for N(0, 1) pixels moved by the label."""
    process, num_steps = edm(), 6

    def denoiser(variables, *, scale=1.0, clip=None):
        def denoise(x, level, condition=None):
            mean = 0.0 if condition is None else scale * condition.vector[:, 0]
            mean = jnp.broadcast_to(mean, len(x)).reshape(-1, 1, 1, 1)
            shrink = 1 / (1 + jnp.square(level.sigma)).reshape(-1, 1, 1, 1)
            return Denoised(mean + shrink * (x - mean))

        return denoise

    def encode_condition(variables, condition):
        return None if condition is None else Condition(jnp.float32(condition)[:, None])

    parts = Denoising(
        denoiser,
        encode_condition,
        process,
        lambda num: levels_at(process, karras_times(num)),
        heun(),
        num_steps,
        (1, 2, 1),
    )
    return Family(None, {}, (), None, denoising=parts, conditioning=conditioning)


def test_pictures_of_denoisers():
    """Where the images stand: examples first, results last, conditions by row, scales by column."""
    names = {"denoising", "image_to_image", "variations"}
    assert set(pictures.of(gaussian())) == names
    assert set(pictures.of(gaussian(embeddings(3)))) == names
    drawn = pictures.of(gaussian(labels(3)))
    assert set(drawn) == {*names, "guidance"}
    x, label = np.linspace(-1, 1, 24).reshape(12, 2), jnp.arange(12) % 3

    way = draw(drawn["denoising"], x, 4, 3, label=label).reshape(2, 2, 3, 2)
    np.testing.assert_allclose(way[:, 0, 2], way[:, 1, 2])  # the samples
    np.testing.assert_allclose(way[:, 1, 0], [[0, 0], [1, 1]], atol=0.05)  # of noise: the means
    assert np.abs(way[:, 0, 0]).max() < 4  # noise at unit variance

    rows = draw(drawn["image_to_image"], x, 3, 4, label=label).reshape(3, 4, 2)
    np.testing.assert_allclose(rows[:, 0], x[:3], rtol=1e-6)
    change = np.abs(rows - rows[:, :1]).mean(axis=(0, 2))
    assert 0 < change[1] < change[2] < change[3]

    rows = draw(drawn["variations"], x, 3, 4, label=label).reshape(3, 4, 2)
    np.testing.assert_allclose(rows[:, 0], x[:3], rtol=1e-6)
    assert len(np.unique(rows[0, :, 0])) == 4

    rows = draw(drawn["guidance"], x, 1, 3, label=label).reshape(3, 3, 2)
    same = rows - rows[:1, :1]  # all from one noise, moved by scale times label
    np.testing.assert_allclose(same[..., 0], [[0, 0, 0], [0, 1, 2], [0, 2, 4]], atol=0.1)
