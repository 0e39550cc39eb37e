"""The flags that every experiment shares, as dataclasses, and their conversion to JSON and back."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal, TypeVar

from jaxgen.data.places import name_and_place

T = TypeVar("T")


def operational(default: Any) -> Any:
    """A field that may change when a run is resumed, because it does not change the mathematics."""
    return field(default=default, metadata={"operational": True})


@dataclass(frozen=True)
class DataConfig:
    """Flags of the data."""

    name: str = "digits"
    """Name of the data set: `digits` or `captioned_digits` (embedded); any TFDS image set, say
    `cifar10`; or a kind and its place: `folder:DIR` (of images, with captions and attributes where
    a metadata.jsonl or .csv lies beside them), `shards:DIR` (WebDataset's tar files),
    `parquet:PLACE`, `hf:DIR` (saved by Hugging Face's datasets) or `hf:OWNER/NAME` (on the hub)."""
    dir: str | None = operational(None)
    """Directory of the TFDS sets, None for TFDS's default; or the place of another kind of set,
    where the name does not say it."""
    split: str | None = "train"
    """Split to train on: a split of the set, a subfolder, or None for all examples. Where there are
    no splits `train` and `test` are made: some examples are held out, by a hash of their names."""
    held_out: str | None = operational("test")
    """Split to evaluate on: a split of the set, a subfolder, or None for all examples."""
    resize: int | None = None
    """Number of pixels a side to which every image is cropped and resized; None for no change."""
    stream: bool = operational(False)
    """Whether to feed batches from the host even where the set would fit on the device."""

    def __post_init__(self):
        # Apart, so that a run may go on where its data have been moved.
        name, place = name_and_place(self.name, self.dir)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "dir", place)


@dataclass(frozen=True)
class RunConfig:
    """Flags of every experiment."""

    run_dir: str = operational("runs/unnamed")
    """Directory of everything that the run writes; a run that it holds is resumed."""
    steps: int = operational(10_000)
    """Number of training steps in total."""
    batch_size: int = 128
    """Number of examples in a step, over all devices and hosts."""
    seed: int = 0
    """Seed of the parameters, the order of the data and the noise."""
    strategy: Literal["jit", "pmap"] = operational("jit")
    """Method of compiling a step for several devices."""
    fsdp: int = operational(1)
    """Number of devices over which parameters and optimizer state are sharded (strategy jit)."""
    distributed: bool = operational(False)
    """Whether to run as one of several processes: give the command on each host. Slurm, MPI and TPU
    pods are recognised; elsewhere set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID.
    """
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the network's arithmetic; parameters and losses stay float32."""
    accumulate: int = 1
    """Number of micro-batches in an update: less memory, an unchanged gradient."""
    log_every: int = operational(100)
    """Number of steps between rows of metrics."""
    sample_every: int = operational(1000)
    """Number of steps between pictures of samples; 0 for none."""
    evaluate_every: int = operational(0)
    """Number of steps between evaluations on the held-out split; 0 for none."""
    measure_every: int = operational(0)
    """Number of steps between measurements of samples: their distance from the training images with
    precision and recall, by which the best checkpoint is kept; 0 for none."""
    measure_num: int = operational(1000)
    """Number of samples of a measurement."""
    measure_extractor: Literal["inception", "lite0", "classifier"] = operational("inception")
    """Network whose features are compared: only inception makes a FID, classifier is trained on the
    run's own labelled images."""
    checkpoint_every: int = operational(1000)
    """Number of steps between checkpoints; one is always written at the end and on SIGTERM."""
    keep: int = operational(3)
    """Number of the newest checkpoints to keep, beside the best one: by the distance that is
    measured, or else by the held-out loss."""
    writers: tuple[Literal["csv", "tensorboard", "wandb", "mlflow", "trackio"], ...] = operational(
        ("csv", "tensorboard")
    )
    """Where metrics and pictures go: the tables (csv) always, and services whose packages are
    installed."""
    profile: tuple[int, int] | None = operational(None)
    """Steps from START to STOP of which a trace is written: into the run's `profile`, for
    TensorBoard, XProf or Perfetto; None for none."""
    compilation_cache: str = operational("default")
    """Directory in which compiled programs are kept for the next run; `default` for one in the
    user's cache directory, `none` to keep none."""
    max_nonfinite: int = operational(10)
    """Number of steps in a row that are skipped, as not finite, after which the run stops."""
    accept_lost_rows: bool = operational(False)
    """Whether to resume although rows of metrics.csv or the run's other tables are lost."""
    data: DataConfig = DataConfig()

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "fsdp", "log_every", "keep"):
            _at_least(name, getattr(self, name), 1)
        for name in ("checkpoint_every", "max_nonfinite", "measure_num"):
            _at_least(name, getattr(self, name), 1)
        for name in ("seed", "sample_every", "evaluate_every", "measure_every"):
            _at_least(name, getattr(self, name), 0)
        if self.profile is not None and not 0 <= self.profile[0] < self.profile[1]:
            given = " ".join(map(str, self.profile))
            raise ValueError(f"--profile must be two steps, START before STOP, got {given}")
        _all_finite(self)
        if self.seed >= 2**31:
            raise ValueError(f"--seed must be below 2**31, got {self.seed}")
        if not self.run_dir:
            raise ValueError("run_dir must name a directory, got an empty string")


def _at_least(name: str, value: Any, least: int) -> None:
    flag = name.replace("_", "-")
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"--{flag} must be a whole number, got {value!r}")
    if value < least:
        raise ValueError(f"--{flag} must be at least {least}, got {value}")


def _all_finite(config: Any, prefix: str = "") -> None:
    """Refuse NaN and infinities in any field: none of them is a setting of anything."""
    for f in dataclasses.fields(config):
        value, name = getattr(config, f.name), prefix + f.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            _all_finite(value, name + ".")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"--{name} must be finite, got {value}")


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flags with those of groups by their path: `{"data": {"name": ...}}` as `data.name`.

    Args:
        config: Flags as JSON has them.
        prefix: Text before each name.
    """
    flat: dict[str, Any] = {}
    for name, value in config.items():
        is_group = isinstance(value, Mapping)
        flat |= flattened(value, f"{prefix}{name}.") if is_group else {f"{prefix}{name}": value}
    return flat


def from_dict(default: T, values: dict[str, Any]) -> T:
    """A config of the type of `default` with the given values, as read from JSON.

    Args:
        default: Frozen dataclass whose fields all have defaults; it gives the fields that `values`
            lacks. Where fields were called otherwise once it has a function `renamed` from such
            values to those of now.
        values: Name of each field -> its JSON value; nested dataclasses as nested objects, tuples
            as lists.

    Raises:
        ValueError: If `values` has a field that the config does not.
    """
    names = [f.name for f in dataclasses.fields(default)]  # type: ignore[arg-type]
    if hasattr(default, "renamed"):
        values = default.renamed(values)
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise ValueError(
            f"unknown fields {unknown} for {type(default).__name__}, which has {names}: "
            "is the run of another version or another experiment?"
        )

    def convert(old: Any, new: Any) -> Any:
        if dataclasses.is_dataclass(old):
            return from_dict(old, new)
        return tuple(new) if isinstance(new, list) else new

    new = {name: convert(getattr(default, name), value) for name, value in values.items()}
    return dataclasses.replace(default, **new)  # type: ignore[type-var]


def replace(config: T, changes: Mapping[str, Any]) -> T:
    """A config with some fields replaced.

    Args:
        config: Dataclass of flags.
        changes: Name of each field to replace -> its new value; of a group of flags a mapping
            replaces some of them.

    Raises:
        ValueError: If the config has no field of a name in `changes`.
    """
    names = [f.name for f in dataclasses.fields(config)]  # type: ignore[arg-type]
    if unknown := sorted(set(changes) - set(names)):
        raise ValueError(f"unknown fields {unknown} for {type(config).__name__}, which has {names}")

    def new(name: str, value: Any) -> Any:
        return replace(getattr(config, name), value) if isinstance(value, Mapping) else value

    values = {name: new(name, value) for name, value in changes.items()}
    return dataclasses.replace(config, **values)  # type: ignore[type-var]


def to_dict(config: Any) -> dict[str, Any]:
    """A config as a JSON object, which `from_dict` reads."""
    return dataclasses.asdict(config)


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """The differences that make two configs different runs, each as `--name: old -> new`.

    Operational fields may differ.

    Args:
        old: Config of a run.
        new: Config to compare with it, of the same type.
        prefix: Text before each name: the path of a nested config.
    """
    result = []
    for f in dataclasses.fields(old):
        a, b = getattr(old, f.name), getattr(new, f.name)
        if f.metadata.get("operational") or a == b:
            continue
        name = prefix + f.name.replace("_", "-")
        if dataclasses.is_dataclass(a):
            result += differences(a, b, name + ".")
        else:
            result.append(f"--{name}: {a} -> {b}")
    return result
