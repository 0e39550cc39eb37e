"""What the tests of recipes share."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from quick import xla_flags

from jaxgen.data.sources import digits
from jaxgen.metrics.neighbours import nearest_images

ROOT = Path(__file__).parents[2]


def call(capsys, module, *args):
    """Run an experiment's command line in this process; returns its standard output."""
    code, out, err = _run(capsys, module, args)
    assert not code, err
    return out


def evaluated(capsys, module, *args):
    """What `evaluate` finds, as programs read it."""
    return json.loads(call(capsys, module, "evaluate", "--json", *args).splitlines()[-1])


def fails(capsys, module, *args):
    """Run a command line that must be refused; returns its standard error."""
    code, _, err = _run(capsys, module, args)
    assert code == 2
    return err


def _run(capsys, module, args):
    with pytest.raises(SystemExit) as stop:
        module.recipe.main(args)
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def launch(module, run_dir, *args, wait=True, optimized=False):
    """Run an experiment in a fresh process, on one device; returns its process and its output."""
    process = subprocess.Popen(
        [sys.executable, "-m", module.__name__, *args, "--run-dir", str(run_dir)],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": xla_flags(1, optimized=optimized)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if not wait:
        return process, ""
    out = process.communicate(timeout=1800)[0]
    assert process.returncode == 0, out
    return process, out


def tiles(path, rows, columns, above=0):
    """The tiles of a grid of small images, [rows, columns, 64, 64, 3], without its words.

    Words stand on top, at the left or, `above` pixels high, above each row.
    """
    pixels = np.asarray(Image.open(path).convert("RGB"))
    height, width = rows * (66 + above) + 2, columns * 66 + 2
    assert pixels.shape[0] - height in (0, 20, 40)
    assert pixels.shape[1] >= width
    inside = pixels[-height:, -width:][2:, 2:]
    return inside.reshape(rows, 66 + above, columns, 66, 3)[:, above : above + 64, :, :64].swapaxes(
        1, 2
    )


def recognised(classifier, images, least=0.9):
    """The share of images whose most probable class has more than `least`, and the classes."""
    probabilities = classifier.predict_proba(_flat(images))
    sure = probabilities.max(axis=1) > least
    return sure.mean(), set(probabilities.argmax(axis=1)[sure].tolist())


def sklearn_classifier():
    """An independent classifier of the embedded digits, and its share of held-out ones."""
    neural_network = pytest.importorskip("sklearn.neural_network")
    train, test = (digits(split).arrays for split in ("train", "test"))
    classifier = neural_network.MLPClassifier((128,), max_iter=1000, random_state=0)
    classifier.fit(_flat(train["image"]), train["label"])
    return classifier, recognised(classifier, np.asarray(test["image"]))[0]


def readable_ratio(capsys, module, run_dir, out):
    """Train a recipe and draw 600 samples, to be read by a forest that has never seen any.

    An image is readable if one class has more than 2/3 of the votes of 500 trees fitted on the
    train split; three of four held-out digits are.

    Returns:
        The share of readable samples over that of held-out digits; the classes read; the median
        distance to the nearest training image over that of held-out digits, of which none is 0.
    """
    ensemble = pytest.importorskip("sklearn.ensemble")
    launch(module, run_dir, optimized=True)
    call(capsys, module, "sample", "--run-dir", str(run_dir), "--num=600", f"--out={out}")
    train, test = (digits(split).arrays for split in ("train", "test"))
    forest = ensemble.RandomForestClassifier(500, random_state=0)
    forest.fit(_flat(train["image"]), train["label"])
    images = np.load(out)["samples"], np.asarray(test["image"])
    (share, classes), (real, _) = (recognised(forest, x, least=2 / 3) for x in images)
    near, near_real = (nearest_images(x, digits("train")).distances for x in images)
    assert near.min() > 0
    return share / real, classes, np.median(near) / np.median(near_real)


def share_of_readable_samples(capsys, module, run_dir, out):
    """Train a recipe that is told the digit and draw 500, 50 of each: the share that an independent
    classifier recognises, that of held-out digits, the classes, the share of the digit asked for.
    """
    classifier, real = sklearn_classifier()
    call(capsys, module, "--run-dir", str(run_dir))
    call(capsys, module, "sample", "--run-dir", str(run_dir), "--num=500", f"--out={out}")
    samples = np.load(out)["samples"]
    share, classes = recognised(classifier, samples)
    right = classifier.predict(_flat(samples)) == np.arange(500) // 50
    return share, real, classes, right.mean()


def _flat(images):
    return np.reshape(images, (len(images), -1)) / 255.0
