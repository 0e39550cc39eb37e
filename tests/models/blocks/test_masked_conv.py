"""Causal convolutions over images: what they see, position by position, and their initial scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.blocks.masked_conv import (
    At,
    DownRightShiftedConv,
    DownRightShiftedConvTranspose,
    DownShiftedConv,
    DownShiftedConvTranspose,
    MaskedConv,
    channel_mask,
    shift_down,
    shift_right,
)

HEIGHT, WIDTH, CHANNELS = 6, 8, 2
BY_PIXEL = {
    "masked 3x3": MaskedConv(4, (3, 3), num_groups=2),
    "masked 5x5 A": MaskedConv(4, (5, 5), kind="A"),
    "masked 1x5": MaskedConv(4, (1, 5), weight_norm=True),
    "masked 1x1": MaskedConv(4, num_groups=2),
    "right 2x2": DownRightShiftedConv(4, (2, 2), weight_norm=True),
    "right 2x1": DownRightShiftedConv(4, (2, 1), use_bias=False),
    "right 2x2 / 2": DownRightShiftedConv(4, (2, 2), strides=2),
}
BY_ROW = {
    "down 2x3": DownShiftedConv(4, (2, 3), weight_norm=True),
    "down 3x5": DownShiftedConv(4, (3, 5)),
    "down 1x3": DownShiftedConv(4, (1, 3)),
    "down 2x3 / 2": DownShiftedConv(4, (2, 3), strides=2),
}
BACK = {
    "pixel": DownRightShiftedConvTranspose(4, weight_norm=True),
    "row": DownShiftedConvTranspose(4),
}


def images(seed=0, channels=CHANNELS):
    return jax.random.normal(jax.random.key(seed), (3, HEIGHT, WIDTH, channels))


def test_channel_mask_by_hand():
    mask = channel_mask((2, 3), 2, 4, "A", 2)
    assert mask[0].all()  # the row above
    assert mask[1, 0].all()  # left
    assert not mask[1, 2].any()  # right
    # Of the pixel itself, group 1 (features 1 and 3) sees group 0 (channel 0).
    np.testing.assert_array_equal(mask[1, 1], [[0, 1, 0, 1], [0, 0, 0, 0]])
    np.testing.assert_array_equal(
        channel_mask((2, 3), 2, 4, "B", 2)[1, 1], [[1, 1, 1, 1], [0, 1, 0, 1]]
    )
    np.testing.assert_array_equal(channel_mask((1, 2), 1, 1, "A")[0, :, 0, 0], [1, 0])
    # Two parts of three features: features 0, 2, 3 and 5 are of group 0.
    np.testing.assert_array_equal(
        channel_mask((1, 1), 2, 6, "B", 2, 2)[0, 0, 1], [0, 1, 0, 0, 1, 0]
    )


@pytest.mark.parametrize("name", [*BY_PIXEL, *BY_ROW])
def test_sees_the_past_alone_and_all_of_its_window(name, key):
    """The rows and columns that change an output, to the bit, against the window by hand."""
    layer = {**BY_PIXEL, **BY_ROW}[name]
    x = images()
    variables = layer.init(key, x)
    apply = jax.jit(layer.apply)
    base = apply(variables, x)
    stride, (rows, columns) = layer.strides, layer.kernel_size
    moved = {
        (r, c): apply(variables, x.at[:, r, c].add(1.0)) != base
        for r in range(HEIGHT)
        for c in range(WIDTH)
    }
    for i in range(HEIGHT // stride):
        for j in range(WIDTH // stride):
            seen = {at for at, changed in moved.items() if changed[:, i, j].any()}
            row, column = i * stride, j * stride
            masked = isinstance(layer, MaskedConv)
            above = rows // 2 if masked else rows - 1
            side = columns - 1 if isinstance(layer, DownRightShiftedConv) else columns // 2
            right = 0 if isinstance(layer, DownRightShiftedConv) else side
            expected = {
                (r, c)
                for r in range(row - above, row + 1)
                for c in range(column - side, column + right + 1)
                if 0 <= r < HEIGHT
                and 0 <= c < WIDTH
                and (r < row or not masked or c < column or (c == column and layer.kind == "B"))
            }
            assert seen == expected, (i, j)


@pytest.mark.parametrize("name", list(BY_PIXEL))
def test_pixel_by_pixel_is_the_whole(name, key):
    layer, x = BY_PIXEL[name], images(1)
    variables = layer.init(key, x)
    whole = layer.apply(variables, x)
    cache, parts = {}, []
    step = jax.jit(
        lambda v, x, row, column: layer.apply(
            v, x, At(row, column, WIDTH), mutable=["cache", "folded"]
        )
    )
    for row in range(HEIGHT):
        for column in range(WIDTH):
            # The pixel before it may have been written incompletely: it comes along, put right.
            pair = jnp.pad(x[:, row : row + 1], ((0, 0), (0, 0), (1, 0), (0, 0)))
            pair = pair[:, :, column : column + 2]
            if name.startswith("right"):
                pair = pair[:, :, 1:]
            y, cache = step({**variables, **cache}, pair, row, column)
            parts.append(y[:, 0, 0])
    joined = jnp.stack(parts, axis=1).reshape(3, HEIGHT, WIDTH, -1)
    np.testing.assert_allclose(joined[:, :: layer.strides, :: layer.strides], whole, atol=2e-6)


@pytest.mark.parametrize("name", list(BY_ROW))
def test_row_by_row_is_the_whole(name, key):
    layer, x = BY_ROW[name], images(1)
    variables = layer.init(key, x)
    whole = layer.apply(variables, x)
    cache, parts = {}, []
    for row in range(HEIGHT):
        y, cache = layer.apply(
            {**variables, **cache},
            x[:, row : row + 1],
            At(row, None, WIDTH),
            mutable=["cache", "folded"],
        )
        parts.append(y[:, 0])
    joined = jnp.stack(parts, axis=1)
    np.testing.assert_allclose(joined[:, :: layer.strides], whole, atol=2e-6)


@pytest.mark.parametrize("name", list(BACK))
def test_doubling_by_position_is_the_whole(name, key):
    layer, x = BACK[name], images(1)
    variables = layer.init(key, x)
    whole = layer.apply(variables, x)
    assert whole.shape == (3, 2 * HEIGHT, 2 * WIDTH, 4)
    for row, column in ((0, 0), (1, 4), (2, 3), (5, 7)):
        piece = x[:, row // 2 : row // 2 + 1]
        if name == "row":
            at, expected = At(row, None, 2 * WIDTH), whole[:, row : row + 1]
        else:
            piece = piece[:, :, column // 2 : column // 2 + 1]
            at = At(row, column, 2 * WIDTH)
            expected = whole[:, row : row + 1, column : column + 1]
        y, _ = layer.apply(variables, piece, at, mutable=["folded"])
        np.testing.assert_allclose(y, expected, atol=2e-6)


@pytest.mark.parametrize("name", list(BACK))
def test_doubling_sees_its_own_half_size_rows(name, key):
    """An output row r comes of row r // 2 alone, and of no column right of c // 2 by pixel."""
    layer, x = BACK[name], images(1)
    variables = layer.init(key, x)
    base = layer.apply(variables, x)
    changed = np.asarray(layer.apply(variables, x.at[:, 2, 3].add(1.0)) != base).any((0, 3))
    assert set(np.flatnonzero(changed.any(1))) == {4, 5}
    columns = {6, 7} if name == "pixel" else {5, 6, 7}
    assert set(np.flatnonzero(changed.any(0))) == columns


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_weight_normalization_begins_with_unit_variance(scale, key):
    """Salimans & Kingma 2016, section 3: zero mean and unit variance on the first batch."""
    x = 3.0 + 5.0 * images(2)
    layer = MaskedConv(6, (3, 3), weight_norm=True, init_scale=scale)
    y, _ = jax.jit(layer.init_with_output)(key, x)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0.0, atol=1e-4)
    # init_with_output uses the very parameters that it makes.
    np.testing.assert_allclose(y.std((0, 1, 2)), scale, rtol=1e-4)
    other = layer.apply(layer.init(key, x), 2 * x)
    assert float(jnp.abs(other.std((0, 1, 2)) / scale - 2).max()) < 0.01


def test_shifts():
    x = jnp.arange(1.0, 7.0).reshape(1, 2, 3, 1)
    np.testing.assert_array_equal(shift_down(x)[0, :, :, 0], [[0, 0, 0], [1, 2, 3]])
    np.testing.assert_array_equal(shift_right(x)[0, :, :, 0], [[0, 1, 2], [0, 4, 5]])


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (MaskedConv(4, (2, 3)), r"kernel_size must be odd and strides 1, got \(2, 3\)"),
        (MaskedConv(4, (3, 3), strides=2), "strides 1"),
        (MaskedConv(4, (3, 3), num_groups=3), r"num_groups must be from 1 to channels \(2\)"),
        (MaskedConv(5, (3, 3), parts=2), r"parts must divide features \(5\), got 2"),
        (MaskedConv(4, (3, 3), kind="C"), "kind must be one of A, B, got 'C'"),
        (DownShiftedConv(4, (2, 2)), "odd columns"),
        (DownRightShiftedConv(0), "features must be at least 1, got 0"),
        (DownRightShiftedConv(4, (0, 2)), "2 positive integers"),
    ],
)
def test_bad_input(layer, message, key):
    with pytest.raises(ValueError, match=message):
        layer.init(key, images())
