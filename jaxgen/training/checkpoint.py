"""Checkpoints that are verified when they are read: Orbax, with checksums and a fallback.

Orbax writes a step asynchronously and atomically, but a byte that flips on the disk comes back as a
wrong weight without an error, and a step that cannot be read stops a run although older ones are
intact. So each checkpoint here has a manifest with a fingerprint of every array; `restore` verifies
it, falls back to the newest sound step, and warns. This is the only file of the package that
imports Orbax.
"""

import contextlib
import logging
import math
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import Array
from orbax.checkpoint import checkpoint_managers

from jaxgen.core import PyTree
from jaxgen.training.manifest import CheckpointError, Leaf, Manifest, fingerprints, named_leaves

_DAMAGED = "damaged"
_SPACE_MARGIN = 16 * 2**20  # bytes beside the arrays: manifests, metadata, the logs of the run


class CheckpointWarning(UserWarning):
    """A damaged checkpoint was passed over for an older one."""


class _DamageError(Exception):
    """One checkpoint cannot be used; the message is the reason."""


class _KeepBest:
    """Preserves the `count` steps of lowest score.

    Orbax has a policy for this, but it reads the scores from a file of its own for each step, and a
    damaged file stops the manager from opening; these scores come from the manifests.
    """

    def __init__(self, count: int):
        self.count = count
        self.scores: dict[int, float] = {}

    def ranked(self, steps: Sequence[int]) -> list[int]:
        """The steps that have a score, best first, the newer of equals first."""
        return sorted(self.scores.keys() & set(steps), key=lambda step: (self.scores[step], -step))

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Orbax's interface: which of the checkpoints, oldest first, to preserve."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        best = self.ranked(steps)[: self.count]
        return [step in best for step in steps]


def check_directory(directory: str | Path) -> None:
    """Checks that Orbax can read what it writes in a directory.

    It takes a path with wildcards or a backslash for a pattern when it reads, though not when it
    writes, and a folder whose name ends in `gs:` for a bucket.

    Args:
        directory: Directory for checkpoints, which need not exist.

    Raises:
        ValueError: If its absolute path holds one of the characters `[ * ? \\`, or `gs:/`.
    """
    path = Path(directory).absolute()
    odd = [part for part in ("[", "*", "?", "\\", "gs:/") if part in f"{path}/"]
    if odd:
        raise ValueError(
            f"checkpoints in {path} could not be read again: its path must be without "
            f"{' and '.join(map(repr, odd))}; name another directory"
        )


class Checkpoints:
    """The checkpoints of one run directory.

    A step is written as `<directory>/<step>`: the arrays by name, and a JSON manifest of their
    shapes, dtypes and fingerprints, the versions of jaxgen and JAX, and the metrics. Damaged steps
    are moved to `<directory>/damaged`, never deleted.

    Examples:
        >>> import tempfile, jax.numpy as jnp
        >>> from jaxgen.training.checkpoint import Checkpoints
        >>> state = {"params": {"w": jnp.arange(3.0)}}
        >>> with Checkpoints(tempfile.mkdtemp()) as checkpoints:
        ...     checkpoints.save(100, state)
        ...     step, state = checkpoints.restore(state)
        >>> step
        100

    Args:
        directory: Directory of the checkpoints; created if it is missing, unless `read_only`.
        keep: Number of the newest steps to keep, at least 1.
        keep_best: Number of the best steps to keep as well.
        best_metric: Name of the metric that ranks steps, lower is better; None keeps no best steps.
        read_only: Whether nothing may be written, cleaned up or moved: for a reader while another
            process trains.

    Raises:
        ValueError: If a number of steps to keep is out of range, or the directory's name is such
            that Orbax could not read it.
        NotADirectoryError: If `directory` is a file.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep: int = 3,
        keep_best: int = 1,
        best_metric: str | None = None,
        read_only: bool = False,
    ):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        if keep_best < 0:
            raise ValueError(f"keep_best must not be negative, got {keep_best}")
        check_directory(directory)
        self.directory = Path(directory).absolute()
        if self.directory.exists() and not self.directory.is_dir():
            raise NotADirectoryError(f"directory is not a directory: {directory}")
        self._keep, self._best_metric = keep, best_metric
        self._read_only = read_only
        self._best = _KeepBest(keep_best if best_metric else 0)
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                create=not read_only,
                cleanup_tmp_directories=not read_only,
                # Metrics are in our manifests; reading Orbax's can fail where a step is damaged.
                lightweight_initialize=True,
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                    [checkpoint_managers.LatestN(keep), self._best]
                ),
            ),
        )
        self._saving: int | None = None
        if best_metric is not None:
            for step in self.steps():
                try:
                    self._note_score(step, self._manifest(step).metrics)
                except _DamageError as damage:
                    logging.getLogger(__name__).warning("checkpoint %d: %s", step, damage)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            warnings.warn(str(failure), CheckpointWarning, stacklevel=2)  # `error` matters more

    def steps(self) -> list[int]:
        """The steps on the disk, oldest first, without one that is still being saved."""
        return [step for step in sorted(self._manager.all_steps()) if step != self._saving]

    def latest_step(self) -> int | None:
        """The newest of `steps`, sound or not; None where there is none."""
        return max(self.steps(), default=None)

    def wait(self) -> None:
        """Blocks until the last save is on the disk.

        Raises:
            CheckpointError: If it could not be written.
        """
        if self._saving is None:
            return
        step, self._saving = self._saving, None
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._manager.reload()
            raise self._not_written(step, _brief(error)) from error

    def close(self) -> None:
        """Waits for the last save and frees the threads; raises as `wait` does."""
        try:
            self.wait()
        finally:
            # After a save that failed Orbax raises it once more, as it came from the system.
            with contextlib.suppress(Exception):
                self._manager.close()

    def save(
        self,
        step: int,
        state: PyTree,
        *,
        metrics: Mapping[str, float] | None = None,
        notes: Mapping[str, Any] | None = None,
        wait: bool = False,
    ) -> None:
        """Copies `state` off the device and writes it in the background.

        The state may be donated or changed as soon as this returns. A step already written with
        equal arrays is not written again.

        Args:
            step: Number of updates done.
            state: Tree of arrays.
            metrics: Numbers to keep with the arrays; `best_metric` is the name of one of them.
            notes: JSON object to keep with the arrays, which `notes` returns.
            wait: Whether to return only when the checkpoint is on the disk.

        Raises:
            ValueError: If the step is negative.
            TypeError: If `state` has a leaf that is not an array.
            CheckpointError: If this save, or the one before it, failed: no space, an I/O error, or
                another state of this step. Earlier checkpoints are intact.
        """
        if self._read_only:
            raise CheckpointError(f"{self.directory} was opened read_only: nothing can be saved")
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        arrays = named_leaves(state, "state")
        self.wait()
        self._require_space(step, sum(array.nbytes for array in arrays.values()))
        manifest = Manifest.make(step, arrays, metrics or {}, notes)
        if step in self._manager.all_steps():
            self._require_same(step, manifest)
            return
        # Orbax refuses empty arrays; their shape, in the manifest, is all they consist of.
        stored = {name: array for name, array in arrays.items() if array.size}
        self._note_score(step, manifest.metrics)  # before Orbax decides what to keep
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(stored),
                    manifest=ocp.args.JsonSave(manifest.to_json()),
                ),
                force=True,  # Orbax would silently skip a step older than the newest
            )
        except Exception as error:
            raise self._not_written(step, _brief(error)) from error
        self._saving = step
        if wait:
            self.wait()

    def rotate(self) -> None:
        """Deletes the steps that the newest save had to delete.

        It has done so itself, but where the process was killed before it came to it. The newest
        step's own score does not count: it may have come after the save.
        """
        steps = self.steps()
        kept = {*steps[-self._keep :], *self._best.ranked(steps[:-1])[: self._best.count]}
        for step in steps:
            if step not in kept:
                self._manager.delete(step)

    def rate(self, step: int, metrics: Mapping[str, float]) -> None:
        """Gives a step metrics that came after it was saved; `best_metric` then ranks it.

        They are not stored: give them again when the directory is opened.

        Args:
            step: Step of the checkpoint.
            metrics: Numbers; `best_metric` is the name of one of them.
        """
        self._note_score(step, metrics)

    def best(self) -> tuple[int, float] | None:
        """The best step by `best_metric` and its score; None where no step has one."""
        ranked = self._best.ranked(self.steps())
        return (ranked[0], self._best.scores[ranked[0]]) if ranked else None

    def notes(self, step: int) -> dict[str, Any]:
        """The JSON object that a checkpoint keeps beside its arrays; empty where there is none.

        Args:
            step: Step of the checkpoint, which need not exist.
        """
        return self._manifest(step).notes if step in self.steps() else {}

    def restore(
        self,
        target: PyTree,
        *,
        step: int | None = None,
        best: bool = False,
        partial: bool = False,
    ) -> tuple[int, PyTree] | None:
        """Reads the newest sound checkpoint into the structure and shardings of `target`.

        Every array is verified. Damaged steps are passed over with a `CheckpointWarning` and, once
        a sound one has been read, moved to `damaged/`; if none is sound, nothing is moved.

        Args:
            target: Tree of `jax.ShapeDtypeStruct` or of arrays, whose shardings place the result,
                whatever devices the checkpoint came from; without a sharding it is placed on the
                first device.
            step: Step to read; None for the newest.
            best: Whether to read the best step by `best_metric` instead of the newest.
            partial: Whether `target` may lack some of the stored arrays, which are then not read: a
                `State` with `opt_state={}` reads no optimizer.

        Returns:
            The step and the state, or None where there is no checkpoint at all.

        Raises:
            ValueError: If the checkpoint is of another model or optimizer (names, shapes or dtypes
                differ), or `step` and `best` are both given.
            FileNotFoundError: If there is no checkpoint of `step`.
            CheckpointError: If there are checkpoints, but none that can be used.
        """
        self.wait()
        self._manager.reload()
        wanted = named_leaves(target, "target")
        damaged = self._replaced() if step is None and not best else {}
        for candidate in self._candidates(step, best):
            try:
                arrays = self._read(candidate, wanted, partial)
            except _DamageError as damage:
                damaged[candidate] = str(damage)
                continue
            if damaged:
                self._pass_over(damaged, candidate)
            leaves = [arrays[name] for name in wanted]
            return candidate, jax.tree.unflatten(jax.tree.structure(target), leaves)
        if not damaged:
            return None
        reasons = "".join(f"\n  step {at}: {reason}" for at, reason in damaged.items())
        raise CheckpointError(
            f"no usable checkpoint in {self.directory}; nothing was changed:{reasons}\n"
            "Restore the directory from a backup, "
            + ("choose another step, " if step is not None or best else "")
            + "or start afresh in another run directory."
        )

    def _candidates(self, step: int | None, best: bool) -> list[int]:
        steps = self.steps()
        if step is not None and best:
            raise ValueError("give step or best, not both")
        if step is not None:
            if step not in steps:
                raise FileNotFoundError(
                    f"no checkpoint of step {step} in {self.directory}; there are {steps}"
                )
            return [step]
        if not best:
            return steps[::-1]
        if self._best_metric is None:
            raise ValueError("best=True needs Checkpoints(..., best_metric=...)")
        ranked = self._best.ranked(steps)
        if steps and not ranked:
            raise CheckpointError(
                f"no checkpoint in {self.directory} has the metric {self._best_metric!r}: "
                "restore the newest instead"
            )
        return ranked

    def _manifest(self, step: int) -> Manifest:
        try:
            item = ocp.args.Composite(manifest=ocp.args.JsonRestore())
            manifest = Manifest.from_json(self._manager.restore(step, args=item)["manifest"])
        except (PermissionError, CheckpointError):
            raise
        except Exception as error:
            raise _DamageError(f"its manifest cannot be read ({_brief(error)})") from error
        if manifest.step != step:
            raise _DamageError(f"its manifest is that of step {manifest.step}")
        return manifest

    def _read(self, step: int, wanted: Mapping[str, Any], partial: bool) -> dict[str, Array]:
        manifest = self._manifest(step)
        self._require_match(step, manifest.leaves, wanted, partial)
        structs = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding(leaf))
            for name, leaf in wanted.items()
        }
        nonempty = {name: struct for name, struct in structs.items() if struct.size}
        item = ocp.args.PyTreeRestore(
            nonempty,
            restore_args=ocp.checkpoint_utils.construct_restore_args(nonempty),
            partial_restore=True,
        )
        try:
            read = self._manager.restore(step, args=ocp.args.Composite(state=item))["state"]
        except (PermissionError, MemoryError, jax.errors.JaxRuntimeError):
            raise  # a fault of the machine, not of the checkpoint
        except Exception as error:
            raise _DamageError(f"its arrays cannot be read ({_brief(error)})") from error
        arrays = {
            name: read[name]
            if name in nonempty
            else jnp.zeros(struct.shape, struct.dtype, device=struct.sharding)
            for name, struct in structs.items()
        }
        for name, array in arrays.items():
            # Damaged metadata can make Orbax return something else than the requested array.
            if not isinstance(array, jax.Array) or Leaf.of(array) != manifest.leaves[name]:
                raise _DamageError(f"{name} cannot be read")
        for name, value in fingerprints(arrays).items():
            if value != manifest.fingerprints[name]:
                raise _DamageError(f"the values of {name} do not match their checksum")
        return arrays

    def _require_match(
        self, step: int, stored: Mapping[str, Leaf], wanted: Mapping[str, Any], partial: bool
    ) -> None:
        described = {name: Leaf.of(leaf) for name, leaf in wanted.items()}
        names = list(described) + [name for name in stored if name not in described and not partial]
        differing = [name for name in names if stored.get(name) != described.get(name)]
        if not differing:
            return
        lines = [
            f"\n  {name}: {stored.get(name, 'absent')} in the checkpoint, "
            f"{described.get(name, 'absent')} in this run"
            for name in differing[:5]
        ]
        raise ValueError(
            f"checkpoint {step} in {self.directory} is of another model or optimizer: "
            f"{len(differing)} of {len(names)} arrays differ:{''.join(lines)}"
            + ("\n  ..." if len(differing) > len(lines) else "")
            + "\nUse the configuration that made it, or another run directory."
        )

    def _require_same(self, step: int, manifest: Manifest) -> None:
        try:
            same = self._manifest(step).fingerprints == manifest.fingerprints
        except _DamageError:
            same = False
        if not same:
            raise CheckpointError(
                f"{self.directory} already holds another checkpoint of step {step}: "
                "move it away, or use another run directory"
            )

    def _require_space(self, step: int, size: int) -> None:
        free, needed = shutil.disk_usage(self.directory).free, size + _SPACE_MARGIN
        if free < needed:
            raise self._not_written(
                step, f"it needs {needed / 2**20:.0f} MiB and {free / 2**20:.0f} MiB are free"
            )

    def _not_written(self, step: int, reason: str) -> CheckpointError:
        return CheckpointError(
            f"could not write checkpoint {step} to {self.directory}: {reason}. "
            f"Earlier checkpoints are intact: {self.steps() or 'none yet'}. Free some space or "
            "repair the disk, then start again: the run resumes from the newest."
        )

    def _note_score(self, step: int, metrics: Mapping[str, float]) -> None:
        self._best.scores.pop(step, None)  # of a save that failed
        score = metrics.get(self._best_metric or "", math.nan)
        if math.isfinite(score):
            self._best.scores[step] = score

    def _replaced(self) -> dict[int, str]:
        """Steps in whose place something else stands, of which Orbax says nothing."""
        places = self.directory.iterdir() if self.directory.is_dir() else ()
        names = [path.name for path in places if not path.is_dir()]
        return {int(n): "it is no directory" for n in names if n.isdecimal() and n == str(int(n))}

    def _pass_over(self, damaged: Mapping[int, str], used: int) -> None:
        for step, reason in damaged.items():
            where = "left where it is" if self._read_only else f"moved to {self._set_aside(step)}"
            message = f"checkpoint {step} is damaged: {reason}; {where}; using step {used} instead"
            warnings.warn(message, CheckpointWarning, stacklevel=3)
        if not self._read_only:
            multihost_utils.sync_global_devices("jaxgen: damaged checkpoints moved")
            self._manager.reload()

    def _set_aside(self, step: int) -> Path:
        attempt = 0
        while (place := self.directory / _DAMAGED / f"{step}-{attempt}").exists():
            attempt += 1
        if jax.process_index() == 0:
            place.parent.mkdir(exist_ok=True)
            (self.directory / str(step)).rename(place)
        return place


def _sharding(leaf: Any) -> jax.sharding.Sharding:
    return leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
