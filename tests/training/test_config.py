"""Configs: to JSON and back, and what makes two runs different."""

import dataclasses
import json
from dataclasses import dataclass

import pytest

from jaxgen.training.config import (
    DataConfig,
    RunConfig,
    _at_least,
    differences,
    from_dict,
    operational,
    replace,
    to_dict,
)


@dataclass(frozen=True)
class Net:
    widths: tuple[int, ...] = (1, 2)
    remat: bool = operational(False)


@dataclass(frozen=True)
class Rate:
    decay_rate: float | None = None
    betas: tuple[float, ...] = (0.9, 0.99)


@dataclass(frozen=True)
class Config(RunConfig):
    net: Net = Net()
    sampler: Net = operational(Net())
    rate: Rate = Rate()


def test_round_trip_through_json():
    config = Config(steps=7, net=Net((3, 4, 5)), data=DataConfig(name="mnist", dir="d"))
    assert from_dict(Config(), json.loads(json.dumps(to_dict(config)))) == config


def test_missing_fields_take_the_default_and_unknown_ones_are_refused():
    assert from_dict(Config(), {"steps": 3}) == Config(steps=3)
    with pytest.raises(ValueError, match=r"unknown fields \['nets'\] for Config"):
        from_dict(Config(), {"nets": {}})
    with pytest.raises(ValueError, match="unknown fields"):
        from_dict(Config(), {"net": {"width": 1}})


@dataclass(frozen=True)
class Renamed:
    """What was `rate` is `speed` now."""

    speed: float = 1.0

    @staticmethod
    def renamed(values):
        new = dict(values)
        if "rate" in new:
            new["speed"] = new.pop("rate")
        return new


def test_what_older_runs_called_otherwise_is_read():
    assert from_dict(Renamed(), {"rate": 2.0}) == from_dict(Renamed(), {"speed": 2.0})
    with pytest.raises(ValueError, match=r"unknown fields \['size'\]"):
        from_dict(Renamed(), {"rate": 2.0, "size": 1})


def test_only_mathematics_makes_a_difference():
    old = Config()
    same = dataclasses.replace(
        old,
        steps=1,
        strategy="pmap",
        net=Net(remat=True),
        sampler=Net((9,)),
        data=DataConfig(dir="elsewhere"),
    )
    assert differences(old, same) == []
    new = dataclasses.replace(old, batch_size=3, net=Net((1,)), data=DataConfig(name="mnist"))
    assert differences(old, new) == [
        "--batch-size: 128 -> 3",
        "--data.name: digits -> mnist",
        "--net.widths: (1, 2) -> (1,)",
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "--steps must be at least 1, got 0"),
        ({"batch_size": -1}, "--batch-size must be at least 1, got -1"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
        ({"seed": 2**31}, r"--seed must be below 2\*\*31"),
        ({"log_every": 0}, "--log-every must be at least 1"),
        ({"sample_every": -5}, "--sample-every must be at least 0"),
        ({"run_dir": ""}, "run_dir must name a directory"),
    ],
)
def test_bad_values(values, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(**values)


def test_numbers_that_are_none():
    """As JSON may have them, where types are not checked."""
    for value in ("many", 2.5, True):
        with pytest.raises(ValueError, match=f"-num must be a whole number, got {value!r}"):
            _at_least("measure_num", value, 1)


def test_the_least_values():
    ones = ("steps", "batch_size", "accumulate", "fsdp", "log_every", "keep")
    ones += ("checkpoint_every", "max_nonfinite")
    RunConfig(**dict.fromkeys(ones, 1), sample_every=0, evaluate_every=0, seed=0)
    for name in ones:
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            RunConfig(**{name: 0})


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (Rate(float("nan")), "--rate.decay-rate must be finite, got nan"),
        (Rate(betas=(0.5, float("inf"))), r"--rate.betas must be finite, got \(0.5, inf\)"),
    ],
)
def test_numbers_are_finite_in_groups_too(rate, message):
    with pytest.raises(ValueError, match=message):
        Config(rate=rate)


def test_some_flags_of_a_group_are_replaced():
    config = RunConfig(data=DataConfig(name="mnist", resize=8))
    moved = replace(config, {"data": {"dir": "elsewhere"}, "steps": 3})
    assert moved.data == DataConfig(name="mnist", resize=8, dir="elsewhere")
    assert moved.steps == 3
    with pytest.raises(ValueError, match="unknown fields \\['place'\\] for DataConfig"):
        replace(config, {"data": {"place": "elsewhere"}})
