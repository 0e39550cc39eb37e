"""The recipes of autoencoders and VAEs, end to end on the embedded digits, shrunk."""

import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image
from recipes import call, evaluated, fails, readable_ratio

from experiments import (
    autoencoder_mnist,
    beta_vae,
    cvae_mnist,
    infovae_mnist,
    vae_digits,
    vae_mnist,
    vqvae_cifar,
)
from experiments.recipes import vae as vae_flags
from experiments.recipes.flow import direction_picture
from experiments.recipes.images import check_support, load_data
from jaxgen.core import Family
from jaxgen.data.sources import digits
from jaxgen.training.config import DataConfig, RunConfig

TINY = "--data.name digits --batch-size=16 --steps=3 --log-every=3 --sample-every=0".split()
DENSE = "--model.network dense --model.features 8 --model.latent-dim 2".split()
CODES = "--model.channels=4 --model.num-res-blocks=0 --model.num-halvings=1 --model.num-codes=8"
RECIPES = {
    "vae_digits": (
        vae_digits,
        [*DENSE, "--sample-every=3", "--model.prior-couplings=2", "--model.prior-width=4"],
        ["reconstructions", "attribute", "between_examples"],
    ),
    "vae_mnist": (
        vae_mnist,
        [
            *DENSE,
            *"--evaluate-every=0 --average.decay=0.9 --optimizer.num-stages=2".split(),
            *"--optimizer.decay-steps None".split(),
        ],
        ["latent_plane", "interpolation"],
    ),
    "iwae, static": (
        vae_mnist,
        [
            *DENSE,
            *"--evaluate-every=0 --binarize static --objective.name dreg".split(),
            "--objective.num-importance=3",
        ],
        [],
    ),
    "beta_vae": (beta_vae, [*DENSE, "--objective.free-bits=0.1"], ["traversal"]),
    "infovae_mnist": (
        infovae_mnist,
        "--model.channels=2 --model.hidden=4 --model.latent-dim=2".split(),
        [],
    ),
    "cvae_mnist": (
        cvae_mnist,
        [*DENSE, "--precision=bfloat16"],
        ["conditions", "between_examples"],
    ),
    "autoencoder_mnist": (autoencoder_mnist, [*DENSE, "--sample-every=3"], ["traversal"]),
    "vqvae_cifar": (vqvae_cifar, [*CODES.split(), "--sample-every=3"], ["reconstructions"]),
}


QUICK = ("autoencoder_mnist",)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in RECIPES],
)
def test_recipe_end_to_end(name, tmp_path, capsys):
    """Train, evaluate, draw every kind of picture; sample, or say why not."""
    module, flags, drawn = RECIPES[name]
    run_dir = ("--run-dir", str(tmp_path / "run"))
    assert "3 of 3 steps done" in call(capsys, module, *run_dir, *TINY, *flags)
    if "--sample-every=3" in flags:
        assert (tmp_path / "run" / "samples" / "00000003.png").exists()

    extra = ["--evaluation.num-importance=3"] if "iwae" in name else []
    result = evaluated(capsys, module, *run_dir, *extra)
    assert math.isfinite(result["loss"])
    assert result["protocol"]["num_examples"] == 297
    assert "test" in result["protocol"]["data"]
    if extra:
        assert result["protocol"]["num_importance"] == 3
        assert "K = 3" in result["protocol"]["loss"]
        assert "one Bernoulli(u / 255) draw" in result["protocol"]["preprocessing"]
    if name == "vae_digits":
        assert result["protocol"]["loss"].startswith("negative ELBO, KL by the latent drawn")
    if name in ("vae_digits", "vqvae_cifar"):
        assert result["bits_per_dim"] == pytest.approx(result["loss"] / 64 / math.log(2), rel=1e-5)

    for picture in drawn:
        out = tmp_path / f"{picture}.png"
        shape = ("--picture", picture, "--num=4", "--columns=2")
        call(capsys, module, "sample", *run_dir, *shape, f"--out={out}")
        with Image.open(out) as image:
            pixels = np.asarray(image)
        assert len(np.unique(pixels)) > 1
    out = tmp_path / "samples.npz"
    sample = ("sample", *run_dir, "--num=3", f"--out={out}")
    if name in ("autoencoder_mnist", "vqvae_cifar"):
        assert "no prior" in fails(capsys, module, *sample)
    elif name in ("beta_vae", "cvae_mnist"):
        call(capsys, module, *sample)
        with np.load(out) as data:
            assert data["samples"].shape == (3, 8, 8, 1)


@pytest.mark.parametrize(
    ("module", "flags", "message"),
    [
        (vae_mnist, ["--model.latent-dim=0"], "latent-dim must be at least 1, got 0"),
        (vae_mnist, ["--objective.num-importance=0"], "num_importance must be at least 1, got 0"),
        (vae_mnist, ["--evaluation.num-importance=0"], "bound_samples must be at least 1, got 0"),
        (vae_mnist, ["--objective.beta=-1"], "beta must be 0 or more, got -1"),
        (vae_digits, ["--model.latent-dim=1"], "realnvp needs --model.latent-dim of at least 2"),
        (vae_mnist, ["--optimizer.num-stages=-1"], "num-stages must be at least 0"),
        (
            vae_mnist,
            ["--optimizer.num-stages=2", "--optimizer.decay-steps=5"],
            "exclude each other",
        ),
        (beta_vae, ["--model.min-size=5"], "image_size must be one of 5, 6, 7, 8, 9 times"),
        (vqvae_cifar, ["--model.num-halvings=4"], "must be multiples of 16"),
        (autoencoder_mnist, ["--model.condition", "label"], "--model.condition"),
    ],
)
def test_bad_input(module, flags, message, tmp_path, capsys):
    """Each is refused before anything is written."""
    run_dir = tmp_path / "run"
    error = fails(capsys, module, "--run-dir", str(run_dir), *TINY, *flags)
    assert message in error
    assert not run_dir.exists()


def test_data_outside_the_support():
    """A batch is looked at before training starts."""
    data = load_data(RunConfig(data=DataConfig(name="digits")))
    likelihood = vae_flags.LIKELIHOODS["discretized_logistic"]()
    check_support(likelihood, data)
    wrong = data._replace(prepare=lambda key, raw, train: {"image": raw["image"]})
    with pytest.raises(ValueError, match=r"data must lie in \[-1, 1\]"):
        check_support(likelihood, wrong)


@pytest.mark.parametrize("binarize", ["threshold", "static", "dynamic"])
def test_binarization(binarize):
    """Only -1 and 1; draws have the grey values' means, static ones never change."""
    data = load_data(RunConfig(data=DataConfig(name="digits")), binarize)
    raw = {k: np.asarray(v) for k, v in data.train[np.arange(1500)].items()}
    one, two = (
        np.asarray(
            data.prepare(jax.random.key(k), jax.tree.map(jax.numpy.asarray, raw), True)["image"]
        )
        for k in (0, 1)
    )
    assert set(np.unique(one)) == {-1.0, 1.0}
    grey = digits("train").arrays["image"] / 255
    if binarize == "threshold":
        np.testing.assert_array_equal((one + 1) / 2, grey > 0.5)
    else:
        difference = (one + 1) / 2 - grey
        assert abs(difference.mean()) < 0.005
        assert abs((difference * (grey - grey.mean())).mean()) < 0.005
        assert (one[grey == 0] == -1).all()
        assert (one[grey == 1] == 1).all()
    assert np.array_equal(one, two) == (binarize != "dynamic")
    if binarize == "static":
        again = load_data(RunConfig(data=DataConfig(name="digits")), binarize)
        np.testing.assert_array_equal(again.train[np.arange(9)]["image"], raw["image"][:9])
        held_out = again.held_out[np.arange(9)]["image"]
        assert not np.array_equal(held_out, raw["image"][:9])


def test_stages_of_the_rate():
    """Burda et al.: stage i lasts 3^i epochs at 10^(-i/7) of the rate."""
    optimizer = vae_flags.make_optimizer(
        vae_flags.OptimizerConfig(learning_rate=0.1, num_stages=3), steps_per_epoch=2
    )
    update = jax.jit(optimizer.update)
    state, rates = optimizer.init(np.float32(0)), []
    for _ in range(12):
        step, state = update(np.float32(1), state)
        rates.append(-float(step) / 0.1)  # Adam's step of a constant gradient is its rate
    expected = [1.0] * 2 + [10 ** (-1 / 7)] * 6 + [10 ** (-2 / 7)] * 4
    np.testing.assert_allclose(rates, expected, rtol=1e-3)


@pytest.mark.slow
def test_digits_anyone_can_read(tmp_path, capsys):
    """Of every class, no copies, and the bound is that of the model which is sampled."""
    run_dir, out = tmp_path / "run", tmp_path / "samples.npz"
    ratio, classes, nearest = readable_ratio(capsys, vae_digits, run_dir, out)
    bits = evaluated(capsys, vae_digits, "--run-dir", str(run_dir))["bits_per_dim"]
    print(f"{ratio:.3f} of the held-out digits' share is readable; {nearest:.3f}; {bits:.3f}")
    assert ratio >= 0.8
    assert classes == set(range(10))
    assert nearest > 0.85
    assert bits < 3.65


@pytest.mark.parametrize("classes", [(3, 8), (-1, 0), (0, 3)])
def test_a_picture_of_classes_that_are_not_there_is_left_out(classes):
    """A default that is made for digits keeps no other data from training."""
    family, three = Family(None, {}, (), None), SimpleNamespace(num_classes=3)
    data = SimpleNamespace(held_out=three)
    for drawn, left_out in (
        vae_flags.attribute_picture(vae_flags.PictureConfig(classes), family, data),
        direction_picture(SimpleNamespace(direction=classes), family, three),
    ):
        assert not drawn
        ((_, reason),) = left_out.items()
        assert f"must be classes in 0..2, got {classes[0]} {classes[1]}" in reason
