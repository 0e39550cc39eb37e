"""The flow recipes end to end, shrunk; the round trip; what they learn of known densities."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from recipes import call, evaluated, fails, readable_ratio, tiles

from experiments import (
    glow_cifar,
    glow_mnist,
    maf_gas,
    maf_power,
    maf_tabular,
    nsf_gas,
    nsf_power,
    nsf_tabular,
    realnvp_cifar,
    realnvp_digits,
)
from experiments.recipes import tabular
from experiments.recipes.flow import build, make_model, make_penalty
from jaxgen.training.config import DataConfig, from_dict, to_dict

X = jnp.zeros((2, 32, 32, 3))
SMALL = ("--model.width=4", "--model.levels=1", "--model.blocks=1")
SHORT = ("--steps=4", "--log-every=1", "--batch-size=16", "--sample-every=4")


@pytest.mark.slow
def test_realnvp_end_to_end(tmp_path, capsys):
    """Train, evaluate, sample at another temperature, and every picture."""
    run_dir = str(tmp_path / "run")
    call(capsys, realnvp_digits, "--run-dir", run_dir, *SHORT, *SMALL)
    assert (tmp_path / "run" / "samples" / "00000004.png").exists()
    result = evaluated(capsys, realnvp_digits, "--run-dir", run_dir)
    terms = ("prior", "volume", "quantization", "dequantization")
    assert result["loss"] == pytest.approx(sum(result[t] for t in terms), rel=1e-5)
    assert result["bits_per_dim"] == pytest.approx(result["loss"] / 64 / np.log(2), rel=1e-5)
    assert result["protocol"]["num_examples"] == 297
    assert result["round_trip_error"] < 1e-4
    assert result["round_trip_exact"] == 1
    assert "1e-04" in result["protocol"]["round_trip"]

    out = tmp_path / "cold.npz"
    flags = ("--run-dir", run_dir, "--num=5", "--temperature=0.5", f"--out={out}")
    call(capsys, realnvp_digits, "sample", *flags)
    assert np.load(out)["samples"].shape == (5, 8, 8, 1)
    for picture in ("interpolation", "between_examples", "direction", "reconstructions"):
        out = tmp_path / f"{picture}.png"
        options = ("--picture", picture, "--num=10", "--columns=5", f"--out={out}")
        call(capsys, realnvp_digits, "sample", "--run-dir", run_dir, *options)
        tiles(out, 2, 5)
    # Digits come back: the second line is the first.
    examples, rebuilt = tiles(tmp_path / "reconstructions.png", 2, 5)
    np.testing.assert_array_equal(examples, rebuilt)


@pytest.mark.parametrize(
    ("recipe", "flags"),
    [
        pytest.param(
            realnvp_cifar,
            [*SMALL, "--model.levels=2", "--model.couplings=1"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            glow_cifar,
            ["--model.width=4", "--model.steps=2", "--model.levels=1"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            glow_mnist,
            ["--model.width=4", "--model.steps=2", "--model.condition=label", "--model.remat"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_image_recipes(recipe, flags, tmp_path, capsys):
    run_dir = str(tmp_path / "run")
    out = call(capsys, recipe, "--run-dir", run_dir, "--data.name=digits", *SHORT, *flags)
    assert "4 of 4 steps done" in out
    result = evaluated(capsys, recipe, "--run-dir", run_dir, "--evaluation.num-examples=16")
    assert 0 < result["bits_per_dim"] < 20
    assert 0 < result["round_trip_error"] < 1e-4
    assert result["protocol"]["num_examples"] == 16


def count(recipe):
    config = recipe.recipe.config
    model = make_model(config, (32, 32, 3))
    init = partial(model.init, jax.random.key(0))
    return sum(p.size for p in jax.tree.leaves(jax.eval_shape(init, X)["params"]))


def test_glow_trains_as_its_authors():
    """Adamax whose rate rises over 977 steps, b2 1 - 1/98; images shifted in training alone."""
    small = replace(glow_cifar.recipe.config.model, levels=1, steps=1, width=4)
    data = DataConfig(name="digits")
    experiment = build(replace(glow_cifar.recipe.config, model=small, data=data))
    transform = experiment.family.optimizers["likelihood"].transform
    params = {"w": jnp.zeros(1)}
    state = transform.init(params)
    for gradient in (1000.0, 0.0):  # nothing clips it
        update, state = transform.update({"w": jnp.full(1, gradient)}, state, params)
    moment = 0.9 * 0.1 / (1 - 0.9**2)
    np.testing.assert_allclose(update["w"], -1e-3 / 977 * moment / (1 - 1 / 98), rtol=1e-4)
    raw = jax.tree.map(jnp.asarray, experiment.pipeline.source[np.arange(16)])
    images = [experiment.prepare(jax.random.key(0), raw, train)["image"] for train in (True, False)]
    assert not np.array_equal(*images)
    assert not experiment.averages


def test_realnvp_trains_as_its_authors():
    """5e-5 of each squared scale; no warm-up; no average."""
    config = realnvp_cifar.recipe.config
    penalty = make_penalty(config)
    np.testing.assert_allclose(penalty({"magnitude": jnp.full(4, 2.0)}), 5e-5 * 16, rtol=1e-6)
    assert make_penalty(realnvp_digits.recipe.config) is None
    assert config.optimizer.warmup_steps == 0
    assert not config.average.decay


def test_glow_has_its_authors_parameters():
    """Counted from openai/glow, but for what the last prior's kernel has for an input of zeros."""

    def step(c, d=512):
        hidden = 9 * (c // 2 + 1) * d + 2 * d + d * d + 2 * d
        return 2 * c + c * c + hidden + 9 * (d + 1) * c + 2 * c

    def prior(c):
        return 9 * (c // 2 + 1) * c + 2 * c

    steps = sum(32 * step(c) for c in (12, 24, 48))
    assert count(glow_cifar) == steps + prior(12) + prior(24) + 9 * 96 + 2 * 96


def test_realnvp_has_its_authors_parameters():
    """19,609,545 as tests/models/bijectors/test_skip_resnet.py counts them, their input norms left
    out, and an `ActNorm` in each coupling."""
    input_norms = 3 * 3 + 3 * 6 + 4 * 6
    act_norms = 2 * (3 * 3 + 3 * 12 + 4 * 6)
    assert count(realnvp_cifar) == 19_609_545 - input_norms + act_norms


@pytest.mark.parametrize("recipe", [maf_tabular, nsf_tabular])
@pytest.mark.slow
def test_tabular_recipes(recipe, tmp_path, capsys):
    """The density's pictures, samples as vectors, and another set from a file."""
    run_dir = str(tmp_path / "run")
    flags = ("--run-dir", run_dir, *SHORT, "--model.hidden", "8", "--model.layers=2")
    call(capsys, recipe, *flags)
    assert Image.open(tmp_path / "run" / "samples" / "00000004.png").size == (3 * 130 + 2, 132)
    out = tmp_path / "samples.npz"
    call(capsys, recipe, "sample", "--run-dir", run_dir, "--num=7", f"--out={out}")
    samples = np.load(out)["samples"]
    assert samples.shape == (7, 2)
    assert samples.dtype == np.float32
    message = fails(capsys, recipe, "sample", "--run-dir", run_dir, f"--out={tmp_path / 'x.png'}")
    assert "must end in .npz" in message

    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(500, 3)))
    other = ("--run-dir", str(tmp_path / "other"), "--data.name=file")
    call(capsys, recipe, *flags, *other, f"--data.dir={tmp_path / 'rows.npy'}")
    assert evaluated(capsys, recipe, *other[:2])["protocol"]["num_examples"] == 50


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Small tables with the columns of POWER and of GAS."""
    folder, rng = tmp_path_factory.mktemp("tables"), np.random.default_rng(0)
    for name, columns in (("power", 8), ("gas", 19)):
        np.save(folder / f"{name}.npy", rng.normal(size=(1000, columns)))
    return folder


def with_table(recipe, tables, **changes):
    """The recipe's config with its table, and the experiment that it builds."""
    config = recipe.recipe.config
    data = replace(config.data, dir=str(tables / f"{config.data.name}.npy"))
    config = replace(config, data=data, **changes)
    return config, recipe.recipe.build(config)


@pytest.mark.parametrize(
    ("recipe", "batch", "first_rate", "middle_rate", "width", "parameters"),
    [
        # A layer of MADE: 6x100 + 100, 100x100 + 100, two times 100x6 + 6; ActNorm 2x6.
        (maf_power, 100, 1e-4, 1e-4, 6, 5 * (700 + 10100 + 1212 + 12)),
        (maf_gas, 100, 1e-4, 1e-4, 16, 5 * (1700 + 10100 + 3232 + 32)),
        # A step: LU 6x6 + 6; 3 -> 256, four of 256, 256 -> 3x23; splines 3x23. One more LU.
        (nsf_power, 512, 5e-4, 2.5e-4, 6, 11 * 42 + 10 * (1024 + 4 * 65792 + 17733 + 69)),
        (nsf_gas, 512, 5e-4, 2.5e-4, 16, 11 * 272 + 10 * (2304 + 4 * 65792 + 47288 + 184)),
    ],
)
def test_the_papers_tables(recipe, batch, first_rate, middle_rate, width, parameters, tables):
    """Size, batch and rates, as the authors' code has them."""
    config, experiment = with_table(recipe, tables)
    assert config.batch_size == batch
    assert experiment.held_out.spec["vector"][0] == (width,)
    assert "Papamakarios" in experiment.protocol["preprocessing"]
    family, x = experiment.family, {"vector": jax.ShapeDtypeStruct((8, width), jnp.float32)}
    shapes = jax.eval_shape(family.init, jax.random.key(0), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes.params)) == parameters

    params = {"w": jnp.full(1, 1e-3)}
    (optimizer,) = family.optimizers.values()
    state, step = optimizer.transform.init(params), jax.jit(optimizer.transform.update)
    update, state = step({"w": jnp.ones(1)}, state, params)
    np.testing.assert_allclose(-update["w"], first_rate, rtol=1e-3)
    counts = jax.tree.map(
        lambda v: jnp.full_like(v, 200_000) if jnp.issubdtype(v.dtype, jnp.integer) else v, state
    )
    update, _ = step({"w": jnp.ones(1)}, counts, params)
    moments = np.sqrt(0.001999) / 0.19  # of two equal gradients, once the bias is not corrected
    np.testing.assert_allclose(-update["w"] * moments, middle_rate, rtol=1e-3)


def test_the_penalty_of_all_parameters():
    """With no gradient of the loss an update is that of l2 times the parameters."""
    optimizer = tabular.make_optimizer(tabular.OptimizerConfig(l2=1e-3, warmup_steps=0))
    params = {"w": jnp.array([2.0, -3.0, 0.0])}
    gradient = jax.tree.map(jnp.zeros_like, params)
    update, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(update["w"], [-1e-3, 1e-3, 0.0], rtol=1e-3)


@pytest.mark.parametrize("recipe", [maf_power, nsf_gas])
def test_precision_of_tabular_recipes(recipe, tables):
    """bfloat16 reaches the loss, and nothing else."""
    model = recipe.recipe.config.model
    small = replace(model, layers=2, hidden=(8,) * len(model.hidden))
    _, experiment = with_table(recipe, tables, model=small, precision="bfloat16")
    family, (width,) = experiment.family, experiment.held_out.spec["vector"][0]
    x, key = {"vector": jax.ShapeDtypeStruct((8, width), jnp.float32)}, jax.random.key(0)
    variables = jax.eval_shape(family.init, key, x)
    loss = jax.make_jaxpr(family.phases[0].loss)(variables, x, key, jnp.int32(0))
    assert "bf16" in str(loss)
    assert "bf16" not in str(jax.make_jaxpr(family.evaluate)(variables, x, key))


@pytest.mark.slow
def test_digits_anyone_can_read(tmp_path, capsys):
    """Of every class, and no copies."""
    run_dir, out = tmp_path / "run", tmp_path / "samples.npz"
    ratio, classes, nearest = readable_ratio(capsys, realnvp_digits, run_dir, out)
    print(f"{ratio:.3f} of the held-out digits' share is readable; {nearest:.3f}")
    assert ratio >= 0.85
    assert classes == set(range(10))
    assert nearest > 0.85


@pytest.mark.slow
def test_the_checkerboard_is_learned(tmp_path, capsys):
    """Log 32 nats are the least; four nats is where a Gaussian stays (4.51)."""
    flags = ("--steps=400", "--batch-size=512", "--sample-every=0", "--average.decay=0.95")
    rate = ("--optimizer.learning-rate=3e-3", "--model.layers=4")
    call(capsys, nsf_tabular, "--run-dir", str(tmp_path / "run"), *flags, *rate)
    nats = evaluated(capsys, nsf_tabular, "--run-dir", str(tmp_path / "run"))["loss"]
    assert np.log(32) < nats < 4.0


@pytest.mark.parametrize(
    ("recipe", "flags", "message"),
    [
        (glow_mnist, ["--data.name=digits", "--data.resize=9"], "2^2 divides, the images have 9x9"),
        (realnvp_digits, ["--model.condition=label"], "needs --model.network glow"),
        (realnvp_digits, ["--model.bound=None"], "needs --model.network glow"),
        (realnvp_digits, ["--l2=1e-4"], "--l2 needs --model.network realnvp and --model.skips"),
        (realnvp_digits, ["--l2=-1"], "--l2 must be at least 0 and finite"),
        (maf_tabular, ["--data.name=moons"], "known are two_moons"),
        (maf_tabular, ["--data.resize=8"], "is for images"),
        (maf_tabular, ["--data.standardize"], "standardize is for the data set 'file'"),
        (maf_tabular, ["--model.dropout=0.1"], "need --model.network nsf"),
        (nsf_tabular, ["--model.dropout=0.1"], "--model.dropout needs --model.blocks"),
        (nsf_tabular, ["--model.blocks=1"], "must be one width with --model.blocks, got (64, 64)"),
        (nsf_tabular, ["--model.activation=relu"], "needs --model.network maf"),
        (nsf_tabular, ["--optimizer.schedule=cosine"], "schedule cosine needs decay_steps"),
        (maf_tabular, ["--optimizer.l2=-1"], "--optimizer.l2 must be at least 0 and finite"),
        (maf_power, [], "'power' needs --data.dir"),
        (
            realnvp_digits,
            ["--data.resize=10", "--model.values=17"],
            "pixels must have 17 values, evenly spaced",
        ),
        (realnvp_digits, ["--temperature=-1"], "temperature must be at least 0"),
    ],
)
def test_bad_input(recipe, flags, message, tmp_path, capsys):
    assert message in fails(capsys, recipe, "--run-dir", str(tmp_path / "run"), *flags)


def test_older_runs_had_a_flag_for_the_cosine():
    """What they stored is read as the schedule of now."""
    for recipe, cosine in ((nsf_gas.recipe, True), (maf_power.recipe, False)):
        stored = to_dict(recipe.config)
        stored["optimizer"] = {k: v for k, v in stored["optimizer"].items() if k != "schedule"}
        stored["optimizer"]["cosine"] = cosine
        assert from_dict(recipe.config, stored) == recipe.config
