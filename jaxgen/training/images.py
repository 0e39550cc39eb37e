"""Image grids and sample files: uint8 in, PNG or NPZ out."""

import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from jaxgen.checks import check_memory
from jaxgen.files import open_atomically

SUFFIXES = {
    ".png": "a grid of the samples",
    ".npz": "the samples, key `samples`: uint8 [N, H, W, C] of images",
    ".wav": "the samples, and a picture of their spectrograms in a .png file beside it",
    ".json": "numbers and their protocol",
    ".safetensors": "weights",
    ".md": "a table and its protocol",
}
_READABLE = 64  # smaller images are enlarged to at least this many pixels
_BACKGROUND = 255
_PADDING = 2  # pixels between images
_LETTERS, _LINE = 14, 20  # heights of letters and of their lines, pixels
_MARGIN = 150  # pixels of words beside a row; wider ones stand above


def grid(
    images: np.ndarray,
    columns: int | None = None,
    padding: int = _PADDING,
    scale: int | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """Lays images out in rows, left to right, on white.

    Args:
        images: Images, uint8 [N, H, W, C], with C = 1 (grey) or 3.
        columns: Number of images in a row; by default the grid is about square.
        padding: Number of pixels between the images and around them.
        scale: Factor by which each image is enlarged; by default the least at which the longer side
            has 64 pixels, so that 8x8 digits are legible.

    Returns:
        One RGB image of `rows * (H scale + padding) + padding` by
        `columns * (W scale + padding) + padding` pixels.

    Raises:
        TypeError: If `images` is not a uint8 array.
        ValueError: If `images` is empty or of another shape, a number is out of range, or the grid
            is beyond the machine's memory.

    Examples:
        >>> grid(np.zeros((10, 8, 8, 1), np.uint8)).shape
        (200, 266, 3)
    """
    _check_images(images)
    count, height, width, _ = images.shape
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    scale = max(1, math.ceil(_READABLE / max(height, width))) if scale is None else scale
    for name, value, least in (
        ("columns", columns, 1),
        ("padding", padding, 0),
        ("scale", scale, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    rows = math.ceil(count / columns)
    pixels = (height * scale + padding) * (width * scale + padding)
    check_memory(f"a grid of {rows} rows and {columns} columns", 3 * rows * columns * pixels)
    tiles = np.full((rows * columns, height, width, 3), _BACKGROUND, np.uint8)
    tiles[:count] = images
    tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    # Each tile carries its padding on the right and below; the canvas adds the first.
    tiles = np.pad(tiles, ((0, 0), (0, padding), (0, padding), (0, 0)), constant_values=_BACKGROUND)
    tiles = tiles.reshape(rows, columns, *tiles.shape[1:]).swapaxes(1, 2)
    canvas = tiles.reshape(rows * tiles.shape[1], columns * tiles.shape[3], 3)
    return np.pad(canvas, ((padding, 0), (padding, 0), (0, 0)), constant_values=_BACKGROUND)


def labelled_grid(
    images: np.ndarray,
    columns: int | None = None,
    *,
    rows: Sequence[str] = (),
    heads: Sequence[str] = (),
    title: str = "",
) -> UInt8[np.ndarray, "height width 3"]:
    """A grid with words beside its rows, above its columns and at its top, on white.

    Words that are too wide for the margin stand above their rows; what is too wide there too ends
    in an ellipsis.

    Args:
        images: Images, uint8 [N, H, W, C], row by row.
        columns: Number of images in a row; by default the grid is about square.
        rows: What each row shows, or () for no words; further rows have none.
        heads: What each column shows, or ().
        title: What the grid shows, or "".

    Raises:
        ValueError: As `grid`, or more words than rows or columns.
        TypeError: As `grid`.

    Examples:
        >>> labelled_grid(np.zeros((4, 64, 64, 1), np.uint8), 2, title="Zeros").shape
        (154, 134, 3)
    """
    _check_images(images)
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    tiles = grid(images, columns)
    num_rows = math.ceil(len(images) / columns)
    if len(rows) > num_rows or len(heads) > columns:
        raise ValueError(
            f"rows and heads must be at most {num_rows} and {columns}, got {len(rows)} and "
            f"{len(heads)}"
        )
    widest = max((_font().getlength(word) for word in rows), default=0)
    height = (len(tiles) - _PADDING) // num_rows
    if widest > _MARGIN or height < _LINE:
        parts = [tiles[:_PADDING]]
        for index in range(num_rows):
            begin = _PADDING + index * height
            word = rows[index] if index < len(rows) else ""
            parts += [_strip(word, tiles.shape[1]), tiles[begin : begin + height]]
        canvas, left = np.concatenate(parts), 0
    else:
        left = math.ceil(widest) + 2 * _PADDING if rows else 0
        canvas = np.pad(tiles, ((0, 0), (left, 0), (0, 0)), constant_values=_BACKGROUND)
        top = _PADDING + (height - _PADDING - _LINE) // 2
        for index, word in enumerate(rows):
            begin = top + index * height
            canvas[begin : begin + _LINE, :left] = _strip(word, left)
    if heads:
        width = (tiles.shape[1] - _PADDING) // columns
        strips = [_strip(word, width, centred=True) for word in heads]
        strips.append(_strip("", canvas.shape[1] - left - width * len(heads)))
        canvas = np.concatenate([np.concatenate([_strip("", left), *strips], axis=1), canvas])
    return np.concatenate([_strip(title, canvas.shape[1]), canvas]) if title else canvas


@functools.cache
def _font() -> Any:
    return ImageFont.load_default(_LETTERS)


def _strip(text: str, width: int, *, centred: bool = False) -> np.ndarray:
    """A line of text, uint8 [_LINE, width, 3], cut to its width."""
    if not text or not width:
        return np.full((_LINE, width, 3), _BACKGROUND, np.uint8)
    strip = Image.new("RGB", (width, _LINE), "white")
    room, short = width - 2 * _PADDING, text
    while _font().getlength(short) > room and len(short) > 1:
        short = short[:-2].rstrip("…") + "…"
    left = (width - _font().getlength(short)) // 2 if centred else _PADDING
    ImageDraw.Draw(strip).text((left, 2), short, fill="black", font=_font())
    return np.asarray(strip)


def save_png(path: str | Path, image: np.ndarray, *, overwrite: bool = False) -> None:
    """Writes one image as a PNG file, whole or not at all; parent directories are created.

    Args:
        path: Path of the file, which ends in `.png`.
        image: Image, uint8 [H, W, C], with C = 1 (grey) or 3.
        overwrite: Whether to replace an existing file.

    Raises:
        TypeError: If `image` is not a uint8 array.
        ValueError: If `image` is empty or of another shape, or `path` has another suffix.
        FileExistsError: If `path` exists.
    """
    check_output(path, overwrite=overwrite, accepted=(".png",))
    if not isinstance(image, np.ndarray) or image.ndim != 3:
        raise ValueError(f"image must be an array [H, W, C], got {_describe(image)}")
    _check_images(image[None], name="image")
    squeezed = image[:, :, 0] if image.shape[2] == 1 else image
    with open_atomically(path) as file:
        Image.fromarray(np.ascontiguousarray(squeezed)).save(file, format="PNG")


def is_whole_png(path: str | Path) -> bool:
    """Whether a file is there and can be read to its end as a PNG picture.

    Args:
        path: Path of the file.
    """
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            picture.verify()  # the checksum of every part, to the mark of the end
    except (OSError, SyntaxError, ValueError):  # Pillow raises any of them for damaged files
        return False
    return True


def save_samples(
    path: str | Path,
    images: np.ndarray,
    *,
    columns: int | None = None,
    overwrite: bool = False,
) -> None:
    """Writes samples in the form that the suffix of `path` chooses: `.png`, a grid; `.npz`, arrays.

    Args:
        path: Path of the file; parent directories are created.
        images: Samples, uint8 [N, H, W, C]; for an `.npz` file any array [N, ...].
        columns: Number of images in a row of the grid; by default the grid is about square.
        overwrite: Whether to replace an existing file.

    Raises:
        TypeError: If the images of a grid are not a uint8 array.
        ValueError: If the samples are empty or of another shape, or `path` has another suffix.
        FileExistsError: If `path` exists.
    """
    check_output(path, overwrite=overwrite)
    if Path(path).suffix.lower() == ".png":
        save_png(path, grid(images, columns), overwrite=overwrite)
        return
    if not isinstance(images, np.ndarray) or not images.size:
        raise ValueError(f"images must be an array with nothing empty, got {_describe(images)}")
    with open_atomically(path) as file:
        np.savez(file, samples=images)


def save_each(directory: str | Path, images: np.ndarray) -> None:
    """Writes each image as a PNG file of its own: 00000.png, 00001.png and so on.

    Args:
        directory: Directory of the files, which is created; it must be empty.
        images: Images, uint8 [N, H, W, C], with C = 1 (grey) or 3.

    Raises:
        TypeError: If `images` is not a uint8 array.
        ValueError: If `images` is empty or of another shape.
        FileExistsError: If the directory is not empty, or is a file.
        PermissionError: If it cannot be created or written.
    """
    check_empty(directory)
    _check_images(images)
    for index, image in enumerate(images):
        save_png(Path(directory) / f"{index:05d}.png", image)


def check_empty(directory: str | Path) -> None:
    """Checks that a directory can be filled, before what is to be in it is computed.

    Args:
        directory: Directory, which need not exist.

    Raises:
        FileExistsError: If it is not empty, or is a file.
        PermissionError: If it cannot be created or written.
    """
    path = Path(directory)
    if path.is_dir() and any(path.iterdir()):
        raise FileExistsError(f"{path} is not empty and nothing is overwritten: name another")
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file: name a directory")
    _check_writable(path, path.absolute() / "file")


def check_output(
    path: str | Path, *, overwrite: bool = False, accepted: tuple[str, ...] = (".png", ".npz")
) -> None:
    """Checks that samples can be written to a path, before they are computed.

    Args:
        path: Path of the output file.
        overwrite: Whether an existing file may be replaced.
        accepted: Suffixes that are accepted.

    Raises:
        ValueError: If the suffix is not among the accepted ones.
        FileExistsError: If `path` exists and must not be replaced, or is a directory.
        PermissionError: If its directory is not writable.
    """
    path = Path(path)
    if path.suffix.lower() not in accepted:
        choices = "; ".join(f"{suffix} ({SUFFIXES[suffix]})" for suffix in accepted)
        raise ValueError(f"the output file must end in {choices}; got {path}")
    if path.is_dir():
        raise FileExistsError(f"{path} is a directory: name a file")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists and is not overwritten: name another file")
    _check_writable(path, path.absolute())


def _check_writable(path: Path, file: Path) -> None:
    nearest = next(parent for parent in file.parents if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise PermissionError(f"{path} cannot be created: {nearest} is no writable directory")


def _check_images(images: np.ndarray, name: str = "images") -> None:
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        raise TypeError(f"{name} must be a uint8 NumPy array, got {_describe(images)}")
    if images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size:
        shape = "[N, H, W, C]" if name == "images" else "[H, W, C]"
        raise ValueError(
            f"{name} must be {shape} with C of 1 or 3 and nothing empty, got {_describe(images)}"
        )


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return type(value).__name__
