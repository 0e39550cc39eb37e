"""The flags that every experiment shares, as dataclasses, and their way to JSON and back."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

T = TypeVar("T")


def operational(default: Any) -> Any:
    """A field that may change when a run is resumed: it does not enter the mathematics."""
    return field(default=default, metadata={"operational": True})


@dataclass(frozen=True)
class DataConfig:
    """Where the examples come from."""

    name: str = "digits"
    """`digits` (embedded), `folder`, or any TFDS image set, such as `cifar10`."""
    dir: str | None = operational(None)
    """The TFDS data directory, or the folder of images. None: TFDS's own default."""
    split: str | None = "train"
    """The examples to train on: a split of the set, a subfolder of the folder, or None for all."""
    held_out: str | None = operational("test")
    """The examples to evaluate on, likewise."""
    resize: int | None = None
    """Center-crop and resize every image to this many pixels a side."""
    stream: bool = operational(False)
    """Feed batches from the host even where the set would fit on the device."""


@dataclass(frozen=True)
class RunConfig:
    """What every experiment can be told."""

    run_dir: str = operational("runs/unnamed")
    """Everything that the run writes; resumed if it exists."""
    steps: int = operational(10_000)
    """Training steps in all."""
    batch_size: int = 128
    """Examples a step, over all devices and hosts."""
    seed: int = 0
    """Of parameters, data order and noise."""
    strategy: Literal["jit", "pmap"] = operational("jit")
    """How a step is compiled for several devices."""
    fsdp: int = operational(1)
    """Devices over which parameters and optimizer state are sharded (strategy jit)."""
    distributed: bool = operational(False)
    """One of several processes: give the same command on each host. Slurm, MPI and TPU pods are
    recognised; elsewhere set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the network's arithmetic; parameters and losses stay float32."""
    accumulate: int = 1
    """Micro-batches per update: less memory, the same gradient."""
    log_every: int = operational(100)
    """Steps between rows of metrics."""
    sample_every: int = operational(1000)
    """Steps between sample grids; 0 for none."""
    evaluate_every: int = operational(0)
    """Steps between evaluations on the held-out split; 0 for none."""
    checkpoint_every: int = operational(1000)
    """Steps between checkpoints; one is always written at the end and on SIGTERM."""
    keep: int = operational(3)
    """Newest checkpoints to keep, beside the best one where evaluations are made."""
    max_nonfinite: int = operational(10)
    """Stop after so many steps in a row were skipped because they were not finite."""
    data: DataConfig = DataConfig()

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "fsdp", "log_every", "keep"):
            _at_least(name, getattr(self, name), 1)
        for name in ("checkpoint_every", "max_nonfinite"):
            _at_least(name, getattr(self, name), 1)
        for name in ("seed", "sample_every", "evaluate_every"):
            _at_least(name, getattr(self, name), 0)
        if self.seed >= 2**31:
            raise ValueError(f"--seed must be below 2**31, got {self.seed}")
        if not self.run_dir:
            raise ValueError("run_dir must name a directory, got an empty string")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        flag = name.replace("_", "-")
        raise ValueError(f"--{flag} must be at least {least}, got {value}")


def from_dict(default: T, values: dict[str, Any]) -> T:
    """A config of the type of `default` with the given values, as read from JSON.

    Args:
        default: a frozen dataclass whose fields all have defaults; fields that `values` lacks
            keep its own.
        values: names to JSON values; nested dataclasses as nested objects, tuples as lists.

    Raises:
        ValueError: if `values` has a field that the config does not.
    """
    names = [f.name for f in dataclasses.fields(default)]  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise ValueError(
            f"unknown fields {unknown} for {type(default).__name__}, which has {names}: "
            "was the run made by another version or another experiment?"
        )

    def convert(old: Any, new: Any) -> Any:
        if dataclasses.is_dataclass(old):
            return from_dict(old, new)
        return tuple(new) if isinstance(new, list) else new

    new = {name: convert(getattr(default, name), value) for name, value in values.items()}
    return dataclasses.replace(default, **new)  # type: ignore[type-var]


def to_dict(config: Any) -> dict[str, Any]:
    """A config as JSON has it; `from_dict` reads it back."""
    return dataclasses.asdict(config)


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """What makes two configs different runs: `--name: old -> new`, operational fields aside."""
    found = []
    for f in dataclasses.fields(old):
        a, b = getattr(old, f.name), getattr(new, f.name)
        if f.metadata.get("operational") or a == b:
            continue
        name = prefix + f.name.replace("_", "-")
        if dataclasses.is_dataclass(a):
            found += differences(a, b, name + ".")
        else:
            found.append(f"--{name}: {a} -> {b}")
    return found
