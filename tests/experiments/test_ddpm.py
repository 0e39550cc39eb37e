"""The DDPM recipes, end to end: shrunk here, at their own size in the slow test."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import call, evaluated, fails, launch, recognised, sklearn_classifier

from experiments import ddpm_cifar, ddpm_digits, iddpm_cifar
from experiments.recipes import diffusion
from jaxgen.data.sources import digits
from jaxgen.families.diffusion import HISTORY

TINY = (
    "--model.channels=8 --model.multipliers 1 2 --model.attention-resolutions 4 --batch-size=16 "
    "--model.num-res-blocks=1 --diffusion.num-timesteps=20 --sampler.preview-steps=5 --log-every=5 "
    "--evaluation.num-examples=16"
).split()


@pytest.mark.slow
def test_recipe_end_to_end(tmp_path, capsys):
    """The CIFAR-10 recipe, on the embedded digits, over eight devices: train, sample, evaluate."""
    run_dir = str(tmp_path / "run")
    flags = ("--run-dir", run_dir, "--data.name", "digits", *TINY)
    more = ("--model.condition=label", "--diffusion.learned-variance", "--accumulate=2")
    out = call(capsys, ddpm_cifar, *flags, *more, "--steps=10")
    assert "10 of 10 steps done" in out
    assert (tmp_path / "run" / "samples" / "00000010.png").exists()

    samples = tmp_path / "samples.npz"
    guided = ("--sampler.name=ddim", "--sampler.num-steps=4", "--sampler.guidance-scale=2.0")
    call(capsys, ddpm_cifar, "sample", "--run-dir", run_dir, "--num=3", f"--out={samples}", *guided)
    with np.load(samples) as data:
        assert data["samples"].shape == (3, 8, 8, 1)

    result = evaluated(capsys, ddpm_cifar, "--run-dir", run_dir)
    assert 0 < result["bits_per_dim"] < 50
    assert result["loss"] == pytest.approx(result["bits_per_dim"] * 64 * np.log(2), rel=1e-5)
    assert result["protocol"]["num_examples"] == 16
    assert "test" in result["protocol"]["data"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.name", "cifra10"], "unknown data set 'cifra10'; did you mean 'cifar10'"),
        (["--data.name", "cifar10", "--data.dir", "nowhere"], "nowhere"),
        (["--model.multipliers", "1", "2", "2", "2", "2"], "cannot be halved 4 times"),
        (["--sampler.guidance-scale", "2.0"], "needs --model.condition"),
        (
            ["--diffusion.objective", "bound", "--diffusion.weighting", "snr"],
            "--diffusion.weighting must be simple with --diffusion.objective bound, got snr",
        ),
    ],
)
def test_bad_input(tmp_path, capsys, flags, message):
    args = [*TINY, "--run-dir", str(tmp_path / "run"), *flags]
    assert message in fails(capsys, ddpm_digits, *args)


def test_improved_ddpm_is_the_authors():
    """Their table: 52.5M parameters, 4000 cosine steps, times of a thousand, L_hybrid."""
    config = iddpm_cifar.recipe.config
    x = jnp.zeros((1, 32, 32, 3))
    network = diffusion.make_network(config.model, 6, "float32")
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), x, jnp.zeros(1), train=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 52_546_438
    assert network.dropout == 0.3
    process = config.diffusion
    assert (process.num_timesteps, process.schedule, process.learned_variance) == (
        4000, "cosine", True,
    )  # fmt: skip
    level = diffusion.chains.chain(diffusion.make_betas(process)).at(jnp.array([0, 1000, 3999]))
    times = diffusion.make_parametrization(process).time(level)
    np.testing.assert_allclose(times, [0, 250, 999.75])
    plain = diffusion.make_parametrization(replace(process, scaled_times=False)).time(level)
    np.testing.assert_array_equal(plain, [0, 1000, 3999])
    rates = config.optimizer
    assert (rates.learning_rate, rates.warmup_steps, rates.clip_norm) == (1e-4, 0, None)
    assert (config.steps, config.batch_size, config.average.decay) == (500_000, 128, 0.9999)
    assert not config.flip


def test_importance_of_the_flags():
    """A history of every timestep's losses in the state, and the bound as the loss."""
    config = iddpm_cifar.recipe.config
    bound = replace(config.diffusion, objective="bound", importance=True)
    model = replace(config.model, channels=16, multipliers=(1, 2), num_res_blocks=1, num_heads=1)
    batch = {"image": jnp.zeros((2, 8, 8, 1))}
    for process, history in ((bound, True), (config.diffusion, False)):
        flags = replace(config, model=model, diffusion=process)
        family = diffusion.make_family(flags, digits("train"))

        def step(key, family=family):
            variables = family.init(key, batch)
            return variables.state, family.phases[0].loss(variables, batch, key, jnp.int32(0))

        state, (loss, aux) = jax.eval_shape(step, jax.random.key(0))
        assert loss.shape == (2,)
        assert (HISTORY in state) == history
        if history:
            assert state[HISTORY].squares.shape == (4000, 10)
            assert aux.state[HISTORY].counts.shape == (4000,)


@pytest.mark.slow
def test_the_bound_with_importance_sampling_end_to_end(tmp_path, capsys):
    """Shrunk to the digits: the history travels in the checkpoint; samples do without it."""
    run_dir = str(tmp_path / "run")
    flags = ("--run-dir", run_dir, "--data.name", "digits", *TINY, "--model.num-heads=1")
    more = ("--diffusion.objective=bound", "--diffusion.importance")
    call(capsys, iddpm_cifar, *flags, *more, "--steps=5")
    out = call(capsys, iddpm_cifar, *flags, *more, "--steps=10")
    assert "10 of 10 steps done" in out
    samples = tmp_path / "samples.npz"
    call(capsys, iddpm_cifar, "sample", "--run-dir", run_dir, "--num=3", f"--out={samples}")
    with np.load(samples) as data:
        assert data["samples"].shape == (3, 8, 8, 1)


@pytest.mark.slow
def test_digits_anyone_can_read(tmp_path, capsys):
    """An independent classifier knows the samples nearly as often as held-out real digits."""
    classifier, real = sklearn_classifier()
    launch(ddpm_digits, tmp_path / "run", optimized=True)
    out = tmp_path / "samples.npz"
    run_dir = ("--run-dir", str(tmp_path / "run"))
    call(capsys, ddpm_digits, "sample", *run_dir, "--num=500", f"--out={out}")
    with np.load(out) as data:
        share, classes = recognised(classifier, data["samples"])
    print(f"recognised: {share:.3f} of samples, {real:.3f} of held-out digits")
    assert share >= 0.9 * real
    assert classes == set(range(10))
