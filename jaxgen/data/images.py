"""Image files to uint8 arrays, and folders of them as a source."""

import contextlib
import functools
import io
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np
from PIL import Image, ImageOps

from jaxgen.checks import check_memory
from jaxgen.data.folders import content_digest, digest_of, files_in, find_split, split_by_name

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Of all that Pillow reads: a PostScript file by the name a.png would be run by Ghostscript.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_GRAY_MODES = ("1", "L", "LA")
_DEEP_MODES = ("F", "I", "I;16", "I;16B", "I;16L")
_DEEP = re.compile(r"(?!BGR)\w+;(16|32)")  # how Pillow is to read 16 bits a channel; BGR;16 is 565
_BACKGROUND = (255, 255, 255, 255)
_ORIENTATION = 274  # the tag of EXIF, and what turns each of its values upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

Resize = int | tuple[int, int] | None
Spec = Mapping[str, tuple[tuple[int, ...], np.dtype]]


def image_spec(shape: tuple[int, ...], labelled: bool) -> Spec:
    """The `spec` of a source of images, with or without labels."""
    spec: dict[str, tuple[tuple[int, ...], np.dtype]] = {"image": (shape, np.dtype(np.uint8))}
    return {**spec, "label": ((), np.dtype(np.int32))} if labelled else spec


def target_size(resize: Resize) -> tuple[int, int] | None:
    """The (height, width) of a `resize` argument, or None.

    Raises:
        ValueError: A size below 1.
    """
    if resize is None:
        return None
    height, width = (resize, resize) if isinstance(resize, int) else resize
    if height < 1 or width < 1:
        raise ValueError(f"resize must be a size or (height, width) of at least 1, got {resize}")
    return height, width


def empty_images(num: int, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 [num, *shape], not filled.

    Raises:
        ValueError: If the machine has not that much memory.
    """
    size = "x".join(map(str, shape))
    check_memory(f"a batch of {num} images of {size}", num * math.prod(shape))
    return np.empty((num, *shape), np.uint8)


def fit_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 1 or 3], center-cropped to the proportions of `size` and resized (Lanczos)."""
    height, width = size
    pixels = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    fitted = ImageOps.fit(pixels, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(fitted).reshape(height, width, image.shape[2])


def decode_image(
    file: Path | io.BytesIO, shape: tuple[int, int, int], name: str, *, resize: bool
) -> np.ndarray:
    """Decodes one image to a given shape, as a viewer shows it.

    An EXIF orientation is applied, and what is transparent is composited on white, unless the
    result has an alpha channel. Of an animation it is the first picture; color profiles are not
    applied.

    Args:
        file: Path of the image file, or its bytes: BMP, GIF, JPEG, PNG, PPM, TIFF or WebP.
        shape: Shape (height, width, channels) of the result, with 1, 3 or 4 channels.
        name: Name of the image in error messages.
        resize: Whether to crop the center to the shape's proportions and resize it (Lanczos).
            Otherwise the image must have the shape's height and width.

    Returns:
        uint8 [height, width, channels].

    Raises:
        ValueError: A broken image, one of more than 8 bits a channel, or one of another size; names
            the image.
    """
    height, width, channels = shape
    try:
        with _opened(file) as opened:
            _check_depth(opened)
            image = _as_shown(opened, _MODES[channels])
            if resize and image.size != (width, height):
                image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
            array = np.asarray(image)
    except _BROKEN as error:
        raise ValueError(f"cannot decode the image {name}: {error}") from error
    if array.shape[:2] != (height, width):
        raise ValueError(
            f"the image {name} is {array.shape[0]}x{array.shape[1]} (height x width), not "
            f"{height}x{width} as the others; give resize= to crop and resize all to one size"
        )
    return array.reshape(shape)


class FolderSource:
    """Images of one folder, decoded when they are indexed; the result of `folder`."""

    def __init__(
        self,
        root: Path,
        files: Sequence[Path],
        shape: tuple[int, int, int],
        *,
        resize: bool,
        on_white: bool,
        labels: np.ndarray | None,
        class_names: tuple[str, ...],
        split: str,
        part_of: int | None,
    ):
        self.root = root
        self.files = list(files)
        self.shape = shape
        self.resize = resize
        self.labels = labels
        self.class_names = class_names
        self.num_classes = len(class_names) or None
        self.name = "folder"  # and not its own, which may change without a change of the images
        self.split = split
        size = preprocessing(shape, resize=resize, on_white=on_white)
        how = "" if part_of is None else f" of {part_of}, by a hash of their names"
        self._line = f"folder of images, split {split} ({len(files)} images{how}), {size}"

    @property
    def spec(self) -> Spec:
        return image_spec(self.shape, self.labels is not None)

    @functools.cached_property
    def digest(self) -> str:
        labels = None if self.labels is None else self.labels.tolist()
        return digest_of(self.class_names, labels, content_digest(self.files))

    @property
    def protocol(self) -> str:
        return f"{self._line}, content {self.digest}"

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = {"image": empty_images(len(indices), self.shape)}
        for row, index in zip(batch["image"], indices, strict=True):
            file = self.files[index]
            row[:] = decode_image(file, self.shape, str(file), resize=self.resize)
        if self.labels is not None:
            batch["label"] = self.labels[indices]
        return batch


def folder(
    path: str | Path,
    split: str | None = None,
    *,
    resize: Resize = None,
    class_names: Sequence[str] | None = None,
    held_out: float = 0.05,
) -> FolderSource:
    """The images of a folder and of all its subfolders, in the order of their names.

    The `label` of an image below a subfolder is the index of that subfolder among the sorted names
    of the subfolders, one for each class. Images in the folder itself have no label. Hidden files
    and folders do not count (`jaxgen.data.folders.files_in`). The source's images have one channel
    if all files are gray, otherwise three (RGB), as `decode_image` gives them. Captions and
    attributes beside the images are read by `jaxgen.data.metadata.captioned_folder`.

    A folder without a subfolder of the split's name is split itself: some images are held out,
    chosen by a hash of their names (paths within the folder), so that another run or machine has
    the same split.

    Args:
        path: Folder of the images.
        split: Subfolder to read instead of the folder ("train", say); where it has none of the
            usual names, "train", "test" (the images held out) or "all"; None for the folder itself.
        resize: Size, or (height, width), to which every image is center-cropped and resized; None
            requires that all images have one size.
        class_names: Names of the classes in the order of their labels, those of the training
            images, say; a class may have no image here. None for the names of the subfolders.
        held_out: Share of the images, roughly, that are held out where the folder is split itself.

    Returns:
        The source. Headers of all files are read here, pixels when they are indexed.

    Raises:
        FileNotFoundError: No such folder, or no image in it.
        ValueError: An image that is broken, has more than 8 bits a channel, or another size than
            the first; images both in the folder and in subfolders; a subfolder that is not among
            the classes; one image alone, of which none can be held out; a size below 1.
    """
    size = target_size(resize)
    root, part = find_split(Path(path), split, "images")
    files = files_in(root, SUFFIXES)
    if not files:
        raise FileNotFoundError(f"no images ({', '.join(SUFFIXES)}) in {root} or its subfolders")
    names, labels = _classes(root, files, class_names)
    total = len(files)
    if part is not None:
        relative = [file.relative_to(root).as_posix() for file in files]
        rows = split_by_name(relative, part, held_out)
        files = [files[row] for row in rows]
        labels = None if labels is None else labels[rows]
    with ThreadPoolExecutor() as pool:
        read = functools.partial(read_header, need_size=size is None)
        headers = list(pool.map(read, files, map(str, files)))
    shape, on_white = common_shape(list(map(str, files)), headers, size)
    return FolderSource(
        root,
        files,
        shape,
        resize=size is not None,
        on_white=on_white,
        labels=labels,
        class_names=names,
        split=split or "all",
        part_of=None if part is None else total,
    )


def _classes(
    root: Path, files: Sequence[Path], class_names: Sequence[str] | None
) -> tuple[tuple[str, ...], np.ndarray | None]:
    """The classes' names and the files' labels, by the subfolders; none where there are none."""
    tops = [file.relative_to(root).parts[:-1][:1] for file in files]
    classes = sorted({top[0] for top in tops if top})
    if not classes:
        return (), None
    if () in tops:
        raise ValueError(
            f"{root} holds images ({files[tops.index(())].name}, ...) and also folders of images "
            f"({', '.join(classes)}): put every image into a folder of its class, or none"
        )
    names = tuple(classes if class_names is None else class_names)
    if unknown := [name for name in classes if name not in names]:
        raise ValueError(
            f"{root} has images of the class {unknown[0]}, and the classes are {', '.join(names)}"
        )
    index = {name: i for i, name in enumerate(names)}
    return names, np.asarray([index[top[0]] for top in tops], np.int32)


class Header(NamedTuple):
    """What is known of an image before it is decoded.

    Attributes:
        size: Height and width of the upright image.
        is_gray: Whether it has no colours.
        is_transparent: Whether some of it may be transparent.
    """

    size: tuple[int, int]
    is_gray: bool
    is_transparent: bool


def common_shape(
    names: Sequence[str], headers: Sequence[Header], size: tuple[int, int] | None
) -> tuple[tuple[int, int, int], bool]:
    """The shape that all images of a source get, and whether some are composited on white.

    Args:
        names: Names of the images in error messages.
        headers: Their headers.
        size: Height and width to which all are resized, or None.

    Raises:
        ValueError: An image of another size than the first and no `size`; names both.
    """
    sizes = [size or header.size for header in headers]
    for name, (height, width) in zip(names, sizes, strict=True):
        if (height, width) != sizes[0]:
            raise ValueError(
                f"the image {name} is {height}x{width} (height x width), and {names[0]} is "
                f"{sizes[0][0]}x{sizes[0][1]}; give resize= (--data.resize) to crop and resize all "
                "to one size"
            )
    channels = 1 if all(header.is_gray for header in headers) else 3
    return (*sizes[0], channels), any(header.is_transparent for header in headers)


def preprocessing(shape: tuple[int, int, int], *, resize: bool, on_white: bool) -> str:
    """What is done to the images of a source, in words of its protocol."""
    size = f"center-cropped and resized to {shape[0]}x{shape[1]}" if resize else "as they are"
    return size + (", what is transparent on white" if on_white else "")


@contextlib.contextmanager
def _opened(file: Path | io.BufferedIOBase) -> Iterator[Image.Image]:
    with contextlib.ExitStack() as stack:
        # As a stream: of a path Pillow maps the pixels of a turned TIFF by the wrong size.
        stream = stack.enter_context(file.open("rb")) if isinstance(file, Path) else file
        yield stack.enter_context(Image.open(cast(IO[bytes], stream), formats=_FORMATS))


def read_header(file: Path | io.BufferedIOBase, name: str, *, need_size: bool) -> Header:
    """What is known of an image without decoding it.

    Args:
        file: Path of the image file, or an open one.
        name: Name of the image in error messages.
        need_size: Whether its upright size matters; an image may be decoded for it.

    Raises:
        ValueError: An image that is broken, or has more than 8 bits a channel; names it.
    """
    try:
        with _opened(file) as image:
            _check_depth(image)
            width, height = image.size
            # A PNG is decoded for its orientation, which may stand at its end. Of TIFF files
            # Pillow gives the upright size.
            turned = need_size and width != height and image.format != "TIFF"
            if turned and _orientation(image) in (5, 6, 7, 8):
                width, height = height, width
            gray = image.mode in _GRAY_MODES
            return Header((height, width), gray, image.has_transparency_data)
    except _BROKEN as error:
        raise ValueError(f"cannot read the image {name}: {error}") from error


def _check_depth(image: Image.Image) -> None:
    """Raises a ValueError for more than 8 bits a channel; Pillow would drop the lower ones."""
    deep = image.mode in _DEEP_MODES
    for tile in getattr(image, "tile", ()):
        raw, *more = (tile.args,) if isinstance(tile.args, str) else tile.args or ("",)
        deep |= isinstance(raw, str) and _DEEP.match(raw) is not None
        deep |= tile.codec_name.startswith("ppm") and bool(more) and more[0] > 255
    if deep:
        raise ValueError(
            f"it has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits a channel"
        )


def _as_shown(image: Image.Image, mode: str) -> Image.Image:
    """A copy in a mode, upright, on white where it is transparent and the mode has no alpha."""
    image.load()
    if (turn := _TURNS.get(_orientation(image))) is not None:
        image = image.transpose(turn)
    if mode != "RGBA" and image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, _BACKGROUND)
        canvas.alpha_composite(image.convert("RGBA"))
        image = canvas
    return image.convert(mode)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none that can be read."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except (KeyError, SyntaxError, TypeError, ValueError, struct.error):
        return 1
