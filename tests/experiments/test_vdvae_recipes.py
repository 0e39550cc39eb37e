"""The recipes of very deep VAEs: the authors' table, units, and end to end on the digits."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from recipes import call, evaluated, fails

from experiments import vdvae_cifar, vdvae_digits
from experiments.recipes import hierarchical_vae as recipes
from experiments.recipes.vae import LIKELIHOODS
from jaxgen.families.hierarchical_vae import hierarchical_vae

TINY = (
    "--batch-size=16 --model.encoder=8x1,8d2,4x1 --model.decoder=4x1,8m4 --model.width=8 "
    "--model.latent-dim=2 --log-every=5 --sample-every=5 --evaluation.num-examples=16"
).split()


def test_the_table_is_the_authors():
    """43 layers, 39,145,700 parameters; their optimizer, batch and average."""
    config = vdvae_cifar.recipe.config
    likelihood = LIKELIHOODS[config.model.likelihood]()
    network = recipes.make_network(config.model, 3, likelihood, "float32")
    assert sum(shape[0] for shape in network.latent_shapes.values()) == 43
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 39_145_700
    assert (network.latent_dim, network.bottleneck, network.num_params) == (16, 0.25, 100)
    # As they standardize bytes.
    u = np.arange(256)
    ours = (2 * u / 255 - 1 - network.mean) / network.std
    np.testing.assert_allclose(ours, (u - 120.63838) / 64.16736, atol=1e-5)
    assert (config.batch_size, config.flip) == (32, False)
    rates = config.optimizer
    assert (rates.learning_rate, rates.b1, rates.b2, rates.eps) == (2e-4, 0.9, 0.9, 1e-8)
    assert (rates.weight_decay, rates.warmup_steps) == (0.01, 100)
    assert (rates.clip_norm, rates.skip_norm) == (200, 400)
    assert (config.average.decay, config.average.warm_up) == (0.9999, False)
    assert (config.sampler.output, config.sampler.temperature) == ("sample", 1)


def test_norms_are_of_nats_a_dimension():
    """The update is that of a loss in nats a dimension, clipped where theirs is; and left out."""
    flags = recipes.ClippedAdamConfig(learning_rate=0.1, clip_norm=2.0, eps=0.5, skip_norm=4.0)
    optimizer = recipes.make_optimizer(flags, 64)
    params, gradient = {"w": jnp.zeros(3)}, {"w": jnp.array([1.0, 2.0, 3.0])}
    update, _ = optimizer.update(
        jax.tree.map(lambda g: 64 * g, gradient), optimizer.init(params), params
    )
    theirs = optax.chain(optax.clip_by_global_norm(2.0), optax.adam(0.1, eps=0.5))
    expected, _ = theirs.update(gradient, theirs.init(params), params)
    np.testing.assert_allclose(update["w"], expected["w"], rtol=1e-5)
    config = dataclasses.replace(vdvae_digits.recipe.config, optimizer=flags)
    family = recipes.make_family(config, (8, 8, 1))
    assert family.optimizers["vae"].skip_norm == 4.0 * 64


def test_flags_reach_the_family(monkeypatch):
    seen = {}

    def record(network, likelihood, optimizer, **options):
        seen.update(options, network=network)
        return hierarchical_vae(network, likelihood, optimizer, **options)

    monkeypatch.setattr(recipes, "hierarchical_vae", record)
    config = vdvae_digits.recipe.config
    model = dataclasses.replace(config.model, likelihood="gaussian", mean=102.0, std=51.0)
    sampler = recipes.TemperatureConfig(output="mode", temperature=0.6)
    config = dataclasses.replace(config, model=model, sampler=sampler)
    recipes.make_family(config, (8, 8, 1))
    network = seen["network"]
    assert (network.width, network.latent_dim, network.bottleneck) == (32, 4, 0.5)
    np.testing.assert_allclose((network.mean, network.std), (-0.2, 0.4), atol=1e-9)
    assert (seen["temperature"], seen["output"], seen["eight_bit"]) == (0.6, "mode", False)
    recipes.make_family(vdvae_digits.recipe.config, (8, 8, 1))
    assert seen["eight_bit"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.encoder=8x1,4x1"], "encoder_blocks must go on at 8x8 pixels"),
        (["--model.decoder=4x1,8x1"], "decoder_blocks must begin each further resolution"),
        (["--data.resize=16"], "image_shape must be that of the network, 8x8 pixels"),
        (["--optimizer.skip-norm=-1"], "skip-norm must be positive or None, got -1.0"),
        (["--optimizer.clip-norm=-1"], "clip_norm must be positive and finite, got -1.0"),
        (["--sampler.temperature=-1"], "temperature must be 0 or more and finite, got -1"),
        (["--model.std=0"], "std must be positive and finite, got 0"),
    ],
)
def test_bad_input(tmp_path, capsys, flags, message):
    args = [*TINY, "--steps=1", "--run-dir", str(tmp_path / "run"), *flags]
    assert message in fails(capsys, vdvae_digits, *args)


@pytest.mark.slow
def test_recipe_end_to_end(tmp_path, capsys):
    """Over eight devices: train, resume, sample at a temperature, draw, evaluate."""
    run_dir = str(tmp_path / "run")
    out = call(capsys, vdvae_digits, "--run-dir", run_dir, *TINY, "--steps=10")
    assert "10 of 10 steps done" in out
    samples = tmp_path / "samples.npz"
    flags = ("--num=3", f"--out={samples}", "--sampler.output=sample", "--sampler.temperature=0.8")
    call(capsys, vdvae_digits, "sample", "--run-dir", run_dir, *flags)
    with np.load(samples) as data:
        assert data["samples"].shape == (3, 8, 8, 1)
    rebuilt = tmp_path / "rebuilt.png"
    picture = ("--picture", "reconstructions", "--out", str(rebuilt))
    call(capsys, vdvae_digits, "sample", "--run-dir", run_dir, *picture)
    assert rebuilt.exists()
    result = evaluated(capsys, vdvae_digits, "--run-dir", run_dir)
    assert result["loss"] == pytest.approx(result["bits_per_dim"] * 64 * math.log(2), rel=1e-5)
    assert result["kl"] == pytest.approx(result["kl_4x4"] + result["kl_8x8"], rel=1e-4)
