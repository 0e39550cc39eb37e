"""The PixelCNN recipes end to end, shrunk; and digits that anyone can read."""

import json

import numpy as np
import pytest
from PIL import Image
from recipes import call, fails, share_of_readable_samples

from experiments import beta_sweep, pixelcnn_digits, pixelcnn_mnist, pixelcnnpp_cifar

TINY = "--data.name=digits --batch-size=16 --steps=2 --log-every=1 --sample-every=2".split()
GATED = "--model.features=4 --model.layers=2 --model.head-features=4".split()


@pytest.mark.slow
def test_pixelcnn_digits_end_to_end(tmp_path, capsys):
    """Train, evaluate as a classifier too, sample a row for each class, complete images."""
    run_dir = ("--run-dir", str(tmp_path / "run"))
    call(capsys, pixelcnn_digits, *run_dir, *TINY, *GATED)
    # Digits are drawn four times as large: 10 rows of 8.
    grid = Image.open(tmp_path / "run" / "samples" / "00000002.png")
    assert grid.size == (8 * 34 + 2, 342)
    found = call(capsys, pixelcnn_digits, "evaluate", *run_dir, "--classify")
    result = json.loads(found.splitlines()[-1])
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
    pixels = np.asarray(Image.open(out).convert("L"))
    rows = [pixels[2 + 34 * r : 34 + 34 * r] for r in range(2)]
    for row in rows:
        cells = [row[:, 2 + 34 * c : 34 + 34 * c] for c in range(6)]
        for cell in cells[1:]:
            np.testing.assert_array_equal(cell[:16], cells[0][:16])  # the given half
        assert (cells[1][16:] == 0).all()


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
    result = json.loads(call(capsys, pixelcnn_mnist, "evaluate", *run_dir).splitlines()[-1])
    assert result["protocol"]["num_examples"] == 32


@pytest.mark.slow
def test_mixture_recipe(tmp_path, capsys):
    """CIFAR-10's recipe, on digits."""
    flags = "--model.features=4 --model.res-blocks=1 --model.levels=2 --model.mixtures=2".split()
    run_dir = ("--run-dir", str(tmp_path / "mixture"))
    out = call(capsys, pixelcnnpp_cifar, *run_dir, *TINY, *flags, "--flip")
    assert "2 of 2 steps done" in out


@pytest.mark.parametrize(
    ("recipe", "flags", "message"),
    [
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
    found = call(capsys, pixelcnn_digits, "evaluate", "--run-dir", str(run_dir), "--classify")
    result = json.loads(found.splitlines()[-1])
    print(f"recognised: {share:.3f} of samples, {real:.3f} of held-out digits; {right:.3f}")
    print(f"bits/dim {result['bits_per_dim']:.3f}, accuracy {result['accuracy']:.3f}")
    assert share >= 0.9 * real
    assert classes == set(range(10))
    assert right > 0.8
    assert result["accuracy"] > 0.9
