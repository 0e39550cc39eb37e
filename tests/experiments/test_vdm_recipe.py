"""The recipe of VDM: its table, its flags, and end to end where it is shrunk to the digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import call, evaluated, fails

from experiments import vdm_cifar
from experiments.recipes import vdm
from jaxgen.conditioning.base import Condition
from jaxgen.data.sources import digits
from jaxgen.models.schedules import MonotoneSchedule, ScalarSchedule
from jaxgen.models.vdm import VDMNetwork

TINY = (
    "--data.name=digits --batch-size=16 --model.channels=4 --model.num-res-blocks=1 "
    "--sampler.preview-steps=2 --sampler.num-steps=3 --log-every=5 --evaluation.num-examples=16"
).split()


def test_the_table_is_the_authors():
    """30.6M parameters, with those of a zero label; their schedule, optimizer and batches."""
    config = vdm_cifar.recipe.config
    model = config.model
    network = VDMNetwork(model.channels, model.num_res_blocks, model.attends, model.dropout)
    x = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(
        lambda: network.init(
            jax.random.key(0), x, jnp.zeros(1), Condition(jnp.zeros((1, 1))), train=False
        )
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 30_578_179
    assert model.exponents == network.exponents == (6, 7)
    assert (config.steps, config.batch_size, config.flip) == (10_000_000, 128, False)
    rates = config.optimizer
    assert (rates.learning_rate, rates.b1, rates.b2, rates.eps) == (2e-4, 0.9, 0.99, 1e-8)
    assert (rates.weight_decay, rates.warmup_steps, rates.clip_norm) == (0.01, 100, None)
    assert config.schedule == vdm.ScheduleConfig("scalar", -13.3, 5.0, num_timesteps=None)
    assert config.sampler.num_steps == 1000


def test_schedules_of_the_flags():
    assert vdm.make_schedule(vdm.ScheduleConfig(gamma_max=4.0)) == ScalarSchedule(-13.3, 4.0)
    flags = vdm.ScheduleConfig("monotone", -12.0, features=8)
    assert vdm.make_schedule(flags) == MonotoneSchedule(-12.0, 5.0, 8)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sampler.guidance-scale", "2.0"], "needs --model.condition"),
        (["--sampler.num-steps", "0"], "--sampler.num-steps must be at least 1, got 0"),
        (["--evaluation.num-draws", "0"], "--evaluation.num-draws must be at least 1, got 0"),
        (["--schedule.gamma-min", "6"], "gamma_min < gamma_max must hold"),
        (["--schedule.num-timesteps", "0"], "num_timesteps must be at least 1, got 0"),
        (["--optimizer.weight-decay", "-1"], "weight_decay must be finite and at least 0"),
    ],
)
def test_bad_input(tmp_path, capsys, flags, message):
    args = [*TINY, "--run-dir", str(tmp_path / "run"), *flags]
    assert message in fails(capsys, vdm_cifar, *args)


@pytest.mark.slow
def test_recipe_end_to_end(tmp_path, capsys):
    """Over eight devices: train both parts of a schedule, sample with guidance, evaluate."""
    run_dir = str(tmp_path / "run")
    more = ("--model.condition=label", "--schedule.kind=monotone", "--evaluation.num-draws=2")
    out = call(capsys, vdm_cifar, "--run-dir", run_dir, *TINY, *more, "--steps=10")
    assert "10 of 10 steps done" in out
    samples = tmp_path / "samples.npz"
    guided = ("--sampler.num-steps=4", "--sampler.guidance-scale=2.0")
    call(capsys, vdm_cifar, "sample", "--run-dir", run_dir, "--num=3", f"--out={samples}", *guided)
    with np.load(samples) as data:
        assert data["samples"].shape == (3, 8, 8, 1)
        assert data["samples"].dtype == np.uint8
    result = evaluated(capsys, vdm_cifar, "--run-dir", run_dir)
    assert result["loss"] == pytest.approx(result["bits_per_dim"] * 64 * np.log(2), rel=1e-5)
    assert (result["protocol"]["noise_levels"], result["protocol"]["draws"]) == ("continuous", 2)


def test_digits_fit_the_family():
    """The flags' shapes meet the data's: one step of the loss, from shapes alone."""
    model = vdm.VDMModelConfig(channels=4, num_res_blocks=1, condition="label")
    family = vdm.make_family(vdm.Config(model=model), digits("train"))
    batch = {"image": jnp.zeros((2, 8, 8, 1)), "label": jnp.zeros(2, jnp.int32)}

    def step(key):
        variables = family.init(key, batch)
        return family.phases[0].loss(variables, batch, key, jnp.int32(0))

    nats, aux = jax.eval_shape(step, jax.random.key(0))
    assert nats.shape == (2,)
    assert set(aux.metrics) >= {"prior_kl", "diffusion_kl", "decoder_nll", "gamma_0", "gamma_1"}
