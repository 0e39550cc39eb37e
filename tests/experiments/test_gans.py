"""The GAN recipes end to end, shrunk, and the digits that anyone can read."""

import csv
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from recipes import call, evaluated, fails, share_of_readable_samples, tiles

from experiments import (
    acgan_cifar,
    anime_attributes,
    cgan_cifar,
    dcgan_digits,
    dcgan_mnist,
    manga_attributes,
    sngan_cifar,
    wgan_gp_cifar,
)
from experiments.recipes import gan as gan_flags
from experiments.recipes.gan import GameConfig
from experiments.recipes.shared import AdamConfig, make_conditioning
from jaxgen.data.sources import ArraySource
from jaxgen.training.config import DataConfig

RESNET = (
    "--data.name=digits --data.resize=32 --model.generator-channels=4 --steps=2 --log-every=1 "
    "--model.discriminator-channels=4 --model.latent-dim=4 --sampler.standing-batches=1"
).split()


ATTRIBUTES = (
    "--data.name=captioned_digits --data.resize=None --batch-size=16 --model.latent-dim=4 "
    "--model.generator-channels=4 --model.discriminator-channels=4 --model.generator-blocks=1 "
    "--model.discriminator-blocks=1"
).split()


def test_dcgan_end_to_end(tmp_path, capsys):
    """Train, resume, evaluate, and every picture; one row a class."""
    run_dir = str(tmp_path / "run")
    flags = ("--run-dir", run_dir, "--model.generator-channels=8", "--batch-size=16")
    call(capsys, dcgan_digits, *flags, "--steps=3", "--log-every=1", "--sample-every=3")
    call(capsys, dcgan_digits, *flags, "--steps=6")
    with open(tmp_path / "run" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == [str(step) for step in range(1, 7)]
    for name in ("real_logit", "fake_logit", "real_accuracy", "fake_accuracy", "grad_norm", "loss"):
        assert np.isfinite(float(rows[-1][f"discriminator/{name}"]))
    tiles(tmp_path / "run" / "samples" / "00000003.png", 10, 8)

    result = evaluated(capsys, dcgan_digits, "--run-dir", run_dir)
    assert np.isfinite(result["fake_logit"])
    assert "no measure" in result["protocol"]["loss"]
    for picture, rows in (("conditions", 10), ("interpolation", 2), ("interpolation_linear", 2)):
        out = tmp_path / f"{picture}.png"
        options = ("--picture", picture, "--num=10", "--columns=5", f"--out={out}")
        call(capsys, dcgan_digits, "sample", "--run-dir", run_dir, *options)
        tiles(out, rows, 5)
    message = fails(
        capsys, dcgan_digits, "sample", "--run-dir", run_dir, "--picture=sweep", "--out=x.png"
    )
    assert "'samples' or one of ['between_conditions', 'conditions', 'interpolation', " in message


@pytest.mark.slow
def test_unconditional_dcgan_on_28_pixels(tmp_path, capsys):
    """MNIST's recipe on digits enlarged to MNIST's size, over pmap."""
    flags = "--data.name=digits --data.resize=28 --model.generator-channels=4 --steps=2".split()
    more = ("--model.discriminator-channels=4", "--strategy=pmap", "--batch-size=16")
    run_dir = str(tmp_path / "run")
    out = call(capsys, dcgan_mnist, "--run-dir", run_dir, *flags, *more)
    assert "2 of 2 steps done" in out
    out = tmp_path / "samples.npz"
    call(capsys, dcgan_mnist, "sample", "--run-dir", run_dir, "--num=3", f"--out={out}")
    assert np.load(out)["samples"].shape == (3, 28, 28, 1)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [anime_attributes, manga_attributes])
def test_attributes_end_to_end(recipe, tmp_path, capsys):
    """On the embedded digits of 16 pixels: one row an attribute, and what lies between two."""
    run_dir = str(tmp_path / "run")
    flags = (*ATTRIBUTES, "--run-dir", run_dir, "--sampler.standing-batches=1")
    out = call(capsys, recipe, *flags, "--steps=4", "--log-every=1", "--sample-every=4")
    assert "4 of 4 steps done" in out
    with open(tmp_path / "run" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert np.isfinite(float(rows[-1]["discriminator/real_class_accuracy"]))
    for picture, count in (("conditions", 27), ("between_conditions", 3)):
        out = tmp_path / f"{picture}.png"
        options = ("--picture", picture, "--num=6", "--columns=2", f"--out={out}")
        call(capsys, recipe, "sample", "--run-dir", run_dir, *options)
        tiles(out, count, 2)


def test_what_the_anime_recipes_are():
    """The paper's networks and weights: of the game as many as attributes; and the small ones."""
    image = np.zeros((2, 128, 128, 3), np.uint8)
    attributes = np.eye(2, 34, dtype=np.int32)
    source = ArraySource({"image": image, "attributes": attributes})
    config = anime_attributes.recipe.config
    generator, discriminator = gan_flags.make_networks(config, source)
    assert (generator.channels, generator.blocks, generator.kernel_size) == (64, 16, 9)
    assert (discriminator.channels, discriminator.blocks, discriminator.num_classes) == (32, 2, 34)
    weights = gan_flags.make_auxiliary(config.game, make_conditioning("attributes", source))
    assert weights == (1.0, 1.0, 1.0, 34.0)
    assert config.game.penalty_weight == 0.5
    weights = gan_flags.make_auxiliary(config.game, None)
    assert weights == (1.0, 1.0, 1.0, 1.0)
    weights = gan_flags.make_auxiliary(acgan_cifar.recipe.config.game, None)
    assert weights == (1.0, 0.0, 0.1, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [sngan_cifar, wgan_gp_cifar, cgan_cifar, acgan_cifar])
def test_residual_recipes(recipe, tmp_path, capsys):
    """Five critic updates a step; the conditional ones write one row a class."""
    flags = (*RESNET, "--run-dir", str(tmp_path / "run"), "--batch-size=40", "--sample-every=2")
    out = call(capsys, recipe, *flags)
    assert "2 of 2 steps done" in out
    rows = 10 if recipe in (cgan_cifar, acgan_cifar) else 8
    tiles(tmp_path / "run" / "samples" / "00000002.png", rows, 8)


@pytest.mark.parametrize(
    ("recipe", "flags", "message"),
    [
        (
            dcgan_digits,
            ["--game.discriminator-repeats=0"],
            "discriminator_repeats must be",
        ),
        (dcgan_digits, ["--model.stddev-group=3"], "divide the batch of 64"),
        (dcgan_digits, ["--data.resize=9"], "times a power of two, got 9"),
        (dcgan_digits, ["--game.penalty=wgan_gp"], "without batch statistics"),
        (
            sngan_cifar,
            ["--game.penalty=r1", *RESNET, "--game.penalty-every=0"],
            "at least 1, got 0",
        ),
        (sngan_cifar, [*RESNET, "--game.penalty-every=4"], "must be 1 without a penalty, got 4"),
        (dcgan_digits, ["--model.condition=attributes"], "digits has ['image', 'label']"),
        (
            acgan_cifar,
            [*RESNET, "--model.condition=attributes"],
            "--model.condition attributes needs an entry 'attributes'; digits has",
        ),
        (sngan_cifar, ["--data.name=digits"], "must be one of (32, 64, 128), got 8"),
        (anime_attributes, [*ATTRIBUTES, "--model.spectral-norm"], "srresnet has no --model.stdd"),
        (anime_attributes, [], "the data set 'folder' needs"),
        (anime_attributes, ["--data.name=digits"], "needs an entry 'attributes'; digits has"),
        (sngan_cifar, ["--data.name=digits", "--data.resize=32", "--batch-size=64"], "multiple of"),
    ],
)
def test_bad_input(recipe, flags, message, tmp_path, capsys):
    assert message in fails(capsys, recipe, "--run-dir", str(tmp_path / "run"), *flags)


def test_residual_networks_of_larger_images():
    """At 64 and 128 pixels the recipe's channels make the paper's networks, of 64 at full size."""
    config = sngan_cifar.recipe.config
    for size in (64, 128):
        image = np.zeros((1, size, size, 3), np.uint8)
        networks = gan_flags.make_networks(config, ArraySource({"image": image}))
        assert [network.channels for network in networks] == [64, 64]
    networks = gan_flags.make_networks(
        config, ArraySource({"image": np.zeros((1, 32, 32, 3), "u1")})
    )
    assert [network.channels for network in networks] == [256, 128]


def test_bytes_are_spread_over_their_bins(key):
    """u / 128 - 1 plus a share of 1 / 128, as SNGAN's and WGAN-GP's code have them."""
    prepare = gan_flags.make_prepare(sngan_cifar.recipe.config)
    image = jnp.arange(256, dtype=jnp.uint8).reshape(16, 4, 4, 1)
    x = prepare(key, {"image": image}, True)["image"]
    share = 128 * (np.asarray(x, np.float64) + 1) - np.asarray(image)
    assert -1e-4 <= share.min() < 0.05
    assert 0.95 < share.max() <= 1 + 1e-4
    plain = gan_flags.make_prepare(replace(sngan_cifar.recipe.config, spread_bytes=False))
    np.testing.assert_allclose(
        plain(key, {"image": image}, True)["image"], image / 127.5 - 1, atol=1e-6
    )


def test_a_penalty_every_few_steps():
    """The flag adds the turn; schedules count its updates, so that they end at the same step."""
    config = wgan_gp_cifar.recipe.config
    config = replace(config, data=DataConfig(name="digits", resize=32))
    lazy = replace(config, game=replace(config.game, penalty_every=16))
    for chosen, names in (
        (config, ["discriminator", "generator"]),
        (lazy, ["discriminator", "penalty", "generator"]),
    ):
        assert [phase.name for phase in gan_flags.build(chosen).family.phases] == names
    adam = AdamConfig(warmup_steps=3, decay_steps=100)
    for game, warmup_steps, decay_steps in (
        (GameConfig(discriminator_repeats=5), 15, 500),
        (GameConfig(discriminator_repeats=5, penalty_every=16), 20, 535),  # 7 turns in 100 steps
    ):
        counted = gan_flags.counted_in_updates(adam, game)
        assert (counted.warmup_steps, counted.decay_steps) == (warmup_steps, decay_steps)
    assert gan_flags.counted_in_updates(AdamConfig(), GameConfig(penalty_every=2)) == AdamConfig()


@pytest.mark.slow
def test_digits_anyone_can_read(tmp_path, capsys):
    """The classifier's rule of the DDPM; and the samples show the classes they were asked for."""
    run_dir, out = tmp_path / "run", tmp_path / "samples.npz"
    share, real, classes, right = share_of_readable_samples(capsys, dcgan_digits, run_dir, out)
    print(f"recognised: {share:.3f} of samples, {real:.3f} of held-out digits; {right:.3f}")
    assert share >= 0.9 * real
    assert classes == set(range(10))
    assert right > 0.8
