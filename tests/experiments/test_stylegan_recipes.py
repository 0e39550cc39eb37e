"""The StyleGAN2 recipes: the authors' table, the command line, and digits that anyone can read."""

import csv
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import call, evaluated, fails, tiles

from experiments import stylegan2_cifar, stylegan2_digits
from experiments.recipes import stylegan as flags
from experiments.recipes.shared import AdamConfig
from jaxgen.augmentation.adaptive import Adaptive
from jaxgen.data.sources import ArraySource
from jaxgen.families.stylegan import PathLength, stylegan, styles_of

TINY = (
    "--batch-size=16 --model.channel-base=32 --model.channel-max=4 --model.latent-dim=4 "
    "--model.style-dim=4 --model.mapping-layers=1 --model.condition=label"
).split()


def test_the_authors_configuration_for_cifar():
    """The line "cifar" of their table, and which networks it makes."""
    config = stylegan2_cifar.recipe.config
    assert config.steps * config.batch_size == 100_000_000
    assert (config.average.half_life, config.average.ramp_up) == (500_000, 0.05)
    source = ArraySource({"image": np.zeros((1, 32, 32, 3), np.uint8)})
    generator, discriminator = flags.make_networks(config, source)
    assert (generator.channel_base, generator.channel_max, generator.mapping_layers) == (
        32768,
        512,
        2,
    )
    assert (generator.latent_dim, generator.style_dim, generator.mixing) == (512, 512, 0.0)
    assert generator.clamp == discriminator.clamp == 256
    assert (discriminator.residual, discriminator.stddev_group) == (False, 32)
    labelled = replace(config.model, condition="none")
    family = flags.make_family(replace(config, model=labelled), source, generator, discriminator)
    phases = [(phase.name, phase.every) for phase in family.phases]
    assert phases == [("discriminator", 1), ("penalty", 16), ("generator", 1)]
    assert (config.game.r1_weight, config.game.path_length_weight) == (0.01, 0)
    for adam in config.optimizer.generator, config.optimizer.discriminator:
        assert (adam.learning_rate, adam.b1, adam.b2, adam.eps) == (2.5e-3, 0, 0.99, 1e-8)
    adaptive = flags.choose_augment(config.game, config.batch_size)
    assert (adaptive.images, adaptive.target, adaptive.every) == (64, 0.6, 4)
    assert adaptive.ramp == 500_000
    assert config.model.condition == "label"


def test_flags_reach_the_family(monkeypatch):
    config, seen = stylegan2_digits.recipe.config, {}

    def record(generator, discriminator, *optimizers, **options):
        seen.update(options)
        return stylegan(generator, discriminator, *optimizers, **options)

    monkeypatch.setattr(flags, "stylegan", record)
    game = replace(
        config.game,
        loss="hinge",
        r1_weight=3.0,
        r1_every=5,
        path_length_weight=4.0,
        path_length_every=6,
        ada_target=0.4,
        ada_ramp=1000,
    )
    sampler = flags.SamplerConfig(truncation=0.7, random_noise=True)
    config = replace(config, game=game, sampler=sampler, batch_size=32)
    source = ArraySource({"image": np.zeros((1, 8, 8, 1), np.uint8)})
    networks = flags.make_networks(config, source)
    flags.make_family(config, source, *networks)
    assert networks[0].mixing == config.model.mixing == 0.5
    assert {name: seen[name] for name in ("loss", "r1_weight", "r1_every")} == {
        "loss": "hinge",
        "r1_weight": 3,
        "r1_every": 5,
    }
    assert seen["path_length"] == PathLength(4.0, 6)
    assert seen["augment"] == Adaptive(32, target=0.4, ramp=1000)
    assert (seen["truncation"], seen["random_noise"]) == (0.7, True)
    wide = ArraySource({"image": np.zeros((1, 8, 16, 1), np.uint8)})
    with pytest.raises(ValueError, match="must be square, got 8x16: give --data.resize"):
        flags.make_networks(config, wide)


def test_rates_for_lazy_regularization():
    """c = k / (k + 1), to the rate's power 1 and of the decays the exponent."""
    adam = AdamConfig(learning_rate=2.5e-3, b1=0.5, b2=0.99, decay_steps=100)
    changed = flags.lazy(adam, 4, 2.0, "path-length")
    np.testing.assert_allclose(changed.learning_rate, 2e-3)
    np.testing.assert_allclose((changed.b1, changed.b2), (0.5**0.8, 0.99**0.8))
    assert changed.decay_steps == 125  # 25 turns in 100 steps
    without = flags.lazy(adam, 4, 0.0, "path-length")
    assert replace(without, decay_steps=125) == changed
    assert without.decay_steps == 100
    of_critic = flags.lazy(adam, 16, 10.0, "r1")
    np.testing.assert_allclose(of_critic.learning_rate, 2.5e-3 * 16 / 17)
    assert flags.lazy(stylegan2_cifar.recipe.config.optimizer.generator, 4, 2.0, "").b1 == 0


@pytest.mark.slow
def test_end_to_end(tmp_path, capsys):
    """Train, resume and evaluate; one row a class; truncated samples by a flag of `sample`."""
    run_dir = ("--run-dir", str(tmp_path / "run"))
    call(
        capsys, stylegan2_digits, *run_dir, *TINY, "--steps=2", "--log-every=1", "--sample-every=2"
    )
    call(capsys, stylegan2_digits, *run_dir, *TINY, "--steps=3", "--log-every=1")
    with open(tmp_path / "run" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    for name in ("discriminator/loss", "generator/loss", "penalty/penalty", "path_length/length"):
        assert np.isfinite(float(rows[0][name]))
    assert not rows[1]["penalty/penalty"]  # a turn that is not taken
    tiles(tmp_path / "run" / "samples" / "00000002.png", 10, 8)
    assert np.isfinite(evaluated(capsys, stylegan2_digits, *run_dir)["fake_logit"])
    out = tmp_path / "samples.npz"
    options = ("--num=20", "--sampler.truncation=0.0", f"--out={out}")
    call(capsys, stylegan2_digits, "sample", *run_dir, *options)
    images = np.load(out)["samples"]
    assert images.shape == (20, 8, 8, 1)
    np.testing.assert_allclose(images[0].astype(int), images[1], atol=1)  # of one class each two


def test_mixed_styles():
    """On the diagonal the images themselves; beside it the coarse half of the row's; truncated."""
    config = stylegan2_digits.recipe.config
    small = replace(
        config.model,
        condition="label",
        channel_base=32,
        channel_max=4,
        style_dim=4,
        mapping_layers=1,
    )
    config = replace(config, model=small, sampler=flags.SamplerConfig(truncation=0.5))
    experiment = flags.build(config)
    family, draw = experiment.family, experiment.pictures["style_mixing"]
    generator, _ = flags.make_networks(config, experiment.pipeline.source)
    data = {"image": jnp.zeros((4, 8, 8, 1)), "label": jnp.zeros(4, int)}
    variables = jax.jit(family.init)(jax.random.key(0), data)
    key = jax.random.key(1)
    grid = jax.jit(lambda v: draw(v, {}, key, 2, 3))(variables)
    assert grid.shape == (6, 8, 8, 1)
    z, label = family.latents.draw(key, 3), jnp.arange(3)
    decode = jax.jit(family.decode)
    own = decode(variables, z, key, condition=label)  # by the flag's truncation
    np.testing.assert_allclose(grid[0], own[0], atol=1e-5)
    np.testing.assert_allclose(grid[4], own[1], atol=1e-5)
    styles = styles_of(generator, family.conditioning)
    w = styles(variables, z, condition=label, truncation=0.5)
    mixed = jnp.stack([jnp.concatenate([w[0, :2], w[j, 2:]]) for j in (1, 2, 0)])
    np.testing.assert_allclose(grid[1], decode(variables, mixed, key)[0], atol=1e-5)
    for other in own[:2]:
        assert not np.allclose(grid[1], other, atol=1e-3)


@pytest.mark.slow
def test_unconditional_over_pmap(tmp_path, capsys):
    """CIFAR-10's recipe on enlarged digits, with adaptive augmentation."""
    more = (
        *("--data.name=digits", "--data.resize=16", "--model.condition=none"),
        *("--strategy=pmap", "--model.stddev-group=2"),
    )
    run_dir = ("--run-dir", str(tmp_path / "run"))
    out = call(capsys, stylegan2_cifar, *run_dir, *TINY, *more, "--steps=2", "--sample-every=2")
    assert "2 of 2 steps done" in out
    tiles(tmp_path / "run" / "samples" / "00000002.png", 8, 8)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data.resize=12"], "image_size must be a power of two of at least 8, got 12"),
        (["--model.stddev-group=3"], "divide the batch of 64"),
        (["--game.r1-weight=-1"], "r1_weight must be finite and at least 0, got -1"),
        (["--game.path-length-every=0"], "--game.path-length-every must be at least 1, got 0"),
        (
            ["--game.ada-target=0.6", "--game.augment", "color"],
            "--game.augment must be empty with --game.ada-target",
        ),
        (["--game.r1-every=0"], "--game.r1-every must be at least 1, got 0"),
        (["--model.channel-base=4"], "channel_base must be at least the image's size, 8"),
        (["--model.mixing=2"], "mixing must be in [0, 1], got 2"),
    ],
)
def test_bad_input(args, message, tmp_path, capsys):
    assert message in fails(capsys, stylegan2_digits, "--run-dir", str(tmp_path / "run"), *args)
