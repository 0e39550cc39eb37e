"""Distances in VGG16's features as flags, and how near a run's reconstructions are, shrunk."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lowering import vgg_of_that_shape
from PIL import Image
from recipes import call, evaluated, fails

from experiments import perceptual_vae, reconstructions, vae_digits
from experiments.recipes import perceptual
from experiments.recipes.perceptual import PerceptualConfig, make_perceptual
from jaxgen.metrics.report import Result
from jaxgen.models import vgg

TINY = [
    *"--data.name digits --data.resize 16 --batch-size=16 --steps=3 --log-every=3".split(),
    *"--sample-every=0 --model.channels=2 --model.hidden=4 --model.latent-dim=2".split(),
]


@pytest.fixture(autouse=True)
def weights(monkeypatch):
    """A network of few channels in the place of the package's."""
    monkeypatch.setattr(vgg, "STAGES", tuple((2, num) for _, num in vgg.STAGES))
    pretrained, rng = vgg_of_that_shape(), np.random.default_rng(0)
    params = jax.tree.map(lambda zeros: zeros + rng.uniform(-1, 1, zeros.shape), pretrained.params)
    params = jax.tree.map(jnp.float32, params)
    pretrained = pretrained._replace(params=params, weights=(jnp.ones(2),) * 5)
    for module in (perceptual, reconstructions):
        monkeypatch.setattr(module, "load_vgg16", lambda path=None: pretrained)


def test_flags_make_distances():
    """None; LPIPS of all stages; features of some layers, with no more weights than they need."""
    config = PerceptualConfig()
    assert make_perceptual(config, (16, 16, 3), "float32") is None
    learned = make_perceptual(dataclasses.replace(config, distance="lpips"), (16, 16, 1), "float32")
    assert len(learned.fixed["weights"]) == 5
    assert len(learned.fixed["params"]) == 13
    features = dataclasses.replace(config, distance="features", layers=("relu1_2",))
    x, y = jnp.ones((2, 8, 8, 3)), jnp.zeros((2, 8, 8, 3))
    for precision in ("float32", "bfloat16"):
        distance = make_perceptual(features, (8, 8, 3), precision)
        assert sorted(distance.fixed) == ["conv1_1", "conv1_2"]
        assert distance.distance(distance.fixed, x, y).dtype == jnp.float32
    with pytest.raises(ValueError, match="at least 16x16 pixels for relu5_3.* got 8x8"):
        make_perceptual(dataclasses.replace(config, distance="lpips"), (8, 8, 3), "float32")
    bad = dataclasses.replace(features, layers=("conv1_1",))
    with pytest.raises(ValueError, match="layers must be one or more of relu1_1"):
        make_perceptual(bad, (8, 8, 3), "float32")


def test_the_recipes_family():
    """What is frozen is an argument of the step, and nothing of it is trained."""
    changed = dataclasses.replace
    config = perceptual_vae.recipe.config
    data = changed(config.data, name="digits", resize=16)
    model = changed(config.model, channels=2, hidden=4, latent_dim=2)
    family = perceptual_vae.recipe.build(changed(config, data=data, model=model)).family
    assert len(family.fixed["perceptual"]["params"]) == 13
    assert all(
        optimizer.trains == ("encoder", "decoder") for optimizer in family.optimizers.values()
    )
    game = changed(config.game, weight=1.0, channels=2, num_layers=1)
    three = perceptual_vae.recipe.build(changed(config, data=data, model=model, game=game)).family
    assert [phase.name for phase in three.phases] == ["vae", "discriminator"]
    assert three.optimizers["discriminator"].trains == ("discriminator",)


def test_a_table_of_runs():
    metrics = {"PSNR": 21.318, "PSNR standard error": 0.051, "LPIPS": 0.12346, "FD": 3.0}
    text = reconstructions.table([Path("runs/a")], [Result(metrics, {})])
    assert text.splitlines()[0] == "| run | PSNR | LPIPS | FD |"
    assert text.splitlines()[2] == "| runs/a | 21.32 ± 0.05 | 0.1235 | 3.0000 |"


@pytest.mark.slow
def test_end_to_end(tmp_path, capsys, monkeypatch):
    """Train with the distance and without, compare both runs by numbers and as a picture."""
    runs = [str(tmp_path / name) for name in ("with", "without")]
    assert "3 of 3 steps done" in call(capsys, perceptual_vae, "--run-dir", runs[0], *TINY)
    assert np.isfinite(evaluated(capsys, perceptual_vae, "--run-dir", runs[0])["perceptual"])
    none = ["--perceptual.distance", "none"]
    call(capsys, perceptual_vae, "--run-dir", runs[1], *TINY, *none)

    picture = tmp_path / "rebuilt.png"
    assert reconstructions.main([*runs, "--num=12", f"--out={picture}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| run | PSNR | LPIPS |"
    assert [line.split()[1] for line in lines[2:4]] == runs
    kept = json.loads((tmp_path / "with" / "reconstructions.jsonl").read_text())
    assert kept["metrics"]["LPIPS"] > 0
    assert kept["protocol"]["pairs"] == 12
    with Image.open(picture) as image:
        assert len(np.unique(np.asarray(image))) > 1

    small = str(tmp_path / "small")
    dense = "--model.network dense --model.features 8 --model.latent-dim 2".split()
    call(capsys, vae_digits, "--run-dir", small, *dense, "--steps=1", "--sample-every=0")
    assert reconstructions.main([small, "--num=4"]) == 0
    assert "LPIPS is left out: images must have at least 16" in capsys.readouterr().out
    for args, message in (
        ([runs[0], small], "has other held-out images than"),
        ([small, "--num=1"], "--num must be at least 2, got 1"),
    ):
        assert reconstructions.main(args) == 2
        assert message in capsys.readouterr().err
    error = fails(capsys, perceptual_vae, "--run-dir", str(tmp_path / "x"), "--data.name=digits")
    assert "at least 16x16 pixels" in error
