"""VDM's network: the paper's size, and equal to its blocks called one after another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import jit

from jaxgen.conditioning.base import Condition
from jaxgen.models.blocks.layers import GroupNorm, SelfAttention, timestep_embedding
from jaxgen.models.blocks.unet_layers import VDM, ResidualBlock
from jaxgen.models.vdm import VDMNetwork, value_features

MODEL = VDMNetwork(channels=8, num_res_blocks=2, attends=True)


def inputs(channels=3):
    x = np.random.default_rng(5).uniform(-1, 1, size=(2, 4, 6, channels))
    return jnp.asarray(x, jnp.float32), jnp.array([130.0, 900.0])


def shapes_of(model, *args):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), *args, train=False))["params"]


def randomized(model, *args):
    rng = np.random.default_rng(1)
    draw = lambda leaf: 0.2 * rng.normal(size=leaf.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, shapes_of(model, *args))


def test_the_papers_size():
    x, t = jnp.zeros((1, 32, 32, 3)), jnp.zeros(1)
    shapes = shapes_of(VDMNetwork(), x, t, Condition(jnp.zeros((1, 1))))
    # As the authors' own code counts them, where the condition is one number, always zero.
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 30_578_179
    assert {"attention"} == {name for part in shapes.values() for name in part} & {"attention"}
    assert not any("attention" in shapes[name] for name in ("down", "up", "up_first", "middle1"))


def test_value_features():
    x = np.array([[-1.0, -0.372, 0.0, 0.0041, 0.9999]], np.float32).T
    angles = 2 * np.pi * x.astype(np.float64) * np.array([64.0, 128.0])
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    np.testing.assert_allclose(value_features(jnp.asarray(x), (6, 7)), expected, atol=2e-6)
    assert value_features(jnp.zeros((2, 3)), ()).shape == (2, 0)


def test_equals_its_blocks_one_after_another():
    x, t = inputs()
    condition = Condition(jnp.asarray([[0.3, -1.0], [0.0, 2.0]]))
    params = randomized(MODEL, x, t, condition)

    def by_hand(p):
        def step(p, h):
            h = ResidualBlock(8, 0.0, True, style=VDM).apply({"params": p["block"]}, h, e)
            if "attention" in p:
                h = SelfAttention().apply({"params": p["attention"]}, h)
            return h

        conv = lambda name, h: nn.Conv(p[name]["bias"].size, (3, 3)).apply({"params": p[name]}, h)  # noqa: E731
        e = timestep_embedding(t, 8) @ p["time1"]["kernel"] + p["time1"]["bias"][None]
        e = nn.silu(e + condition.vector @ p["condition"]["kernel"])
        e = nn.silu(e @ p["time2"]["kernel"] + p["time2"]["bias"][None])
        kept = [conv("conv_in", jnp.concatenate([x, value_features(x, (6, 7))], axis=-1))]
        for i in range(2):
            kept.append(step(jax.tree.map(lambda leaf, i=i: leaf[i], p["down"]), kept[-1]))
        h = step(p["middle1"], step(p["middle0"], kept[-1]))
        h = step(p["up_first"], jnp.concatenate([h, kept.pop()], axis=-1))
        for i in (1, 0):
            up = jax.tree.map(lambda leaf, i=i: leaf[i], p["up"])
            h = step(up, jnp.concatenate([h, kept.pop()], axis=-1))
        return conv("conv_out", nn.silu(GroupNorm().apply({"params": p["norm_out"]}, h))) + x

    y, expected = jit(
        lambda p: (MODEL.apply({"params": p}, x, t, condition, train=False), by_hand(p))
    )(params)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_starts_at_the_identity_and_trains():
    x, t = inputs()
    model = VDMNetwork(channels=8, num_res_blocks=2, dropout=0.5, remat=True)
    start = jit(lambda key: model.init_with_output(key, x, t, train=False)[0])
    np.testing.assert_array_equal(start(jax.random.key(0)), x)
    params = randomized(model, x, t)

    @jit
    def grad(params, key):
        def loss(params):
            y = model.apply({"params": params}, x, t, train=True, rngs={"dropout": key})
            return jnp.sum(y**2)

        return jax.value_and_grad(loss)(params)

    value, grads = grad(params, jax.random.key(1))
    assert value == grad(params, jax.random.key(1))[0] != grad(params, jax.random.key(2))[0]
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        where = jax.tree_util.keystr(path)
        rows = leaf if where.startswith(("['up']", "['down']")) else leaf[None]
        for row in rows:  # of each block of a stack
            assert np.all(np.isfinite(row)), where
            assert np.any(np.asarray(row)) or where.endswith("['key']['bias']"), where


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": 7}, "channels must be even and at least 4, got 7"),
        ({"num_res_blocks": 0}, "num_res_blocks must be positive, got 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
    ],
)
def test_refuses_bad_fields_at_once(fields, message):
    with pytest.raises(ValueError, match=message):
        VDMNetwork(**fields)


def test_refuses_bad_inputs_while_tracing():
    x, t = inputs()
    with pytest.raises(ValueError, match=r"t must have shape \(2,\)"):
        shapes_of(MODEL, x, t[:1])
    with pytest.raises(ValueError, match="condition must be of 2 examples, got 1"):
        shapes_of(MODEL, x, t, Condition(jnp.zeros((1, 1))))
