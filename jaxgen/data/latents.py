"""Latents of a whole set, computed once: data of a second stage, without calls of the first one.

Examples:
    encode = jax.jit(lambda fixed, raw: codec.encode(fixed, prepare(key, raw, False), key)["image"])
    latents = cache_latents(
        lambda raw, number: encode(codec.fixed, raw), load("cifar10"), "cifar10_codes.npz",
        batch_size=256, first_stage=f"vqvae_cifar {fingerprint}",
    )
    pipeline, prepare = Pipeline(latents, 128, seed=0), prepare_latents()
    family = on_latents(second_stage, codec, cached=True)

Or, where the examples themselves are needed beside them (to measure samples, to show
reconstructions), `WithLatents(load("cifar10"), latents)`.

Of several processes (`jax.distributed`) each encodes a part of the set and writes it into a file of
its own beside the path; process 0 puts them together. What is not whole is never read: a part that
its process could not finish is computed anew, and one that it did is not.
"""

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgen.data.arrays import read_npz
from jaxgen.data.folders import digest_of
from jaxgen.data.joined import Joined
from jaxgen.data.pipeline import eval_batches
from jaxgen.data.sources import ArraySource, Source
from jaxgen.files import is_temporary, open_atomically

LATENTS = "latents"
_IDENTITY = "identity"
_LOOK_SECONDS, _PATIENCE = 0.2, 60.0  # between looks for a file, and until it is said to be late

Arrays = dict[str, np.ndarray]


def cache_latents(
    encode: Callable[[Arrays, int], Any],
    source: Source,
    path: str | Path | None = None,
    *,
    batch_size: int,
    first_stage: str,
    replaces: tuple[str, ...] = ("image",),
) -> ArraySource:
    """The latents of a source's examples, in its order, computed once and kept in memory.

    With a path they are kept in an `.npz` file as well: written whole or not at all, and read
    instead of computed if they are of the same set, split, preprocessing and first stage. Of
    several processes, which all call this, each computes a part then, and all wait for the file;
    without a path each computes all.

    Args:
        encode: Function from a batch as the source has it and the batch's number in the set (to be
            folded into a key where the first stage draws) to its latents [B, ...]. It is called
            with batches of one size, the last one padded, and computes by the devices of its own
            process. Compile it with the first stage's arrays as arguments.
        source: Source of the examples.
        path: Path of the file, in a directory that all processes share; or None for no file.
        batch_size: Number of examples in a call of `encode`.
        first_stage: Text that identifies the first stage: a run's fingerprint, say.
        replaces: Entries of the source that the latents replace; the others (labels, attributes)
            are passed on.

    Returns:
        A source of `latents` and the entries passed on, whose protocol names the source's and the
        first stage.

    Raises:
        ValueError: A file of other latents (both are named) or of no latents; a source with an
            entry `latents` of its own; an empty source or a batch size below 1.
    """
    kept = [name for name in source.spec if name not in replaces]
    if LATENTS in kept:
        raise ValueError(f"the source {source.name!r} must have no entry {LATENTS!r} of its own")
    identity = f"latents of [{source.protocol}] by {first_stage}"
    file, names = None if path is None else Path(path), {LATENTS, *kept}

    def compute(index: int, count: int) -> Arrays:
        """The arrays of one of `count` parts of the batches."""
        num = math.ceil(len(source) / max(batch_size, 1))
        numbers = range(index * num // count, (index + 1) * num // count)
        return _compute(encode, source, batch_size, kept, numbers)

    if file is not None and file.exists():
        arrays = _read(file, identity, names)
    elif file is None:
        arrays = compute(0, 1)
    else:
        cut = f"{identity} in batches of {batch_size}"
        arrays = _compute_together(file, identity, cut, names, compute)
    return ArraySource(
        arrays,
        name=f"latents of {source.name}",
        split=source.split,
        protocol=identity,
        num_classes=source.num_classes if "label" in arrays else None,
        class_names=source.class_names if "label" in arrays else (),
        attribute_names=getattr(source, "attribute_names", ()) if "attributes" in arrays else (),
    )


def prepare_latents(entry: str = "image") -> Callable[[Any, Mapping[str, Any], bool], Any]:
    """`(key, raw batch, train) -> batch`, the latents by the name that the second stage reads.

    Args:
        entry: Name of the entry that the second stage reads.
    """

    def prepare(key: Any, raw: Mapping[str, Any], train: bool) -> dict[str, Any]:
        others = {name: values for name, values in raw.items() if name != LATENTS}
        return {**others, entry: raw[LATENTS]}

    return prepare


class WithLatents(Joined):
    """The examples of a source and their latents, the entry `latents`.

    Its digest is of the examples and of what identifies the first stage, and not of the latents'
    last bits, which are another machine's own.

    Args:
        source: Source of the examples.
        latents: Their latents, as `cache_latents` gives them.
        first_stage: Text that identifies the first stage.

    Raises:
        ValueError: Latents of another number of examples.
    """

    def __init__(self, source: Source, latents: ArraySource, first_stage: str):
        super().__init__(source, {LATENTS: latents.arrays[LATENTS]})
        self.first_stage = first_stage

    @property
    def digest(self) -> str:  # type: ignore[override]
        return digest_of(self.source.digest, self.first_stage)

    @property
    def protocol(self) -> str:
        return f"{self.source.protocol}, with latents by {self.first_stage}"


def _compute(
    encode: Callable[[Arrays, int], Any],
    source: Source,
    batch_size: int,
    kept: list[str],
    numbers: range,
) -> Arrays:
    """The latents, and what is kept beside them, of some of the batches; {} of none."""
    parts: dict[str, list[np.ndarray]] = {}
    batches = eval_batches(source, batch_size, numbers=numbers)
    for number, batch in zip(numbers, batches, strict=True):
        num = int(batch.pop("weight").sum())  # the padding comes last
        batch = {name: np.asarray(values) for name, values in batch.items()}
        latents = {LATENTS: encode(batch, number), **{name: batch[name] for name in kept}}
        for name, values in latents.items():
            parts.setdefault(name, []).append(np.asarray(values)[:num])
    return {name: np.concatenate(values) for name, values in parts.items()}


def _compute_together(
    file: Path, identity: str, cut: str, names: set[str], compute: Callable[[int, int], Arrays]
) -> Arrays:
    """The arrays of all processes' parts, of which process 0 makes the file."""
    index, count = jax.process_index(), jax.process_count()
    if count == 1:
        arrays = compute(0, 1)
        _write(file, identity, arrays)
        return arrays
    # Of other latents, or cut in another way, a part has another name.
    digest = hashlib.sha256(cut.encode()).hexdigest()[:16]
    prefix = f"{file.name}.part-"
    parts = [file.with_name(f"{prefix}{digest}-{i}-of-{count}") for i in range(count)]
    if not parts[index].exists():
        _write(parts[index], identity, compute(index, count))
    for awaited in parts if index == 0 else [file]:
        _wait_for(awaited, file)
    if not file.exists():
        whole = [arrays for arrays in (_read(part, identity) for part in parts) if arrays]
        arrays = {name: np.concatenate([part[name] for part in whole]) for name in whole[0]}
        _write(file, identity, arrays)
        for path in file.parent.iterdir():  # also what was left by processes that were stopped
            if path.name.startswith(prefix) or is_temporary(path, prefix):
                path.unlink(missing_ok=True)
        return arrays
    parts[index].unlink(missing_ok=True)  # written after the file was made
    return _read(file, identity, names)


def _wait_for(path: Path, file: Path) -> None:
    """Returns when what another process writes is there, or the file that is made of it: whole.

    If that process has died, JAX ends this one too, some 100 seconds later.
    """
    late = time.monotonic() + _PATIENCE
    while not path.exists() and not file.exists():
        time.sleep(_LOOK_SECONDS)
        if time.monotonic() > late:
            late = math.inf
            warnings.warn(
                f"waiting for {path}, which another process writes: all processes must share its "
                "directory, as they share the run's",
                stacklevel=2,
            )


def _write(path: Path, identity: str, arrays: Arrays) -> None:
    stored: dict[str, Any] = {**arrays, _IDENTITY: np.array(identity)}
    with open_atomically(path) as stream:
        np.savez(stream, **stored)


def _read(path: Path, identity: str, names: set[str] | None = None) -> Arrays:
    """The arrays of a file, if they are those of `identity`, by these names where any are given."""
    try:
        arrays = read_npz(path)
    except ValueError as error:
        raise ValueError(f"{path} is no file of latents: {error}") from None
    if _IDENTITY not in arrays:
        raise ValueError(f"{path} is no file of latents: it has {sorted(arrays)}")
    stored = str(arrays.pop(_IDENTITY))
    if stored != identity:
        raise ValueError(f"{path} holds {stored}, needed are {identity}: name another file")
    if names is not None and set(arrays) != names:
        raise ValueError(f"{path} has the entries {sorted(arrays)}, needed are {sorted(names)}")
    return arrays
