"""The words in which blocks of very deep VAEs are written, and those that are none."""

import pytest

from jaxgen.models.blocks.vdvae_stages import (
    DecoderStage,
    EncoderStage,
    decoder_stages,
    encoder_stages,
)


def test_stages():
    assert encoder_stages(" 8x2, 8 ,8d2,4x1,4d4") == (EncoderStage(8, 3, 2), EncoderStage(4, 1, 4))
    assert encoder_stages("8d2,4d2") == (EncoderStage(8, 0, 2), EncoderStage(4, 0, 2))
    assert decoder_stages("1,1x2,4m1,4x2,8m1") == (
        DecoderStage(1, 3),
        DecoderStage(4, 3, 1),
        DecoderStage(8, 1, 1),
    )


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ("", "must be blocks like 8x2 or 8d2, with commas between them, got ''"),
        ("8x2;4", "got '8x2;4'"),
        ("8x2,8m4", "got '8m4' in '8x2,8m4'"),
        ("8x0", "got '8x0'"),
        ("8x2,4x2", "must go on at 8x8 pixels, where the block before '4x2' ends"),
        ("8x2,8d2,8x1", "must go on at 4x4 pixels"),
        ("8x2,8d3", "must divide 8 by a factor of it, at least 2, got '8d3'"),
        ("8x2,8d1", "must divide 8 by a factor"),
    ],
)
def test_encoders_that_are_none(blocks, message):
    with pytest.raises(ValueError, match=f"encoder_blocks .*{message}"):
        encoder_stages(blocks)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ("1x1,4d2", "must be blocks like 8x2 or 8m4, .* got '4d2'"),
        ("1x1,4x2", "such as 2m1, got '4x2'"),
        ("4m1", "such as 1x1, got '4m1'"),
        ("1x1,4m2", "got '4m2'"),
        ("2x1,3m2", "got '3m2'"),
        ("1x1,4m1,2m1", "got '2m1'"),
    ],
)
def test_decoders_that_are_none(blocks, message):
    with pytest.raises(ValueError, match=f"decoder_blocks .*{message}"):
        decoder_stages(blocks)
