"""The recipes of continuous processes: shrunk here, at their own size in the slow tests."""

from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import call, evaluated, fails, launch, recognised, sklearn_classifier

from experiments import (
    ddpm_digits,
    ddpmpp_cifar,
    edm_cifar,
    edm_digits,
    flow_cifar,
    flow_digits,
    ncsnpp_cifar,
)
from experiments.recipes import score
from jaxgen.noise.process import edm

TINY = (
    "--model.channels=8 --model.multipliers 1 2 --model.attention-resolutions 4 --batch-size=16 "
    "--model.num-res-blocks=1 --log-every=5 --evaluation.num-examples=16 --evaluation.tolerance=0.1"
).split()


@pytest.mark.slow
def test_recipe_end_to_end(tmp_path, capsys):
    """Over eight devices: train, sample with another solver and guidance, evaluate."""
    run_dir = str(tmp_path / "run")
    more = ("--model.condition=label", "--sampler.num-steps=3")
    out = call(capsys, edm_digits, "--run-dir", run_dir, *TINY, *more, "--steps=10")
    assert "10 of 10 steps done" in out
    assert (tmp_path / "run" / "samples" / "00000010.png").exists()

    samples = tmp_path / "samples.npz"
    other = ("--sampler.solver=unipc", "--sampler.num-steps=4", "--sampler.guidance-scale=2.0")
    call(capsys, edm_digits, "sample", "--run-dir", run_dir, "--num=3", f"--out={samples}", *other)
    with np.load(samples) as data:
        assert data["samples"].shape == (3, 8, 8, 1)

    result = evaluated(capsys, edm_digits, "--run-dir", run_dir)
    assert result["loss"] == pytest.approx(result["bits_per_dim"] * 64 * np.log(2), rel=1e-5)
    assert result["protocol"]["tolerance"] == 0.1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sampler.guidance-scale", "2.0"], "needs --model.condition"),
        (["--process.times", "uniform"], "--process.times must be log_normal with"),
        (["--process.prediction", "v"], "--process.prediction v is of a variance-preserving"),
        (["--sampler.num-steps", "0"], "--sampler.num-steps must be at least 1, got 0"),
        (["--sampler.sigma-min", "0"], "0 < sigma_min < sigma_max must hold"),
        (
            ["--process.name=ve", "--process.prediction=eps", "--sampler.sigma-max=120"],
            "greatest ratio of noise to signal, 100",
        ),
        (["--sampler.grid", "log_snr"], "--sampler.last-time must be positive with"),
        (["--evaluation.tolerance", "0"], r"--evaluation.tolerance must lie in (0, 1), got 0"),
        (["--evaluation.first-time", "90"], "--evaluation.first-time must lie in (0, 80)"),
        (["--augment", "0.1"], "--augment must be None with --model.network ddpm"),
        (
            ["--augment", "1.5", "--model.network", "ddpmpp"],
            "--augment must lie in [0, 1], got 1.5",
        ),
        (["--process.sigma-data", "0"], "sigma_data must be positive and finite, got 0"),
    ],
)
def test_bad_input(tmp_path, capsys, flags, message):
    args = [*TINY, "--run-dir", str(tmp_path / "run"), *flags]
    assert message in fails(capsys, edm_digits, *args)


@pytest.mark.parametrize(
    ("name", "evaluations"),
    [("heun", 17), ("euler", 9), ("dpm", 9), ("unipc", 9), ("dpm_sde", 9), ("euler_maruyama", 9)]
    + [("reverse_diffusion", 9), ("predictor_corrector", 18)],
)
@pytest.mark.parametrize("grid", ["karras", "uniform"])
def test_samplers_of_the_flags(name, evaluations, grid):
    for make in score.PROCESSES.values():
        process = make()
        flags = score.SamplerConfig(solver=name, num_steps=9, grid=grid, sigma_max=40.0)
        if process.prior_std == 100:
            flags = replace(flags, sigma_min=0.03)  # of VE, whose least is 0.02
        made = score.make_sampler(flags, process)
        times = np.asarray(made.times(9))
        assert times.shape == (10,)
        assert (np.diff(times) < 0).all()
        assert times[0] <= process.last_time
        assert made.evaluations == evaluations


def test_the_figures_of_the_recipes():
    """20 or 35 evaluations a sample, and the network of ddpm_digits but for its width."""
    for module, evaluations in ((edm_digits, 20), (flow_digits, 35)):
        config = module.recipe.config
        model = asdict(config.model)
        assert model["network"] == "ddpm"
        assert {**model, "channels": 32} == asdict(ddpm_digits.recipe.config.model)
        process = score.PROCESSES[config.process.name]()
        assert score.make_sampler(config.sampler, process).evaluations == evaluations


@pytest.mark.parametrize(
    ("module", "count"),
    [(edm_cifar, 55.7e6), (ncsnpp_cifar, 62.8e6), (ddpmpp_cifar, 61.8e6), (flow_cifar, 60.9e6)],
    ids=["edm", "ncsnpp", "ddpmpp", "flow"],
)
def test_networks_of_the_papers(module, count):
    config = module.recipe.config
    network = score.make_network(config.model, 3, "float32", informed=config.augment is not None)
    x = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(
        lambda: network.init(jax.random.key(0), x, jnp.zeros(1), None, train=False)
    )
    counted = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert counted == pytest.approx(count, rel=2e-3)


def test_times_in_the_papers_units():
    """NCSN++ is given ln sigma of data in [0, 1], DDPM++ 999 t, and their samplers' evaluations."""
    times = jnp.array([1e-5, 0.5, 1.0])
    for module, given in (
        (ncsnpp_cifar, np.log([0.01, 0.5**0.5, 50])),
        (ddpmpp_cifar, 999 * times),
    ):
        config = module.recipe.config
        path = score.PROCESSES[config.process.name]()
        made = score.make_parametrization(config, path)
        np.testing.assert_allclose(made.time(path.at(times)), given, rtol=1e-3)
    sampler = score.make_sampler(ncsnpp_cifar.recipe.config.sampler, score.PROCESSES["ve"]())
    assert (sampler.num_steps, sampler.evaluations) == (1000, 2000)


def test_edm_on_cifar_is_the_papers():
    """The authors' table: 200 million images, their augmentation, rates and levels."""
    config = edm_cifar.recipe.config
    assert (config.augment, config.flip) == (0.12, False)
    assert config.steps * config.batch_size == pytest.approx(200e6, rel=1e-4)
    assert config.optimizer.warmup_steps * config.batch_size == pytest.approx(10e6, rel=1e-3)
    made = score.make_parametrization(config, edm())
    level = edm().at(jnp.array([0.002, 80.0]))
    np.testing.assert_allclose(made.time(level), np.log([0.002, 80.0]) / 4, rtol=1e-5)
    other = score.make_parametrization(edm_digits.recipe.config, edm())
    np.testing.assert_allclose(other.time(level), 250 * np.log([0.002, 80.0]), rtol=1e-5)


@pytest.mark.parametrize("network", sorted(score.NETWORKS))
def test_networks_of_the_flags(network):
    model = score.ScoreModelConfig(
        channels=8,
        multipliers=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(),
        network=network,
    )
    made = score.make_network(model, 1, "float32")
    x = jnp.zeros((2, 8, 8, 1))
    shapes = jax.eval_shape(
        lambda: made.init_with_output(jax.random.key(0), x, jnp.zeros(2), None, train=False)
    )
    assert shapes[0].shape == x.shape
    with pytest.raises(ValueError, match="--model.num-heads must be 1"):
        score.make_network(replace(model, num_heads=2), 1, "float32")
    with pytest.raises(ValueError, match="--model.scale-shift must be false"):
        score.make_network(replace(model, scale_shift=True), 1, "float32")


@pytest.mark.slow
@pytest.mark.parametrize("module", [edm_digits, flow_digits], ids=["edm", "flow"])
def test_digits_anyone_can_read(module, tmp_path, capsys):
    """An independent classifier knows the samples nearly as often as held-out real digits."""
    classifier, real = sklearn_classifier()
    launch(module, tmp_path / "run", optimized=True)
    out = tmp_path / "samples.npz"
    run_dir = ("--run-dir", str(tmp_path / "run"))
    call(capsys, module, "sample", *run_dir, "--num=500", f"--out={out}")
    with np.load(out) as data:
        share, classes = recognised(classifier, data["samples"])
    print(f"recognised: {share:.3f} of samples, {real:.3f} of held-out digits")
    assert share >= 0.9 * real
    assert classes == set(range(10))
