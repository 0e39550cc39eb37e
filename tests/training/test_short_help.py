"""`--help` is of a verb's own flags; `--help-all` of all; every flag can be given either way."""

import dataclasses
import re
from dataclasses import dataclass, field

import pytest
import toys
import tyro

from experiments import ddpm_digits
from jaxgen.training import short_help
from jaxgen.training.checkpoint import CheckpointError
from jaxgen.training.config import RunConfig, operational
from jaxgen.training.recipe import Recipe


@dataclass(frozen=True)
class Group:
    """Some group."""

    eta: float = operational(0.5)
    """Share of something."""
    channels: int = 8
    """Number of channels."""


@dataclass(frozen=True)
class Nested:
    """Groups of a group."""

    generator: Group = Group()
    weight: float = 1.0
    """Weight of something."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Flags with groups."""

    width: int = 3
    """Width of something."""
    seconds: int = operational(2)
    """Seconds of something drawn."""
    model: Group = Group()
    game: Nested = Nested()
    sampler: Group = Group()
    evaluation: Group = field(default_factory=Group)


def shown(verb, capsys, config=None):
    config = short_help.shown(Config(seed=7) if config is None else config, verb)
    with pytest.raises(SystemExit):
        tyro.cli(type(config), default=config, args=["--help"])
    out = capsys.readouterr().out
    names = {*re.findall(r"^\W+(--[a-z][\w.-]*)", out, re.MULTILINE)}
    return names, out


def test_flags_of_a_verb(capsys):
    train, text = shown("train", capsys)
    most_used = {"--steps", "--batch-size", "--run-dir", "--measure-every", "--data.name"}
    of_groups = {"--model.channels", "--game.generator.channels"}
    assert {*most_used, *of_groups, "--width", "--seconds"} <= train
    others = {"--log-every", "--data.split", "--model.eta", "--game.weight", "--sampler.channels"}
    assert not others & train
    assert "Width of something." in text
    sample, text = shown("sample", capsys)
    common = {"--run-dir", "--seed", "--fsdp", "--compilation-cache", "--seconds"}
    of_data = {"--data.dir", "--data.held-out"}
    assert sample == {*common, *of_data, "--sampler.eta", "--sampler.channels"}
    assert "default: 7" in text  # the run's own value
    assert "Share of something." in text
    of_evaluate = {"--evaluation.eta", "--evaluation.channels"}
    assert shown("evaluate", capsys)[0] == {*common, *of_data, *of_evaluate}


def test_the_words_of_a_flag(capsys):
    """The first ones where training has many; all of them of other verbs; none without a source."""
    _, text = shown("train", capsys)
    assert "Directory of everything that the run writes. (default:" in " ".join(text.split())
    _, text = shown("sample", capsys)
    words = " ".join(re.sub(r"[^\w ;:.]", " ", text).split())
    assert "that the run writes; a run that it holds is resumed." in words
    unknown = dataclasses.make_dataclass(
        "Unknown", [("height", int, dataclasses.field(default=4))], bases=(Config,), frozen=True
    )
    names, text = shown("train", capsys, unknown())
    assert {"--height", "--width"} <= names
    assert "Width of something." in text


def test_the_help_of_a_recipe_fits_a_page(capsys, monkeypatch):
    """And has the flags that the README names."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        ddpm_digits.recipe.main(["train", "--help"])
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 65
    for flag in (
        "steps batch-size seed run-dir data.name data.dir data.resize strategy precision profile "
        "optimizer.learning-rate optimizer.warmup-steps optimizer.schedule optimizer.decay-steps "
        "average.decay model.condition model.channels measure-every measure-extractor writers"
    ).split():
        assert f"--{flag} " in text


def test_what_is_asked_for():
    assert short_help.asked(["--num", "3"]) == ""
    assert short_help.asked(["--num", "3", "-h"]) == "short"
    assert short_help.asked(["--help", "--help-all"]) == "all"
    assert short_help.run_dir_of(["--num", "3", "--run-dir", "x"]) == "x"
    assert short_help.run_dir_of(["--run-dir=a=b"]) == "a=b"
    assert short_help.run_dir_of(["--run_dir", "x"]) == "x"
    assert short_help.run_dir_of(["--run-dir"]) is None


def test_pictures_by_name():
    recipe = Recipe(toys.experiment, RunConfig())
    assert short_help.pictures(recipe, RunConfig()).startswith("Pictures (--picture): samples")

    for error in (FileNotFoundError, CheckpointError):

        def lost(config, error=error):
            raise error("there is no data directory")

        said = short_help.pictures(Recipe(lost, RunConfig()), RunConfig())
        assert said.endswith("once the data can be read: there is no data directory")
