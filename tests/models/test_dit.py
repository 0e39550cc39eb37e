"""The diffusion transformer: the papers' networks, equal to an independent definition."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit

from jaxgen.conditioning.base import Condition
from jaxgen.models import dit
from jaxgen.models.dit import DiT, patchify, sincos_positions, unpatchify

SMALL: dict[str, Any] = {"width": 16, "depth": 2, "num_heads": 2}


def inputs(size=8, channels=3, batch=2):
    x = np.random.default_rng(5).normal(size=(batch, size, size, channels))
    return jnp.asarray(x, jnp.float32), jnp.asarray(np.arange(batch) * 300 + 5)


def told(batch=2, length=3, *, seed=0, vector=True, mask=None):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return Condition(draw(batch, 5) if vector else None, draw(batch, length, 6), mask)


def shapes_of(model, *args):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), *args, train=False))["params"]


def randomized(model, *args):
    """Random parameters: at initialization the gates and the output are zero."""
    rng = np.random.default_rng(1)
    draw = lambda leaf: 0.2 * rng.normal(size=leaf.shape).astype(np.float32)  # noqa: E731
    return {"params": jax.tree.map(draw, shapes_of(model, *args))}


def run(model, params, *args):
    return jit(lambda p: model.apply(p, *args, train=False))(params)


@pytest.mark.parametrize(
    ("make", "counts"),
    [
        (dit.dit_s, (32_865_056, 32_920_448, 33_142_016)),
        (dit.dit_b, (130_315_808, 130_426_496, 130_869_248)),
        (dit.dit_l, (457_840_672, 457_988_224, 458_578_432)),
        (dit.dit_xl, (674_834_720, 675_000_704, 675_664_640)),
    ],
)
def test_the_papers_networks(make, counts):
    """As many parameters as the authors' code counts, without the fixed positions."""
    x, t = jnp.zeros((1, 32, 32, 4)), jnp.zeros(1, jnp.int32)
    for patch_size, count in zip((2, 4, 8), counts, strict=True):
        model = make(patch_size=patch_size, out_channels=8)
        shapes = shapes_of(model, x, t, Condition(jnp.zeros((1, 1001))))
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_the_beginning():
    """The output is 0 and blocks are the identity; Xavier for the sequence's maps, a joint one for
    q, k, v; N(0, 0.02) for time and classes."""
    x, t = inputs()
    model, condition = DiT(width=64, depth=1, num_heads=2), told()
    init = jit(lambda k: model.init_with_output(k, x, t, condition, train=False))
    y, variables = init(jax.random.key(0))
    np.testing.assert_array_equal(y, np.zeros_like(x))
    params = variables["params"]
    block = params["blocks"]
    for leaf, bound in (
        (block["attention"]["query"]["kernel"], np.sqrt(6 / (64 + 3 * 64))),
        (block["attention"]["out"]["kernel"], np.sqrt(6 / 128)),
        (block["hidden"]["kernel"], np.sqrt(6 / 320)),
        (params["patches"]["kernel"], np.sqrt(6 / (12 + 64))),
    ):
        assert 0.95 < np.abs(leaf).max() / bound <= 1.0001
    for name in ("time1", "time2", "condition"):
        assert 0.017 < params[name]["kernel"].std() < 0.023
    for zero in (block["modulation"], params["modulation"], block["cross_attention"]["out"]):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(zero))


def test_positions():
    """Columns first; each place has its own."""
    table = sincos_positions(2, 3, 8)
    assert (table.shape, table.dtype) == ((6, 8), np.float32)
    np.testing.assert_allclose(table[5, :4], [*np.sin([2, 0.02]), *np.cos([2, 0.02])], rtol=1e-6)
    np.testing.assert_allclose(table[5, 4:], [*np.sin([1, 0.01]), *np.cos([1, 0.01])], rtol=1e-6)
    with pytest.raises(ValueError, match="features must be a positive multiple of 4, got 6"):
        sincos_positions(2, 2, 6)


def test_patches_and_back():
    x = jnp.arange(2 * 4 * 6 * 3, dtype=jnp.float32).reshape(2, 4, 6, 3)
    patches = patchify(x, 2)
    assert patches.shape == (2, 6, 12)
    np.testing.assert_array_equal(patches[0, 4].reshape(2, 2, 3), x[0, 2:4, 2:4])
    np.testing.assert_array_equal(unpatchify(patches, (4, 6), 2), x)


def test_parity_with_an_independent_definition():
    torch = pytest.importorskip("torch")
    from experiments.benchmarks.dit_reference import TorchDiT, to_params

    torch.manual_seed(0)
    model = DiT(**SMALL, out_channels=6)
    net = TorchDiT(model, 8, 3, num_classes=5)
    (x, _), t, label = inputs(), np.array([3.0, 700.0], np.float32), np.array([1, 4])
    with torch.no_grad():
        theirs = net(*map(torch.from_numpy, (np.array(x).transpose(0, 3, 1, 2), t, label)))
    condition = Condition(jnp.asarray(np.eye(5)[label], jnp.float32))
    ours = run(model, {"params": to_params(net)}, x, jnp.asarray(t), condition)
    assert np.std(ours) > 0.1
    np.testing.assert_allclose(ours.transpose(0, 3, 1, 2), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("in_context", [False, True])
def test_tokens(in_context):
    """Each token that counts matters, a padded one does not, and none is no error."""
    x, t = inputs()
    model = DiT(**SMALL, in_context=in_context)
    mask = jnp.asarray([[True, True, False], [False, False, False]])
    condition = told(mask=mask)
    params = randomized(model, x, t, condition)
    apply = jit(lambda c: model.apply(params, x, t, c, train=False))
    y = apply(condition)
    assert y.shape == x.shape
    assert np.isfinite(y).all()
    padded = condition._replace(tokens=condition.tokens.at[0, 2].add(1.0))
    np.testing.assert_allclose(apply(padded)[0], y[0], rtol=1e-5, atol=1e-5)
    other = apply(condition._replace(tokens=condition.tokens.at[0, 1].add(1.0)))
    assert np.abs(other[0] - y[0]).max() > 1e-3
    np.testing.assert_allclose(other[1], y[1], rtol=1e-5, atol=1e-5)
    assert np.abs(apply(condition._replace(vector=condition.vector + 1)) - y).max() > 1e-3
    names = set(params["params"]["blocks"])
    assert ("cross_attention" in names) != in_context
    assert ("tokens" in params["params"]) == in_context


def test_zeros_are_no_condition_and_remat_is_the_same():
    x, t = inputs()
    condition = Condition(jnp.zeros((2, 5)))
    params = randomized(DiT(**SMALL), x, t, condition)
    y = run(DiT(**SMALL), params, x, t, condition)
    np.testing.assert_allclose(y, run(DiT(**SMALL), params, x, t), rtol=1e-5, atol=1e-5)
    lean = run(DiT(**SMALL, remat=True), params, x, t, condition)
    np.testing.assert_allclose(y, lean, rtol=1e-5, atol=1e-5)
    text = str(
        jax.make_jaxpr(lambda p: DiT(**SMALL, remat=True).apply(p, x, t, train=True))(params)
    )
    assert "remat" in text or "checkpoint" in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 6}, "width must be a positive multiple of 4, got 6"),
        ({"num_heads": 3}, "num_heads must divide the width 16, got 3"),
        ({"depth": 0}, "depth must be positive, got 0"),
        ({"patch_size": 0}, "patch_size must be positive, got 0"),
        ({"hidden": 0}, "hidden must be positive, got 0"),
        ({"out_channels": 0}, "out_channels must be positive, got 0"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        DiT(**{**SMALL, **fields})


def test_wrong_inputs():
    x, t = inputs()
    with pytest.raises(
        ValueError, match="x: an image of 8x8 has no whole number of patches of 3x3"
    ):
        shapes_of(DiT(**SMALL, patch_size=3), x, t)
    with pytest.raises(
        ValueError, match=r"t must have shape \(2,\), one time an image, got \(3,\)"
    ):
        shapes_of(DiT(**SMALL), x, jnp.zeros(3))
    with pytest.raises(ValueError, match="condition must be of 2 examples, got 3"):
        shapes_of(DiT(**SMALL), x, t, told(3))
