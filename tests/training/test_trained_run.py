"""A trained run as an object: what a notebook asks of it, and what it is told of mistakes."""

import base64
import dataclasses
import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import jaxgen
from jaxgen.conditioning.attributes import attributes
from jaxgen.conditioning.labels import labels
from jaxgen.core import Bound
from jaxgen.data.sources import digits
from jaxgen.data.transforms import to_model_space
from jaxgen.sampling.latent import normal_space
from jaxgen.training import runs
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.recipe import Recipe
from jaxgen.training.trained_run import AT_ONCE

NAMES = tuple("zero one two three four five six seven eight nine".split())


@dataclass(frozen=True)
class Config(RunConfig):
    """A toy's flags."""

    steps: int = operational(4)
    batch_size: int = 16
    log_every: int = operational(2)
    sample_every: int = operational(2)
    evaluate_every: int = operational(4)
    compilation_cache: str = operational("none")


def build(config):
    """The mean image of the digits with noise; a class is a grey level that is added."""
    experiment = toys.experiment(config)
    conditioning = labels(10, NAMES)

    def mean_of(variables, condition):
        mean = variables.params["net"]["mean"][None]
        return mean + 0.02 * condition.astype(jnp.float32)[:, None, None, None]

    def log_prob(variables, batch, key):
        error = batch["image"] - mean_of(variables, batch["label"])
        noise = 0.1 * jax.random.normal(key, error.shape)
        return -jnp.sum(jnp.square(error + noise), axis=(1, 2, 3))

    def evaluate(variables, batch, key):
        return -log_prob(variables, batch, key), {}

    def encode(variables, batch, key):
        x = batch["image"] - mean_of(variables, batch["label"])
        return x.reshape(len(x), -1)

    def decode(variables, latents, key, *, condition=None):
        return mean_of(variables, condition) + latents.reshape(-1, 8, 8, 1)

    def sample(variables, key, num, *, condition=None):
        return decode(variables, 0.1 * jax.random.normal(key, (num, 64)), key, condition=condition)

    family = experiment.family._replace(
        evaluate=evaluate,
        sample=sample,
        log_prob=log_prob,
        bound=Bound("ELBO", 64, True, given="label"),
        encode=encode,
        decode=decode,
        latents=normal_space(64),
        conditioning=conditioning,
        name="Toy",
    )
    return experiment._replace(family=family)


recipe = Recipe(build, Config())


def command(*args):
    with pytest.raises(SystemExit) as stop:
        recipe.main(args)
    assert not stop.value.code


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "run"
    command("--run-dir", str(directory))
    return jaxgen.open_run(directory)


@pytest.fixture(scope="module")
def batch():
    return digits("test")[np.arange(6)]


def test_open_run_is_there_when_asked_for():
    assert jaxgen.open_run is runs.open_run
    assert "open_run" in dir(jaxgen)
    with pytest.raises(AttributeError, match="module 'jaxgen' has no attribute 'opn_run'"):
        jaxgen.opn_run  # noqa: B018


def test_samples_are_those_of_the_command(run, tmp_path):
    """With the same seed and conditions; these by name, by number or as the data has them."""
    place = ["--run-dir", run.config.run_dir, "--num=6", "--seed=3"]
    for flags, condition in (
        ([], None),
        (["--label=two"], "two"),
        (["--label", "two", "7"], ["two", 7]),
        (["--label", "2", "7"], np.array([2, 7])),
    ):
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.npz"
        command("sample", *place, f"--out={out}", *flags)
        samples = run.sample(6, condition=condition, seed=3)
        np.testing.assert_array_equal(samples, np.load(out)["samples"])
        assert samples.dtype == np.uint8
        assert samples.shape == (6, 8, 8, 1)


def test_log_prob_is_the_familys(run, batch):
    """In nats, of the right condition, by the noise of the seed; with what bound it is."""
    result = run.log_prob(batch["image"], condition=batch["label"], seed=1)
    prepared = {"image": to_model_space(jnp.asarray(batch["image"])), "label": batch["label"]}
    expected = run.family.evaluate(run.variables, prepared, jax.random.key(0))[0]
    np.testing.assert_allclose(-result.nats, expected, rtol=0.2)  # but for the noise
    np.testing.assert_allclose(result.bits_per_dim, -result.nats / 64 / np.log(2), rtol=1e-5)
    assert result.bound == run.family.bound
    np.testing.assert_array_equal(run.log_prob(batch, seed=1).nats, result.nats)
    assert (run.log_prob(batch, seed=2).nats != result.nats).all()
    by_name = [NAMES[label] for label in batch["label"]]
    same = run.log_prob(batch["image"], condition=by_name, seed=1)
    np.testing.assert_array_equal(same.nats, result.nats)
    other = run.log_prob(batch["image"], condition="nine", seed=1)
    assert (other.nats != result.nats)[batch["label"] != 9].all()


def test_many_examples_are_some_and_some(run):
    """Beyond one call's; the last one is filled up, of which nothing is seen."""
    num = AT_ONCE + 5
    raw = digits("train")[np.arange(num)]
    latents = run.encode(raw)
    assert latents.shape == (num, 64)
    last = {name: values[AT_ONCE:] for name, values in raw.items()}
    np.testing.assert_array_equal(latents[AT_ONCE:], run.encode(last))


def test_there_and_back_and_between(run, batch):
    images, condition = batch["image"], batch["label"]
    latents = run.encode(images, condition=condition)
    np.testing.assert_array_equal(run.decode(latents, condition=condition), images)
    ways = run.interpolate(latents[:2], latents[2:4], 5, condition=condition[:2])
    assert ways.shape == (2, 5, 8, 8, 1)
    np.testing.assert_array_equal(ways[:, 0], images[:2])
    ends = run.decode(latents[2:4], condition=condition[:2])
    np.testing.assert_array_equal(ways[:, -1], ends)
    drawn = run.draw_latents(3, seed=5)
    np.testing.assert_array_equal(drawn, run.family.latents.draw(jax.random.key(5), 3))
    assert run.decode(drawn, condition="one").shape == (3, 8, 8, 1)


def test_one_compilation_a_shape(run, batch):
    traces = []

    def log_prob(variables, batch, key):
        traces.append(len(batch["image"]))
        return run.family.log_prob(variables, batch, key)

    watched = dataclasses.replace(run, family=run.family._replace(log_prob=log_prob))
    for _ in range(3):
        watched.log_prob(batch)
    watched.log_prob(digits("test")[np.arange(9)])
    watched.log_prob(digits("test")[np.arange(20, 29)])
    assert traces == [8, 16]  # of eight devices
    other = dataclasses.replace(watched)  # what is compiled is the object's own
    other.log_prob(batch)
    assert traces == [8, 16, 8]


def test_what_training_wrote(run):
    assert run.metrics.column("step").tolist() == [2.0, 4.0]
    assert {"step", "loss"} <= set(run.metrics.columns)
    assert np.isfinite(run.metrics.column("loss")).all()
    assert [row["step"] for row in run.evaluations] == [4.0]
    assert run.measurements == []
    assert [path.name for path in run.samples] == ["00000002.png", "00000004.png"]
    with pytest.raises(ValueError, match="name must be one of step, .*, got 'los'"):
        run.metrics.column("los")


def test_what_a_notebook_shows(run):
    page = run._repr_html_()
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert base64.b64decode(data) == run.samples[-1].read_bytes()
    assert "ELBO" in page
    assert "64 parameters" in page
    assert "4 of 4" in page
    assert "sample, log_prob, encode, decode, draw_latents, interpolate" in page
    assert "<script>" not in dataclasses.replace(run, name="<script>")._repr_html_()
    half = run.samples[-1].with_name("00000009.png")
    half.write_bytes(b"half of it")
    assert run._repr_html_() == page  # the newest whole one
    half.unlink()
    assert repr(run) == f"Run({__name__}, Toy, step 4, {run.config.run_dir})"


def test_what_a_family_cannot_do(run, batch):
    family = run.family._replace(encode=None, log_prob=None, bound=None, latents=None)
    less = dataclasses.replace(run, family=family)
    for call in (
        lambda: less.log_prob(batch),
        lambda: less.encode(batch),
        lambda: less.draw_latents(2),
        lambda: less.interpolate(np.zeros((1, 64)), np.zeros((1, 64))),
    ):
        with pytest.raises(ValueError, match=r"cannot \w+: its family, Toy, has sample, decode$"):
            call()


def test_bad_arguments(run, batch):
    images, condition = batch["image"], batch["label"]
    with pytest.raises(ValueError, match=r"images must be uint8 \[N, 8, 8, 1\], .*float32 \[6,"):
        run.log_prob(images / np.float32(255), condition=condition)
    with pytest.raises(ValueError, match=r"got uint8 \[8, 8, 1\]"):
        run.encode(images[0], condition=3)
    with pytest.raises(ValueError, match="condition must be given: the model is told 'label'"):
        run.log_prob(images)
    with pytest.raises(ValueError, match="condition must be one, or one of each of 6, got 2"):
        run.log_prob(images, condition=[1, 2])
    with pytest.raises(ValueError, match="condition must be None: a batch has its own"):
        run.log_prob(batch, condition=3)
    with pytest.raises(ValueError, match="entries of one length"):
        run.log_prob({"image": images, "label": condition[:2]})
    with pytest.raises(ValueError, match=r"images\['image'\] must be uint8 \[N, 8, 8, 1\], as"):
        run.encode({"image": images / np.float32(255), "label": condition})
    with pytest.raises(ValueError, match=r"must have the entry 'image', got \['label'\]"):
        run.encode({"label": condition})
    with pytest.raises(ValueError, match="got 'eigth'; near are 'eight'"):
        run.sample(2, condition="eigth")
    with pytest.raises(ValueError, match="the number of samples must be at least 1"):
        run.sample(0)
    with pytest.raises(ValueError, match=r"latents must have the shapes \(2, 64\), got \(2, 63\)"):
        run.decode(np.zeros((2, 63), np.float32), condition=3)
    with pytest.raises(ValueError, match="start must be latents, got bytes: encode images first"):
        run.interpolate(images, images, condition=3)
    with pytest.raises(ValueError, match="latents must be arrays of one length, at least 1"):
        run.decode(np.float32(1), condition=3)
    z = np.zeros((2, 64), np.float32)
    with pytest.raises(ValueError, match="start and end must have the same shapes"):
        run.interpolate(z, z[:1], condition=3)
    with pytest.raises(ValueError, match="steps must be at least 2"):
        run.interpolate(z, z, 1, condition=3)
    with pytest.raises(ValueError, match="num must be at least 1"):
        run.draw_latents(0)


def test_attributes_that_leave_others_open(run):
    """Of several rows of the data that have them no one is chosen for given latents."""
    rows = np.array([[1, 0, 1], [1, 1, 0], [0, 1, 0]])
    kind = attributes(3, ("hat", "glasses", "hair"), rows)
    asked = dataclasses.replace(run, family=run.family._replace(conditioning=kind))
    with pytest.raises(ValueError, match="array of all 3 attributes here: the data has 2 rows wi"):
        asked.decode(np.zeros((2, 64), np.float32), condition="hat")


def test_what_is_not_finite_is_no_result(run, batch):
    z = np.full((2, 64), 0.0, np.float32)
    z[1, 5] = np.nan
    with pytest.raises(FloatingPointError, match="1 of 2 decoded images are not finite"):
        run.decode(z, condition=3)
    lost = jax.tree.map(lambda x: x * jnp.inf, run.variables)
    broken = dataclasses.replace(run, variables=lost)
    with pytest.raises(FloatingPointError, match="6 of 6 values of log_prob are not finite"):
        broken.log_prob(batch)
    with pytest.raises(FloatingPointError, match="6 of 6 latents are not finite"):
        broken.encode(batch)
