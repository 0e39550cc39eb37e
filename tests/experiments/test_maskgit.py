"""The MaskGIT recipes end to end, shrunk."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import call, evaluated, fails, tiles

from experiments import maskgit, maskgit_digits, vqgan
from experiments.recipes import masked as recipes
from jaxgen.conditioning.base import Condition
from jaxgen.families.masked import Sampler, masked
from jaxgen.training.runs import open_run

SHARED = "--data.name=digits --batch-size=16 --steps=2 --log-every=1".split()
TINY = "--model.width=8 --model.depth=1 --model.num-heads=2".split()


@pytest.fixture
def options(monkeypatch):
    """What the recipes give the family, once it is made."""
    seen = {}

    def record(network, optimizer, **given):
        seen.update(given, network=network)
        return masked(network, optimizer, **given)

    monkeypatch.setattr(recipes, "masked", record)
    return seen


def test_the_table_is_the_authors(options):
    """172.5 million parameters over 16x16 codes of 1,024 and 1,000 classes; their optimizer."""
    config = maskgit.recipe.config
    recipes.make_family(config, (16, 16, 1), 1024, None)
    network = options["network"]
    tokens, hidden = jnp.zeros((1, 256), int), jnp.ones((1, 256), bool)
    told = Condition(jnp.zeros((1, 1000)))
    shapes = jax.eval_shape(network.init, jax.random.key(0), tokens, hidden, told)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == pytest.approx(172.5e6, rel=1e-3)
    assert (network.num_layers, network.width, network.num_heads) == (24, 768, 16)
    assert (network.dropout, options["label_smoothing"]) == (0.1, 0.1)
    assert options["sampler"] == Sampler(8, 1.0, 4.5, 1.0)
    assert float(options["schedule"](0.5)) == pytest.approx(0.5**0.5)
    rates = config.optimizer
    assert (rates.learning_rate, rates.b1, rates.b2) == (1e-4, 0.9, 0.96)
    assert (rates.weight_decay, rates.warmup_steps) == (0.045, 5000)
    assert (config.batch_size, config.steps, config.average.decay) == (256, 2_000_000, 0.999)
    assert config.model.condition == "label"


def test_flags_reach_the_family(options):
    config = maskgit_digits.recipe.config
    model = replace(config.model, dropout=0.3)
    sampler = recipes.SamplerConfig(3, 0.9, 2.0, 1.0)
    halfway = {
        "cosine": 0.5**0.5,
        "linear": 0.5,
        "square": 0.75,
        "cubic": 0.875,
        "square_root": 1 - 0.5**0.5,
    }
    assert halfway.keys() == recipes.SCHEDULES.keys()
    for name, share in halfway.items():
        masking = recipes.MaskingConfig(name, 0.2)
        changed = replace(config, model=model, masking=masking, sampler=sampler)
        recipes.make_family(changed, (8, 8, 1), 17, None)
        assert float(options["schedule"](0.5)) == pytest.approx(share)
    assert (options["network"].dropout, options["label_smoothing"]) == (0.3, 0.2)
    assert options["sampler"] == Sampler(3, 0.9, 2.0, 1.0)


@pytest.mark.slow
def test_digits_end_to_end(tmp_path, capsys):
    """Train, evaluate, sample a row for each class in other ways, complete images."""
    run_dir = ("--run-dir", str(tmp_path / "run"))
    call(capsys, maskgit_digits, *run_dir, *SHARED, *TINY, "--sample-every=2")
    tiles(tmp_path / "run" / "samples" / "00000002.png", 10, 8)
    result = evaluated(capsys, maskgit_digits, *run_dir)
    assert 0.5 < result["loss"] < 4
    assert 0 <= result["accuracy"] <= 1
    assert "by the cosine schedule" in result["protocol"]["loss"]
    assert "likelihood" not in result
    drawn = {}
    ways = {"few": "--sampler.num-steps=2", "surest": "--sampler.choice-temperature=0"}
    for name, flag in ways.items():
        out = tmp_path / f"{name}.npz"
        call(capsys, maskgit_digits, "sample", *run_dir, "--num=10", f"--out={out}", flag)
        drawn[name] = np.load(out)["samples"]
        assert set(np.unique(drawn[name])) <= set(np.round(np.arange(17) * 255 / 16))
    assert np.any(drawn["few"] != drawn["surest"])
    out = tmp_path / "completed.png"
    options = ("--picture=completions", "--num=12", "--columns=6", f"--out={out}")
    call(capsys, maskgit_digits, "sample", *run_dir, *options)
    for cells in tiles(out, 2, 6):
        for cell in cells[1:]:
            np.testing.assert_array_equal(cell[:32], cells[0][:32])  # the given half


@pytest.mark.slow
def test_on_the_codes_of_vqgan(tmp_path, capsys):
    """Train both stages, sample, complete and evaluate the second; one without codes is refused."""
    tiny = (
        "--data.resize=None --perceptual.distance=none --model.channels=4 --model.multipliers 1 2 "
        "--model.num-res-blocks=1 --model.attention-factors 2 --model.latent-channels=2 "
        "--model.num-codes=16 --game.weight=0"
    ).split()
    for name in ("vq", "kl"):
        first = ("--run-dir", str(tmp_path / name), f"--model.bottleneck={name}")
        call(capsys, vqgan, *first, *SHARED, *tiny, "--sample-every=0")
    run_dir = ("--run-dir", str(tmp_path / "run"))
    flags = (*run_dir, *SHARED, *TINY, "--data.resize=None", "--sample-every=2")
    call(capsys, maskgit, *flags, f"--first-stage={tmp_path / 'vq'}")
    samples = tmp_path / "samples.npz"
    call(capsys, maskgit, "sample", *run_dir, "--num=3", f"--out={samples}")
    assert np.load(samples)["samples"].shape == (3, 8, 8, 1)
    picture = ("--picture=completions", "--num=6", "--columns=6", f"--out={tmp_path / 'c.png'}")
    call(capsys, maskgit, "sample", *run_dir, *picture)
    result = evaluated(capsys, maskgit, *run_dir)
    assert 1 < result["loss"] < 5
    assert result["protocol"]["first_stage"] == "experiments.vqgan, 2 steps"
    run = open_run(tmp_path / "run")
    assert run.family.conditioning.num_classes == 10
    assert run.variables.params["transformer"]["positions"].shape == (17, 8)
    flags = ("--run-dir", str(tmp_path / "other"), *flags[2:])
    message = fails(capsys, maskgit, *flags, f"--first-stage={tmp_path / 'kl'}")
    assert "--first-stage must be a run with codes" in message


@pytest.mark.parametrize(
    ("recipe", "flags", "message"),
    [
        (maskgit_digits, ["--model.num-heads=3"], "num_heads must divide width 64, got 3"),
        (maskgit_digits, ["--values=1"], "num_tokens must be at least 2, got 1"),
        (maskgit_digits, ["--sampler.num-steps=0"], "num_steps must be at least 1, got 0"),
        (maskgit_digits, ["--masking.label-smoothing=1"], "label_smoothing must be in [0, 1)"),
        (
            maskgit_digits,
            ["--model.condition=none", "--sampler.guidance-scale=2"],
            "guidance_scale must be 1 where the network takes no condition",
        ),
        (
            maskgit_digits,
            ["--model.condition=none", "--model.condition-dropout=0.1"],
            "condition_dropout needs a conditioning",
        ),
        (maskgit, ["--first-stage=nowhere"], "is no run directory"),
    ],
)
def test_bad_input(recipe, flags, message, tmp_path, capsys):
    assert message in fails(capsys, recipe, "--run-dir", str(tmp_path / "run"), *SHARED, *flags)
