"""The MeanFlow recipes: their flags and figures; end to end when slow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import call, fails

from experiments import ddpm_digits, meanflow_cifar, meanflow_digits
from experiments.recipes import meanflow

TINY = (
    "--model.channels=8 --model.multipliers 1 2 --model.attention-resolutions 4 --batch-size=16 "
    "--model.num-res-blocks=1 --log-every=5 --evaluation.num-examples=16"
).split()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--meanflow.guidance-scale", "2.0"], "--meanflow.guidance-scale and -mixing need"),
        (["--meanflow.apart", "2.0"], "apart must lie in [0, 1], got 2"),
        (["--meanflow.times-std", "0"], "std must be positive and finite, got 0"),
        (["--sampler.num-steps", "0"], "num_steps must be at least 1, got 0"),
        (["--precision", "bfloat16"], "--precision must be float32, got bfloat16"),
    ],
)
def test_bad_input(tmp_path, capsys, flags, message):
    args = [*TINY, "--run-dir", str(tmp_path / "run"), *flags]
    assert message in fails(capsys, meanflow_digits, *args)


def test_the_figures_of_the_recipes():
    """One evaluation a sample; the network of ddpm_digits; the authors' table for CIFAR-10."""
    assert meanflow_digits.recipe.config.sampler.num_steps == 1
    model = meanflow_digits.recipe.config.model
    assert model.channels == ddpm_digits.recipe.config.model.channels
    config = meanflow_cifar.recipe.config
    assert config.steps * config.batch_size == 800_000 * 1024
    network = meanflow.make_network(config.model, 3)
    x, t = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 2))
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), x, t, None, train=False))
    assert shapes["params"]["time1"]["kernel"].shape == (512, 512)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == pytest.approx(55.7e6 + 384 * 512, rel=2e-3)  # EDM's, told more


@pytest.mark.slow
def test_recipe_end_to_end(tmp_path, capsys):
    """Train with guidance, sample in two steps, evaluate."""
    run_dir = ("--run-dir", str(tmp_path / "run"))
    more = ("--model.condition=label", "--meanflow.guidance-scale=1.5", "--steps=10")
    out = call(capsys, meanflow_digits, *run_dir, *TINY, *more)
    assert "10 of 10 steps done" in out
    path = tmp_path / "samples.npz"
    call(
        capsys,
        meanflow_digits,
        "sample",
        *run_dir,
        "--num=3",
        f"--out={path}",
        "--sampler.num-steps=2",
    )
    with np.load(path) as data:
        assert data["samples"].shape == (3, 8, 8, 1)
    call(capsys, meanflow_digits, "evaluate", *run_dir)
