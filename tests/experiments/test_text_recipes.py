"""Models that are told a text, from the command line: tokens that stay, captions, obedience."""

import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipes import call, evaluated, fails

from experiments import dual_encoder, obedience, vae_digits
from experiments.recipes import text
from jaxgen.conditioning import base
from jaxgen.core import Variables
from jaxgen.data import tokens
from jaxgen.data.captioned_digits import captioned_digits
from jaxgen.models.bert import Bert, Pretrained
from jaxgen.training.runs import open_run

VAE = (
    "--batch-size=8 --model.network=dense --model.features 8 --model.latent-dim=2 --log-every=2 "
    "--model.prior=normal --model.likelihood=gaussian --sample-every=0 "
    "--data.name=captioned_digits --model.condition=text"
).split()
TEXT = "--text.width=8 --text.num-layers=1 --text.num-heads=2".split()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("text") / "vae"
    with pytest.raises(SystemExit) as stop:
        vae_digits.recipe.main(["--run-dir", str(directory), *VAE, *TEXT, "--steps=2"])
    assert not stop.value.code
    return directory


def test_samples_by_captions(trained, tmp_path, capsys):
    out = tmp_path / "x.npz"
    asked = ["--text", "a red seven on a blue ground", "top left on green: one in blue"]
    call(capsys, vae_digits, "sample", "--run-dir", str(trained), *asked, "--num=4", f"--out={out}")
    samples = np.load(out)["samples"]
    assert samples.shape == (4, 16, 16, 3)
    message = fails(capsys, vae_digits, "sample", "--run-dir", str(trained), "--text", "a sevn")
    assert "a word that the model does not know, 'sevn'; near are 'seven'" in message
    message = fails(capsys, vae_digits, "sample", "--run-dir", str(trained), "--label", "1")
    assert "label must not be given: the model takes the condition 'text'" in message


def test_a_run_keeps_its_tokenizer(trained, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    kept = copy / "tokenizer.json"
    content = kept.read_bytes()
    kept.unlink()  # it follows from the captions, and is written again
    assert open_run(copy).step == 2
    call(capsys, vae_digits, "--run-dir", str(copy), "--steps=2")
    assert kept.read_bytes() == content
    tokens.save(tokens.by_words(["a red seven"], 32), kept)
    for verb in ([], ["sample"], ["evaluate"]):
        message = fails(capsys, vae_digits, *verb, "--run-dir", str(copy))
        assert "was made with another tokenizer.json" in message
    with pytest.raises(ValueError, match=r"restore .*tokenizer.json, without which"):
        open_run(copy)
    kept.write_text("{")
    assert "cannot be read as a tokenizer.json" in fails(capsys, vae_digits, "--run-dir", str(copy))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.name=digits"], "--model.condition text needs captions; digits has ['image'"),
        (["--text.tokenizer=wrods"], "words, bytes, pairs or the path of a tokenizer.json, got"),
        (["--text.encoder=mnlm"], "--text.encoder must be trained, minilm, the directory of a run"),
        (["--text.length=0"], "length must be at least 1, got 0"),
        (["--text.tokenizer=pairs", "--text.vocabulary=9"], "most must be at least 258, got 9"),
        (["--text.num-heads=3"], "num_heads must divide the width 8, got 3"),
    ],
)
def test_bad_input(flags, message, tmp_path, capsys):
    run = ["--run-dir", str(tmp_path / "run")]
    assert message in fails(capsys, vae_digits, *run, *VAE, *TEXT, *flags, "--steps=1")


def test_a_frozen_encoder(tmp_path, monkeypatch):
    """A caption's vector is the mean of its tokens' ones; nothing of the network is trained."""
    network = Bert(num_tokens=258, width=8, num_layers=1, num_heads=2, hidden=8, length=16)
    ids = jnp.zeros((1, 16), jnp.int32)
    bert = Pretrained(network, network.init(jax.random.key(0), ids, ids == 0)["params"])
    monkeypatch.setattr(text, "load_bert", lambda path: bert)
    tokens.save(tokens.by_bytes(16), tmp_path / "tokenizer.json")
    flags = text.TextConfig(encoder=str(tmp_path), length=16)
    config = SimpleNamespace(text=flags, run_dir=str(tmp_path / "run"))
    with pytest.warns(UserWarning, match="have more than 16 tokens and are cut"):
        train, _ = text.tokenize_pair(config, *[captioned_digits("test")] * 2)
    conditioning = text.text_conditioning(flags, train)
    assert (conditioning.trained, conditioning.width) == (False, 8)
    words = ["a red one", "two"]
    ids = jnp.asarray(conditioning.tokenize(words))
    variables = Variables({}, {}, base.fixed(conditioning))
    vector = jax.jit(conditioning.encode)(variables, ids).vector
    vectors = jax.jit(network.apply)({"params": bert.params}, ids, ids != 0)
    expected = [each[: len(word)].mean(0) for each, word in zip(vectors, words, strict=True)]
    np.testing.assert_allclose(vector, expected, atol=1e-5)
    with pytest.raises(ValueError, match="the tokenizer has 259 tokens, and the encoder knows 258"):
        text.make_encoder(flags, 259)


@pytest.mark.slow
def test_obedience(trained, tmp_path, capsys):
    judge, grid = tmp_path / "judge", tmp_path / "grid.png"
    flags = ["--batch-size=8", "--model.channels=4", "--model.width=8", *TEXT, "--steps=2"]
    call(capsys, dual_encoder, "--run-dir", str(judge), *flags)
    assert evaluated(capsys, dual_encoder, "--run-dir", str(judge))["loss"] > 0
    options = ["--num=24", "--steps=5", f"--out={grid}", "--held-out=unseen"]
    assert obedience.main([str(trained), "--dual-encoder", str(judge), *options]) == 0
    out = capsys.readouterr().out
    assert "\n| colour and ground | " in out
    assert "\n| R-precision, 1 in 20 | " in out
    assert grid.read_bytes()[:4] == b"\x89PNG"
    kept = json.loads((trained / "obedience.jsonl").read_text())
    assert "split unseen" in kept["held out"]
    assert kept["scores"]["colour and ground"]["real"] == 1
    reader = [*VAE, f"--text.encoder={judge}", "--steps=1"]
    call(capsys, vae_digits, "--run-dir", str(tmp_path / "told"), *reader)
    run = open_run(tmp_path / "told")
    assert "conditioning" not in run.variables.params
    assert run.family.conditioning.width == 8
    moved = judge.rename(tmp_path / "moved")
    again = [*VAE, "--run-dir", str(tmp_path / "told"), "--steps=2"]
    assert "2 of 2 steps done" in call(capsys, vae_digits, *again, f"--text.encoder={moved}")
    message = fails(capsys, vae_digits, *again, "--text.encoder=trained", "--steps=3")
    assert "trained on other pretrained arrays" in message
    judge = moved.rename(judge)
    message = fails(
        capsys, vae_digits, "--run-dir", str(tmp_path / "x"), *reader, "--text.length=9"
    )
    assert "--text.length must be that of the run" in message
    refused = [
        ([str(judge)], "must be a run of a conditional model that samples"),
        ([str(trained), "--dual-encoder", str(trained)], "must be a run of a dual encoder"),
        ([str(trained), "--num=3"], "--num must be at least 20"),
        ([str(trained), "--out=x.jpg"], "must end in .png"),
    ]
    for arguments, message in refused:
        assert obedience.main(arguments) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shape", "seen"), [((64, 48), (32, 24)), ((20, 32), (20, 32)), ((128, 2), (32, 1))]
)
def test_what_attributes_are_read_by(shape, seen):
    grey = np.full((2, *shape, 3), 77, np.uint8)
    np.testing.assert_array_equal(obedience._smaller(grey), np.full((2, *seen, 3), 77, np.uint8))
