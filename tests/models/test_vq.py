"""The VQ-VAE's networks and codebook: nearest codes, moving averages, revival."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models import vq


def outputs(key, shape=(4, 3, 2, 5)):
    return jax.random.normal(key, shape)


def test_networks(key):
    """32x32 pixels are 8x8 vectors of 64 numbers in the published network."""
    x = jnp.zeros((2, 32, 32, 3))
    encoder, decoder = vq.Encoder(), vq.Decoder(6)
    variables = jax.eval_shape(encoder.init, key, x)
    encoded = jax.eval_shape(encoder.apply, variables, x)
    assert encoded.shape == (2, 8, 8, 64)
    decoded = jax.eval_shape(decoder.init, key, encoded)
    assert jax.eval_shape(decoder.apply, decoded, encoded).shape == (2, 32, 32, 6)
    assert variables["params"]["block1_3x3"]["kernel"].shape == (3, 3, 256, 256)
    assert variables["params"]["block2_1x1"]["kernel"].shape == (1, 1, 256, 256)


def test_several_codes_at_a_position(key):
    """The paper's ten on CIFAR-10: 8x8x10 vectors, 640 log 512 nats. Each is seen by its pixels."""
    x = jax.random.normal(key, (2, 8, 8, 3))
    encoder = vq.Encoder(4, 8, codes_per_position=10)
    encoded, _ = jax.jit(encoder.init_with_output)(key, x)
    assert encoded.shape == (2, 2, 20, 4)
    decoder = vq.Decoder(3, 8, 2, 0, codes_per_position=10)
    params = jax.jit(decoder.init)(key, encoded)
    decode = jax.jit(decoder.apply)
    whole = decode(params, encoded)
    assert whole.shape == (2, 8, 8, 3)
    for code in (0, 9, 10, 19):
        moved = decode(params, encoded.at[0, 0, code].add(1.0))
        assert not np.allclose(moved[0], whole[0])
        np.testing.assert_array_equal(moved[1], whole[1])
    with pytest.raises(ValueError, match="must divide the 15 codes of a row, got 10"):
        decoder.apply(params, encoded[:, :, :15])
    with pytest.raises(ValueError, match="codes_per_position must be at least 1, got 0"):
        vq.Encoder(4, 8, codes_per_position=0).init(key, x)


def test_residual_blocks_have_their_shortcut(key):
    """With the blocks' last kernels at zero the blocks do nothing."""
    x = jax.random.normal(key, (1, 4, 4, 1))
    encoder = vq.Encoder(3, 4, 1, 1)
    variables = jax.jit(encoder.init)(key, x)
    zero = jax.tree_util.tree_map_with_path(
        lambda path, p: p * ("1x1" not in jax.tree_util.keystr(path)), variables
    )
    plain = vq.Encoder(3, 4, 1, 0)
    kept = {k: v for k, v in variables["params"].items() if "block" not in k}
    np.testing.assert_allclose(
        jax.jit(encoder.apply)(zero, x),
        jax.jit(plain.apply)({"params": kept}, x),
        rtol=1e-5,
        atol=1e-6,
    )


def test_nearest_is_nearest(key):
    """Against the distances themselves, also far from the origin, where they nearly cancel."""
    codes = jax.random.normal(jax.random.key(1), (7, 5)) + 30
    encoded = outputs(key) + 30
    distances = np.square(np.asarray(encoded, np.float64)[..., None, :] - np.asarray(codes)).sum(
        axis=-1
    )
    indices = np.asarray(vq.nearest(codes, encoded))
    chosen = np.take_along_axis(distances, indices[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(chosen, distances.min(axis=-1), atol=1e-2)
    assert indices.dtype == np.int32
    near = vq.nearest(codes, codes.reshape(1, 7, 1, 5))
    np.testing.assert_array_equal(near.ravel(), np.arange(7))


def test_codebook_starts_with_outputs(key):
    encoded = outputs(key)
    book = vq.draw_codebook(key, encoded, 6)
    flat = np.asarray(encoded).reshape(-1, 5)
    for code in np.asarray(book.codes):
        assert np.abs(flat - code).max(axis=1).min() < 1e-6
    assert len(np.unique(np.asarray(book.codes), axis=0)) == 6  # enough positions: no repeats
    many = vq.draw_codebook(key, encoded, 50)  # more codes than positions
    assert many.codes.shape == (50, 5)
    with pytest.raises(ValueError, match="num_codes must be at least 2, got 1"):
        vq.draw_codebook(key, encoded, 1)


def test_update_is_the_moving_average(key):
    """By hand, in shares: N <- d N + (1 - d) n, m <- d m + (1 - d) sum z, e = m / N."""
    encoded, decay = outputs(key), 0.9
    book = vq.draw_codebook(key, encoded, 4)
    indices = vq.nearest(book.codes, encoded)
    new = vq.update(book, encoded, indices, decay)
    flat, chosen = np.asarray(encoded).reshape(-1, 5), np.asarray(indices).ravel()
    counts = np.bincount(chosen, minlength=4)
    sums = np.stack([flat[chosen == k].sum(axis=0) for k in range(4)])
    shares = decay * 0.25 + (1 - decay) * counts / len(flat)
    expected = (decay * 0.25 * np.asarray(book.codes) + (1 - decay) * sums / len(flat)) / shares[
        :, None
    ]
    np.testing.assert_allclose(new.shares, shares, rtol=1e-5)
    np.testing.assert_allclose(new.codes, expected, rtol=1e-4, atol=1e-6)


def test_a_code_that_nobody_chooses_stays(key):
    """Both of its averages fade alike: not to the origin, when they are gone."""
    encoded = outputs(key)
    start = vq.draw_codebook(key, encoded, 4)
    indices = jnp.zeros(encoded.shape[:3], jnp.int32)

    @jax.jit
    def many(book):
        return jax.lax.fori_loop(
            0, 20_000, lambda _, book: vq.update(book, encoded, indices, 0.99), book
        )

    end = many(start)
    np.testing.assert_allclose(end.codes[1:], start.codes[1:], rtol=1e-3)
    np.testing.assert_allclose(end.codes[0], encoded.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-5)


def test_update_is_linear_in_the_batch(key):
    """So the mean over devices of their updates is that of the whole batch, weighted or not."""
    encoded = outputs(key, (8, 2, 2, 5))
    book = vq.draw_codebook(key, encoded, 4)
    indices = vq.nearest(book.codes, encoded)
    uneven = jnp.array([1.0, 1, 1, 0, 1, 0, 0, 0])
    for weight in (None, uneven):
        whole = vq.update(book, encoded, indices, 0.9, weight)
        parts = [
            vq.update(book, encoded[h], indices[h], 0.9, None if weight is None else weight[h])
            for h in (slice(0, 4), slice(4, 8))
        ]
        mean = jax.tree.map(lambda a, b: 0.5 * (a + b), *parts)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, mean)
    unseen = encoded.at[3].set(100.0)
    other = vq.update(book, unseen, indices, 0.9, uneven)
    seen = vq.update(book, encoded, indices, 0.9, uneven)
    jax.tree.map(np.testing.assert_array_equal, seen, other)


def test_no_gradient_reaches_the_averages(key):
    encoded = outputs(key)
    book = vq.draw_codebook(key, encoded, 4)
    indices = vq.nearest(book.codes, encoded)

    def total(encoded):
        return vq.update(book, encoded, indices, 0.9).sums.sum()

    np.testing.assert_array_equal(jax.grad(total)(encoded), jnp.zeros_like(encoded))


def test_dead_codes_are_revived(key):
    """A code that is far from everything dies by the average, then stands on an output."""
    encoded = outputs(key)
    book = vq.draw_codebook(key, encoded, 4)
    book = book._replace(sums=book.sums.at[2].set(1e3))
    steps = 0
    while True:
        indices = vq.nearest(book.codes, encoded)
        assert not (np.asarray(indices) == 2).any()
        book = vq.update(book, encoded, indices, 0.5)
        replacements = vq.draw_outputs(key, encoded, 4)
        before, (book, dead) = book, vq.revive(book, replacements, 0.1)
        steps += 1
        if np.asarray(dead)[2]:
            break
    assert steps == 4  # 0.5^4 < 0.1
    np.testing.assert_array_equal(dead, [False, False, True, False])
    np.testing.assert_allclose(book.codes[2], replacements[2], rtol=1e-6)
    assert float(book.shares[2]) == 0.25
    alive = np.array([0, 1, 3])
    np.testing.assert_array_equal(book.sums[alive], before.sums[alive])
    assert (np.asarray(vq.nearest(book.codes, encoded)) == 2).any()


def test_bad_sizes(key):
    with pytest.raises(ValueError, match="multiples of 4, to be halved 2 times, got 6x8"):
        vq.Encoder().init(key, jnp.zeros((1, 6, 8, 1)))
    with pytest.raises(ValueError, match="num_halvings must be at least 1, got 0"):
        vq.check_size((8, 8), 0)


# The paper's appendix A, worked out by hand: levels 4 have the values -2, -1, 0, 1 (of 2), levels 3
# the values -1, 0, 1 (of 1).
@pytest.mark.parametrize(
    ("z", "quantized", "index"),
    [
        ((-9.0, -9.0), (-1.0, -1.0), 0),
        ((0.0, 0.0), (0.0, 0.0), 2 + 1 * 4),
        ((9.0, 9.0), (0.5, 1.0), 3 + 2 * 4),
        ((-0.6, 0.9), (-0.5, 1.0), 1 + 2 * 4),
    ],
)
def test_finite_scalars_at_known_values(z, quantized, index):
    fsq = vq.FiniteScalars((4, 3))
    assert fsq.num_codes == 12
    found = fsq.quantize(jnp.array([z]))
    np.testing.assert_allclose(found, [quantized], atol=1e-6)
    assert fsq.indices(found).tolist() == [index]


@pytest.mark.parametrize("levels", [(2,), (8, 6, 5), (8, 5, 5, 5), (2, 3, 4)])
def test_finite_scalars_there_and_back(levels):
    """Every code is reached, is a fixed point of the maps, and beyond them there is none."""
    fsq = vq.FiniteScalars(levels)
    codes = jnp.arange(fsq.num_codes).reshape(1, -1)
    vectors = fsq.vectors(codes)
    assert vectors.shape == (1, fsq.num_codes, len(levels))
    assert np.abs(vectors).max() <= 1
    assert len(np.unique(np.asarray(vectors)[0], axis=0)) == fsq.num_codes
    np.testing.assert_array_equal(fsq.indices(vectors), codes)
    assert np.isnan(fsq.vectors(jnp.array([-1, fsq.num_codes]))).all()
    z = 1.3 * jax.random.normal(jax.random.key(0), (50_000, len(levels)))
    quantized = fsq.quantize(z)
    indices = np.asarray(fsq.indices(quantized))
    np.testing.assert_allclose(fsq.vectors(jnp.asarray(indices)), quantized, atol=1e-6)
    assert len(np.unique(indices)) > 0.9 * fsq.num_codes


def test_finite_scalars_pass_the_gradient_straight_through():
    """That of the bounding function, h sech^2(z + s) / floor(L / 2), as if nothing were rounded."""
    fsq, z = vq.FiniteScalars((8, 5)), jnp.array([[0.3, -1.2]])
    slope = jax.grad(lambda z: fsq.quantize(z).sum())(z)
    half = np.array([7, 4]) * 0.999 / 2
    shift = np.array([np.tan(0.5 / half[0]), 0])
    np.testing.assert_allclose(
        slope[0], half / np.cosh(np.asarray(z[0]) + shift) ** 2 / [4, 2], rtol=1e-5
    )


def test_finite_scalars_that_there_are_not():
    with pytest.raises(ValueError, match="levels: 2 are for codes of as many numbers, got 3"):
        vq.FiniteScalars((4, 3)).quantize(jnp.zeros((1, 3)))
    for levels in ((), (4, 1), (2,) * 31):
        with pytest.raises(ValueError, match="levels must be at least 2 each"):
            vq.FiniteScalars(levels).quantize(jnp.zeros((1, len(levels))))
