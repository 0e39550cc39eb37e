"""The questions to an accelerator, the most wanted first."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from . import correctness, peers, probe, speed
from .programs import RECIPES

PRECISIONS = ("bfloat16", "float32")


class Piece(NamedTuple):
    """A question to the machine.

    Attributes:
        ask: Function whose result, of plain Python values, is the answer.
        seconds: Greatest time that it may take.
        takes_size: Whether the function takes `shrunk`.
    """

    ask: Callable[..., dict[str, Any]]
    seconds: float
    takes_size: bool = True


def pieces() -> dict[str, Piece]:
    """The pieces by name, the most wanted first."""
    named = {
        "probe": Piece(probe.probe, 60),
        **_correctness("float32"),
        "training-ddpm_cifar-bfloat16": _training("ddpm_cifar", "bfloat16"),
        "torch-ddpm-bfloat16": _torch("ddpm", "bfloat16"),
        "sampling-ddpm_cifar-bfloat16": _sampling("ddpm_cifar", "bfloat16"),
        "scaling-ddpm_cifar-bfloat16": Piece(partial(speed.scaling, "ddpm_cifar", "bfloat16"), 240),
    }
    for precision in PRECISIONS:
        named |= {f"training-{name}-{precision}": _training(name, precision) for name in RECIPES}
    named |= {f"sampling-{name}-bfloat16": _sampling(name, "bfloat16") for name in RECIPES}
    named |= {f"torch-{name}-bfloat16": _torch(name, "bfloat16") for name in peers.PEERS}
    named |= _correctness("bfloat16")
    named |= {f"torch-{name}-float32": _torch(name, "float32") for name in peers.PEERS}
    return named


def _correctness(precision: str) -> dict[str, Piece]:
    named = {
        f"convolutions-{precision}": Piece(
            partial(correctness.convolutions, precision), 90, takes_size=False
        ),
        f"attentions-{precision}": Piece(
            partial(correctness.attentions, precision), 60, takes_size=False
        ),
    }
    if precision == "float32":
        named["devices"] = Piece(correctness.devices_agree, 60, takes_size=False)
    for name in correctness.FAMILIES:
        ask = partial(correctness.family, name, precision)
        named[f"family-{name}-{precision}"] = Piece(ask, 120, takes_size=False)
    return named


def _training(name: str, precision: str) -> Piece:
    return Piece(partial(speed.training_speed, name, precision), 150)


def _sampling(name: str, precision: str) -> Piece:
    return Piece(partial(speed.sampling_speed, name, precision), 120)


def _torch(name: str, precision: str) -> Piece:
    return Piece(partial(peers.beside_torch, name, precision), 420)  # PyTorch compiles slowly
