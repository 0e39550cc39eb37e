"""Where `sample` writes what it draws: what is named, or the next number in the run's directory."""

import re
from pathlib import Path

import numpy as np

from jaxgen.training.experiment import Medium
from jaxgen.training.images import check_empty, check_output, save_each, save_png, save_samples

DRAWN = "drawn"
"""The subdirectory of a run for what is drawn of it without `--out`."""


def check(out: Path | None, run_dir: Path, medium: Medium) -> None:
    """Checks that samples can be written, before they are computed.

    Args:
        out: File or new directory that is asked for; None for the run's own.
        run_dir: Directory of the run.
        medium: Kind of the samples.

    Raises:
        ValueError: If the file's suffix is not one that the samples have.
        FileExistsError: If it exists, or the directory is not empty.
        PermissionError: If it cannot be written.
    """
    suffix = _suffix(medium)
    out = _numbered(run_dir, "samples", suffix) if out is None else out
    if _is_directory(out, medium):
        check_empty(out)
        return
    check_output(out, accepted=tuple(dict.fromkeys((suffix, ".npz"))))
    if suffix not in (".png", ".npz") and out.suffix.lower() == suffix:
        check_output(out.with_suffix(".png"))


def write(
    out: Path | None,
    run_dir: Path,
    name: str,
    samples: np.ndarray,
    columns: int | None,
    medium: Medium,
) -> Path:
    """Writes samples at rest, as they are or as the medium shows them; returns where.

    Args:
        out: File, or directory for a .png of each image; None for the next number in the run's own.
        run_dir: Directory of the run.
        name: Name of what is drawn, such as "samples".
        samples: Samples at rest.
        columns: Number of samples in a row of their picture; None for the medium's own.
        medium: Kind of the samples.

    Raises:
        FileExistsError: If the file was written by another command since it was checked.
    """
    out = _numbered(run_dir, name, _suffix(medium)) if out is None else out
    if _is_directory(out, medium):
        save_each(out, samples)
    elif out.suffix.lower() == ".npz" or medium.picture is None:
        save_samples(out, samples)
    else:
        if medium.save is not None:
            medium.save(out, samples)
        is_picture = out.suffix.lower() == ".png"  # or .PNG, as it is named
        picture = medium.picture(samples, columns)
        save_png(out if is_picture else out.with_suffix(".png"), picture)
    return out


def _suffix(medium: Medium) -> str:
    return medium.suffix or (".npz" if medium.picture is None else ".png")


def _numbered(run_dir: Path, name: str, suffix: str) -> Path:
    """The first free name after all that are taken, whatever their suffix."""
    taken = [0]
    for path in (run_dir / DRAWN).glob(f"{name}_*"):
        if match := re.fullmatch(rf"{re.escape(name)}_(\d+)", path.stem):
            taken.append(int(match[1]))
    return run_dir / DRAWN / f"{name}_{max(taken) + 1:03d}{suffix}"


def _is_directory(out: Path, medium: Medium) -> bool:
    """Whether samples go into a directory, one by one: of images, and where no file is named."""
    return medium.unit == "images" and (not out.suffix or out.is_dir())
