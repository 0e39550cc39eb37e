"""The recipe of a consistency model: its flags and levels; distilled when slow."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from recipes import call, fails

from experiments import consistency_digits, edm_digits
from experiments.recipes import consistency

TINY = (
    "--model.channels=8 --model.multipliers 1 2 --model.attention-resolutions 4 --batch-size=16 "
    "--model.num-res-blocks=1 --log-every=5 --evaluation.num-examples=16"
).split()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sampler.guidance-scale", "2.0"], "--sampler.guidance-scale needs --model.condition"),
        (["--sampler.num-steps", "0"], "num_steps must be at least 1, got 0"),
        (["--consistency.sigma-min", "0"], "0 < sigma_min < sigma_max must hold"),
        (["--consistency.intervals-std", "0"], "std must be positive and finite, got 0"),
        (["--steps", "3"], "total_steps must be more than 4, got 3"),
        (["--teacher", "nowhere"], "nowhere is no run directory"),
    ],
)
def test_bad_input(tmp_path, capsys, flags, message):
    args = [*TINY, "--run-dir", str(tmp_path / "run"), *flags]
    assert message in fails(capsys, consistency_digits, *args)


def test_the_figures_of_the_recipe():
    """The network is edm_digits', wider, told 250 ln sigma; 11 levels at first, 161 at last."""
    config = consistency_digits.recipe.config
    assert replace(config.model, channels=24) == edm_digits.recipe.config.model
    predicts = consistency.make_parametrization(config)
    level = consistency.edm().at(jnp.array([0.002, 80.0]))
    np.testing.assert_allclose(predicts.time(level), 250 * np.log([0.002, 80.0]), rtol=1e-5)
    np.testing.assert_allclose(predicts.out(level)[0], 0.0, atol=1e-7)
    num = consistency.make_num_levels(config.consistency, config.steps)
    assert [int(num(jnp.int32(k))) for k in (0, config.steps - 1)] == [11, 161]


@pytest.mark.slow
def test_recipe_end_to_end(tmp_path, capsys):
    """A tiny EDM, distilled; two steps; another kind of teacher is refused."""
    first, run_dir = str(tmp_path / "first"), ("--run-dir", str(tmp_path / "run"))
    call(capsys, edm_digits, "--run-dir", first, *TINY, "--steps=2")
    args = (*TINY, "--teacher", first, "--consistency.schedule=fixed", "--consistency.last=17")
    out = call(capsys, consistency_digits, *run_dir, *args, "--steps=10")
    assert "10 of 10 steps done" in out
    path = tmp_path / "samples.npz"
    two = ("--sampler.num-steps=2", "--num=3", f"--out={path}")
    call(capsys, consistency_digits, "sample", *run_dir, *two)
    with np.load(path) as data:
        assert data["samples"].shape == (3, 8, 8, 1)
    call(capsys, consistency_digits, "evaluate", *run_dir)
    wrong = ("--run-dir", str(tmp_path / "other"), *TINY, "--teacher", run_dir[1])
    assert "--teacher must be a run of a recipe with" in fails(capsys, consistency_digits, *wrong)
