"""`--help` is of a verb's own flags; `--help-all` of all; every flag can be given either way."""

import dataclasses
import re
from dataclasses import dataclass, field

import pytest
import toys
import tyro

from jaxgen.training import short_help
from jaxgen.training.checkpoint import CheckpointError
from jaxgen.training.config import DataConfig, RunConfig, operational
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


@pytest.mark.parametrize("verb", ["train", "sample", "evaluate"])
def test_what_is_not_shown_stays_as_it_was(verb):
    config = Config(width=5, data=DataConfig(name="mnist"), model=Group(0.25))
    hidden = short_help.shown(config, verb)
    assert isinstance(hidden, Config)
    assert dataclasses.asdict(hidden) == dataclasses.asdict(config)


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
