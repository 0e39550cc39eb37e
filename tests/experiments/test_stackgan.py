"""The StackGAN recipes: both stages from the command line, shrunk; what is no first stage."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from recipes import call, evaluated, fails, tiles

from experiments import dcgan_digits, stackgan_digits, stackgan_stage1, stackgan_stage2
from experiments.recipes import stackgan
from jaxgen.core import Variables
from jaxgen.data.sources import ArraySource
from jaxgen.models.stackgan import FIRST
from jaxgen.training.runs import open_run

TINY = (
    "--batch-size=8 --steps=1 --log-every=1 --sample-every=0 --model.generator-channels=2 "
    "--model.discriminator-channels=2 --model.condition-dim=3"
).split()
STAGE1 = "--model.noise-dim=2 --text.width=4 --text.num-layers=1 --text.num-heads=1".split()
DATA = "--data.name=captioned_digits --data.resize=None --model.blocks=1".split()


@pytest.mark.slow
def test_both_stages(tmp_path, capsys):
    """Train, sample and evaluate, told a text by stage I's tokenizer and encoder; stage II keeps to
    the stage I that it was begun with."""
    first, second = (("--run-dir", str(tmp_path / name)) for name in ("first", "second"))
    call(capsys, stackgan_digits, *first, *TINY, *STAGE1)
    flags = (*second, f"--first-stage={tmp_path / 'first'}")
    out = call(capsys, stackgan_stage2, *flags, *TINY, *DATA, "--sample-every=1")
    assert "1 of 1 steps done" in out
    grid = tmp_path / "second" / "samples" / "00000001.png"
    tiles(grid, 10, 8, above=20)  # eight of each of ten captions
    samples = tmp_path / "samples.npz"
    asked = ("--text", "a red seven on a blue ground, top left")
    call(capsys, stackgan_stage2, "sample", *second, "--num=3", *asked, f"--out={samples}")
    assert np.load(samples)["samples"].shape == (3, 16, 16, 3)
    result = evaluated(capsys, stackgan_stage2, *second)
    assert np.isfinite(result["wrong_logit"])
    assert result["protocol"]["first_stage"] == "experiments.stackgan_digits, 1 steps"
    run, stage1 = open_run(tmp_path / "second"), open_run(tmp_path / "first")
    assert set(run.variables.params) == {"generator", "discriminator"}
    assert FIRST not in run.variables.params["generator"]
    jax.tree.map(
        np.testing.assert_array_equal,
        run.family.fixed["conditioning"]["params"],
        stage1.variables.params["conditioning"],
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        run.family.fixed["generator"][FIRST],
        stage1.variables.params["generator"],
    )
    call(capsys, stackgan_digits, *first, "--steps=2")
    assert "other pretrained arrays" in fails(capsys, stackgan_stage2, *flags, "--steps=2")


@pytest.mark.slow
def test_another_recipe_is_no_first_stage(tmp_path, capsys):
    first = str(tmp_path / "first")
    small = ("--model.generator-channels=2", "--model.discriminator-channels=2")
    call(capsys, dcgan_digits, "--run-dir", first, "--steps=1", "--sample-every=0", *small)
    flags = ("--run-dir", str(tmp_path / "second"), f"--first-stage={first}")
    message = fails(capsys, stackgan_stage2, *flags, *DATA)
    assert "--first-stage must be a run of StackGAN's stage I" in message
    assert "one of experiments.dcgan_digits" in message


@pytest.mark.parametrize(
    ("recipe", "flags", "message"),
    [
        (stackgan_stage2, [*DATA, "--first-stage=nowhere"], "nowhere is no run directory"),
        (stackgan_digits, ["--model.min-size=9"], "times a power of two, got 16"),
        (stackgan_digits, ["--game.mismatch=2"], "mismatch must be in [0, 1], got 2"),
        (
            stackgan_digits,
            ["--data.name=digits"],
            "text needs captions; digits has ['image', 'label']",
        ),
    ],
)
def test_bad_input(recipe, flags, message, tmp_path, capsys):
    assert message in fails(capsys, recipe, "--run-dir", str(tmp_path / "run"), *flags)


def test_the_papers_table():
    """600 epochs of 138 steps of 64 birds each; rates halved every 50 and every 100 epochs."""
    for module, epochs, size in ((stackgan_stage1, 50, 64), (stackgan_stage2, 100, 256)):
        config = module.recipe.config
        assert config.steps == 600 * 138
        assert config.data.resize == size
        for adam in config.optimizer.generator, config.optimizer.discriminator:
            assert (adam.learning_rate, adam.b1, adam.decay_rate) == (2e-4, 0.5, 0.5)
            assert adam.decay_every == epochs * 138
        assert (config.game.mismatch, config.game.kl_weight) == (0.5, 2.0)


def test_another_kind_of_images_is_told_the_same():
    """A stage II of images with other attributes than stage I had is refused."""
    images = np.zeros((2, 16, 16, 3), np.uint8)

    def source(*names):
        rows = np.zeros((2, len(names)), np.int32)
        return ArraySource({"image": images, "attributes": rows}, attribute_names=names)

    told = stackgan.make_conditioning("attributes", source("red", "blue"))
    config = stackgan_digits.recipe.config
    run = SimpleNamespace(
        family=SimpleNamespace(conditioning=told),
        variables=Variables({}),
        config=replace(config, model=replace(config.model, condition="attributes")),
    )
    assert stackgan._conditioning_of(run, source("red", "blue")) is told
    with pytest.raises(ValueError, match="red, blue, ...\\), not shape .* \\(red, glasses"):
        stackgan._conditioning_of(run, source("red", "glasses"))
