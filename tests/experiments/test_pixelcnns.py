"""The PixelCNN and ImageGPT recipes end to end, shrunk; and digits that anyone can read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from recipes import call, evaluated, fails, share_of_readable_samples, tiles

from experiments import (
    beta_sweep,
    imagegpt_cifar,
    imagegpt_digits,
    pixelcnn_digits,
    pixelcnn_mnist,
    pixelcnnpp_cifar,
)
from experiments.recipes.autoregressive import in_palette
from jaxgen.core import Bound, Variables
from jaxgen.data import palette as palettes
from jaxgen.families.autoregressive import autoregressive
from jaxgen.models.transformer import Transformer
from jaxgen.training.config import from_dict, to_dict

TINY = "--data.name=digits --batch-size=16 --steps=2 --log-every=1 --sample-every=2".split()
GATED = "--model.features=4 --model.layers=2 --model.head-features=4".split()
BLOCKS = "--model.features=8 --model.layers=1 --model.num-heads=2".split()


@pytest.mark.slow
def test_pixelcnn_digits_end_to_end(tmp_path, capsys):
    """Train, evaluate as a classifier too, sample a row for each class, complete images."""
    run_dir = ("--run-dir", str(tmp_path / "run"))
    call(capsys, pixelcnn_digits, *run_dir, *TINY, *GATED)
    tiles(tmp_path / "run" / "samples" / "00000002.png", 10, 8)
    result = evaluated(capsys, pixelcnn_digits, *run_dir, "--classify")
    assert result["bits_per_dim"] == pytest.approx(result["loss"] / 64 / np.log(2), rel=1e-5)
    assert 0 <= result["accuracy"] <= 1
    assert result["label_nats"] > 0
    assert "exact" in result["protocol"]["loss"]
    assert "given its label" in result["protocol"]["loss"]

    drawn = {}
    for sampler in ("cached", "naive"):
        out = tmp_path / f"{sampler}.npz"
        options = ("--num=10", f"--out={out}", "--temperature=0.8", f"--sampler={sampler}")
        call(capsys, pixelcnn_digits, "sample", *run_dir, *options)
        drawn[sampler] = np.load(out)["samples"]
    np.testing.assert_array_equal(drawn["cached"], drawn["naive"])
    out = tmp_path / "completed.png"
    options = ("--picture=completions", "--num=12", "--columns=6", f"--out={out}")
    call(capsys, pixelcnn_digits, "sample", *run_dir, *options)
    for cells in tiles(out, 2, 6):
        for cell in cells[1:]:
            np.testing.assert_array_equal(cell[:32], cells[0][:32])  # the given half
        assert (cells[1][32:] == 0).all()


@pytest.mark.slow
def test_binary_recipe(tmp_path, capsys):
    """MNIST's recipe on binary digits, by the network of 2016a."""
    flags = [
        "--model.network=pixelcnn",
        "--binarize=static",
        "--evaluation.num-examples=32",
        *GATED,
    ]
    flags.append("--model.layers=1")
    run_dir = ("--run-dir", str(tmp_path / "binary"))
    call(capsys, pixelcnn_mnist, *run_dir, *TINY, *flags)
    out = tmp_path / "binary.npz"
    call(capsys, pixelcnn_mnist, "sample", *run_dir, "--num=4", f"--out={out}")
    assert set(np.unique(np.load(out)["samples"])) == {0, 255}
    result = evaluated(capsys, pixelcnn_mnist, *run_dir)
    assert result["protocol"]["num_examples"] == 32


@pytest.mark.slow
def test_mixture_recipe(tmp_path, capsys):
    """CIFAR-10's recipe, on digits."""
    flags = "--model.features=4 --model.res-blocks=1 --model.levels=2 --model.mixtures=2".split()
    run_dir = ("--run-dir", str(tmp_path / "mixture"))
    out = call(capsys, pixelcnnpp_cifar, *run_dir, *TINY, *flags, "--flip")
    assert "2 of 2 steps done" in out


@pytest.mark.slow
def test_imagegpt_end_to_end(tmp_path, capsys):
    """CIFAR-10's recipe on digits, in a palette: the run keeps it, and refuses another."""
    run_dir, out = ("--run-dir", str(tmp_path / "run")), tmp_path / "drawn.npz"
    call(capsys, imagegpt_cifar, *run_dir, *TINY, *BLOCKS, "--palette=4")
    result = evaluated(capsys, imagegpt_cifar, *run_dir)
    assert result["bits_per_latent_dim"] == pytest.approx(result["loss"] / 64 / np.log(2), rel=1e-5)
    assert "exact of the 4 colours' codes, not of the bytes" in result["protocol"]["loss"]
    assert result["likelihood"]["bits_per_dim"] is None
    call(capsys, imagegpt_cifar, "sample", *run_dir, "--num=4", f"--out={out}")
    assert len(np.unique(np.load(out)["samples"])) <= 4
    picture = ("--picture=completions", "--num=6", "--columns=6", f"--out={tmp_path / 'c.png'}")
    call(capsys, imagegpt_cifar, "sample", *run_dir, *picture)
    kept = tmp_path / "run" / "palette.npy"
    np.save(kept, np.linspace(-1, 1, 4, dtype=np.float32)[:, None])
    message = fails(capsys, imagegpt_cifar, "evaluate", *run_dir)
    assert "was made with another palette.npy" in message


def test_images_in_a_palettes_colours(key):
    """Samples have its colours, the likelihood is of the codes, known pixels stay as they are."""
    colours = np.linspace(-0.9, 0.9, 15, dtype=np.float32).reshape(5, 3)
    network = Transformer(5, 4, 8, 1, 2)
    codes = autoregressive(network, optax.sgd(0.1), image_shape=(2, 2, 1), num_values=5)
    family = in_palette(codes, colours)
    x = jax.random.uniform(key, (3, 2, 2, 3), minval=-1.0)
    variables = family.init(key, {"image": x}, family.fixed)
    moved = jax.tree.map(
        lambda p: p + 0.3 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), variables
    )
    of_codes = {"image": palettes.values_of(colours, x)}
    expected = codes.log_prob(Variables(moved.params), of_codes, key)
    np.testing.assert_allclose(family.log_prob(moved, {"image": x}, key), expected, rtol=1e-6)
    assert family.bound == Bound("exact", 4, eight_bit=False)
    known = jnp.array([[True, True], [False, False]])[None].repeat(3, axis=0)
    for drawn, new in (
        (family.sample(moved, key, 3), jnp.ones((3, 2, 2), bool)),
        (family.complete(moved, key, x, known), ~known),
    ):
        assert drawn.shape == x.shape
        distance = np.abs(np.asarray(drawn)[..., None, :] - colours).max(-1).min(-1)
        np.testing.assert_array_equal(distance[new], 0)
        np.testing.assert_array_equal(drawn[~new], x[~new])


def test_the_palette_of_a_run(tmp_path):
    """Of its data and seed; once it is kept, the one that is kept."""
    config = dataclasses.replace(
        imagegpt_digits.recipe.config, run_dir=str(tmp_path), palette=4, seed=1
    )
    build = imagegpt_digits.recipe.build
    content = build(config).files["palette.npy"]
    assert content == build(config).files["palette.npy"]
    other = palettes.content_of(np.linspace(-1, 1, 4, dtype=np.float32)[:, None])
    (tmp_path / "palette.npy").write_bytes(other)
    assert build(config).files["palette.npy"] == other != content
    with pytest.raises(ValueError, match=r"palette.npy must hold float32 \[3, 1\], a palette"):
        build(dataclasses.replace(config, palette=3))


@pytest.mark.parametrize(
    ("recipe", "flags", "message"),
    [
        (imagegpt_digits, ["--palette=18"], "num_colours must be at most 17"),
        (imagegpt_digits, ["--palette=4", "--binarize=static"], "goes with --binarize none"),
        (imagegpt_digits, ["--model.num-heads=3"], "num_heads must divide width 64, got 3"),
        (pixelcnn_digits, ["--model.network=pixelcnn"], "takes no --model.condition"),
        (pixelcnn_digits, ["--model.kernel-size=4"], "kernel_size must be odd, got 4"),
        (pixelcnn_mnist, ["--classify"], "--classify needs --model.condition label"),
        (pixelcnn_mnist, ["--temperature=-1"], "temperature must be at least 0"),
        (pixelcnnpp_cifar, ["--model.levels=5"], "5 levels need sides divisible by 16"),
    ],
)
def test_bad_input(recipe, flags, message, tmp_path, capsys):
    assert message in fails(capsys, recipe, "--run-dir", str(tmp_path / "run"), *TINY, *flags)


@pytest.mark.slow
def test_beta_sweep(tmp_path, capfd):
    """Two betas: a table, a plot, and runs that are found done the second time."""
    tiny = "--data.name digits --steps 3 --batch-size 16 --sample-every 0 --model.network dense"
    flags = [*tiny.split(), "--model.features", "8", "--model.latent-dim", "2"]
    arguments = ["--betas", "4", "0.5", "--out", str(tmp_path), "--", *flags]
    beta_sweep.main(arguments)
    table = (tmp_path / "sweep.csv").read_text()
    lines = table.splitlines()
    assert lines[0] == "beta,step,reconstruction,kl,negative_elbo,active_units"
    assert [line.split(",")[0] for line in lines[1:]] == ["0.5", "4.0"]
    assert Image.open(tmp_path / "sweep.png").size == (600, 450)
    beta_sweep.main(arguments)
    assert (tmp_path / "sweep.csv").read_text() == table
    with pytest.raises(SystemExit):
        beta_sweep.main(["--betas", "1", "1"])
    assert "each given once" in capfd.readouterr().err


@pytest.mark.slow
def test_digits_anyone_can_read(tmp_path, capsys):
    """The rule of the other families' digits; and the classifier by Bayes' rule."""
    run_dir, out = tmp_path / "run", tmp_path / "samples.npz"
    share, real, classes, right = share_of_readable_samples(capsys, pixelcnn_digits, run_dir, out)
    result = evaluated(capsys, pixelcnn_digits, "--run-dir", str(run_dir), "--classify")
    print(f"recognised: {share:.3f} of samples, {real:.3f} of held-out digits; {right:.3f}")
    print(f"bits/dim {result['bits_per_dim']:.3f}, accuracy {result['accuracy']:.3f}")
    assert share >= 0.9 * real
    assert classes == set(range(10))
    assert right > 0.8
    assert result["accuracy"] > 0.9


def test_older_runs_had_a_flag_for_the_cosine():
    """What they stored is read as the schedule of now."""
    for recipe, cosine in ((imagegpt_digits.recipe, True), (pixelcnn_digits.recipe, False)):
        stored = {**to_dict(recipe.config), "cosine": cosine}
        stored["optimizer"] = {k: v for k, v in stored["optimizer"].items() if k != "schedule"}
        assert from_dict(recipe.config, stored) == recipe.config
        assert recipe.config.optimizer.schedule == ("cosine" if cosine else None)
