"""How a very deep VAE's blocks are written, and the stages that they make.

The authors' words (Child 2021), blocks with commas between them, from the first to the last:

    32x11    eleven blocks at 32x32 pixels (`32` alone is one)
    32d2     of an encoder: a block at 32x32, then the mean of each 2x2 pixels
    32m16    of a decoder: a block at 32x32, to whose input that of 16x16 is added, enlarged
"""

import re
from collections.abc import Iterator
from typing import NamedTuple


class EncoderStage(NamedTuple):
    """The blocks of an encoder at one resolution.

    Attributes:
        resolution: Height and width of their images.
        num_blocks: Number of blocks, without one that ends in a smaller resolution.
        down: Factor by which one more block makes the image smaller; None for no such block.
    """

    resolution: int
    num_blocks: int
    down: int | None = None


class DecoderStage(NamedTuple):
    """The blocks of a decoder at one resolution.

    Attributes:
        resolution: Height and width of their images.
        num_blocks: Number of blocks.
        mixin: Resolution whose result is enlarged and added before the first block; None for none.
    """

    resolution: int
    num_blocks: int
    mixin: int | None = None


def encoder_stages(blocks: str) -> tuple[EncoderStage, ...]:
    """The stages of an encoder.

    Args:
        blocks: Blocks as the authors write them, from the image on: "32x11,32d2,16x6".

    Raises:
        ValueError: If the text is of another form, or a block is at another resolution than the
            one before it leaves; says which.

    Examples:
        >>> encoder_stages("8x2,8d2,4")
        (EncoderStage(resolution=8, num_blocks=2, down=2), EncoderStage(resolution=4, ...))
    """
    stages: list[EncoderStage] = []
    for token, resolution, kind, number in _tokens("encoder_blocks", blocks, "d"):
        last = stages[-1] if stages else EncoderStage(resolution, 0)
        expected = last.resolution // (last.down or 1)
        if resolution != expected:
            raise ValueError(
                f"encoder_blocks must go on at {expected}x{expected} pixels, where the block "
                f"before {token!r} ends, got {blocks!r}"
            )
        if not stages or last.down is not None:
            stages.append(EncoderStage(resolution, 0))
        if kind == "x":
            stages[-1] = stages[-1]._replace(num_blocks=stages[-1].num_blocks + number)
        elif number < 2 or resolution % number:
            raise ValueError(
                f"encoder_blocks must divide {resolution} by a factor of it, at least 2, got "
                f"{token!r} in {blocks!r}"
            )
        else:
            stages[-1] = stages[-1]._replace(down=number)
    return tuple(stages)


def decoder_stages(blocks: str) -> tuple[DecoderStage, ...]:
    """The stages of a decoder.

    Args:
        blocks: Blocks as the authors write them, up to the image: "1x1,4m1,4x2,8m4".

    Raises:
        ValueError: If the text is of another form, resolutions fall, or one does not begin with
            what it takes of a smaller one that divides it; says which.

    Examples:
        >>> decoder_stages("1x1,4m1,4x2")
        (DecoderStage(resolution=1, num_blocks=1, mixin=None), DecoderStage(resolution=4, ...))
    """
    stages: list[DecoderStage] = []
    for token, resolution, kind, number in _tokens("decoder_blocks", blocks, "m"):
        count = number if kind == "x" else 1
        if stages and resolution == stages[-1].resolution and kind == "x":
            stages[-1] = stages[-1]._replace(num_blocks=stages[-1].num_blocks + count)
            continue
        before = [stage.resolution for stage in stages]
        first = not stages and kind == "x"
        grows = kind == "m" and number in before and resolution > before[-1]
        if not first and not (grows and resolution % number == 0):
            example = f"{2 * before[-1]}m{before[-1]}" if before else "1x1"
            raise ValueError(
                f"decoder_blocks must begin each further resolution with what it takes of a "
                f"smaller one before it that divides it, such as {example}, got {token!r} in "
                f"{blocks!r}"
            )
        stages.append(DecoderStage(resolution, count, None if first else number))
    return tuple(stages)


def _tokens(name: str, blocks: str, letter: str) -> Iterator[tuple[str, int, str, int]]:
    """(text, resolution, "x" or the letter, number) of each block, or ValueError."""
    for token in blocks.split(","):
        match = re.fullmatch(rf"\s*(\d+)(?:([x{letter}])(\d+))?\s*", token)
        resolution, number = (int(match[1]), int(match[3] or 1)) if match else (0, 0)
        if match is None or min(resolution, number) < 1:
            raise ValueError(
                f"{name} must be blocks like 8x2 or {'8d2' if letter == 'd' else '8m4'}, with "
                f"commas between them, got {token!r} in {blocks!r}"
            )
        yield token, resolution, match[2] or "x", number
