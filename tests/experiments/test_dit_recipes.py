"""The transformer and latent diffusion's U-Net by the flags of chains and processes."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from recipes import call, evaluated

from experiments import dit_digits
from experiments.recipes import diffusion, score
from experiments.recipes.score import ProcessConfig
from jaxgen.noise.process import rectified


@pytest.mark.slow
@pytest.mark.parametrize("network", ["dit", "ldm"])
def test_a_text_is_read(tmp_path, capsys, network):
    """Train, sample and evaluate a network that reads sentences, in pixels."""
    run_dir = ("--run-dir", str(tmp_path / "run"))
    sizes = {
        "dit": "--model.dit.width=16 --model.dit.depth=1 --model.dit.num-heads=2",
        "ldm": "--model.channels=4 --model.multipliers 1 --model.attention-resolutions 16",
    }
    flags = "--data.name=captioned_digits --model.condition=text --batch-size=8"
    text = "--text.width=8 --text.num-layers=1 --text.num-heads=1 --steps=2 --sample-every=0"
    more = "--model.num-res-blocks=1 --evaluation.num-examples=4 --sampler.num-steps=2"
    flags = [f"--model.network={network}", *f"{flags} {text} {more} {sizes[network]}".split()]
    assert "2 of 2 steps done" in call(capsys, dit_digits, *run_dir, *flags)
    samples = tmp_path / "samples.npz"
    asked = ("--text=a red seven on a blue ground", "--num=2", f"--out={samples}")
    call(capsys, dit_digits, "sample", *run_dir, *asked)
    assert np.load(samples)["samples"].shape == (2, 16, 16, 3)
    result = evaluated(capsys, dit_digits, *run_dir)
    assert np.isfinite(result["loss"])


def test_networks_of_recipes():
    """DiT and latent diffusion's U-Net for chains and processes; what they do not have is named."""
    flags = dit_digits.recipe.config
    network = score.make_network(flags.model, 1, "float32")
    assert (network.width, network.depth, network.patch_size) == (96, 4, 2)
    unconditional = replace(flags.model, network="ldm", condition="none")
    assert score.make_network(unconditional, 1, "float32").transformer_depth == 0
    assert score.make_network(replace(unconditional, condition="text"), 1, "float32").num_heads == 1
    with pytest.raises(ValueError, match="--augment must be None with --model.network dit"):
        score.make_network(flags.model, 1, "float32", informed=True)
    with pytest.raises(ValueError, match="--model.scale-shift must be false"):
        diffusion.make_network(replace(unconditional, scale_shift=True), 1, "float32")


@pytest.mark.parametrize("network", ["dit", "ldm"])
@pytest.mark.parametrize(("prediction", "told"), [("velocity", 250.0), ("edm", 0.0)])
def test_networks_with_sinusoids_are_told_times_of_a_thousand_steps(network, prediction, told):
    flags = dit_digits.recipe.config
    process = ProcessConfig(name="rectified", prediction=prediction)
    flags = replace(flags, model=replace(flags.model, network=network), process=process)
    level = rectified().at(jnp.array([0.25 if prediction == "velocity" else 0.5]))
    (time,) = score.make_parametrization(flags, rectified()).time(level)
    assert float(time) == pytest.approx(told, abs=1e-3)
