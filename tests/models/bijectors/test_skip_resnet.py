"""RealNVP's network against its equations written out, its size, and its penalty."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxgen.models.bijectors.coupling import Coupling, ShiftScale
from jaxgen.models.bijectors.skip_resnet import NormedConv, SkipResNet, sum_of_squared_scales
from jaxgen.models.blocks.layers import GroupNorm

KEY = jax.random.key(1, impl="rbg")


def disturbed(params):
    rng = np.random.default_rng(5)
    return jax.tree.map(lambda p: p + 0.3 * rng.normal(size=p.shape).astype(np.float32), params)


def reference(params, x, mask):
    """One block, by the equations."""

    def conv(name, x):
        p = params[name]
        kernel = p["direction"] / np.sqrt((np.asarray(p["direction"]) ** 2).sum((0, 1, 2)))
        kernel = kernel * p.get("magnitude", jnp.ones(kernel.shape[-1]))
        y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NUMBERS)
        return y + p.get("bias", jnp.zeros(kernel.shape[-1]))

    def norm(name, x):
        plain = GroupNorm(epsilon=1e-4)
        scale = {"scale": jnp.ones(x.shape[-1]), "bias": params[name]["bias"]}
        return jax.nn.relu(plain.apply({"params": scale}, x))

    mask = jnp.broadcast_to(mask, (*x.shape[:-1], 1))
    h = conv("in", jax.nn.relu(jnp.concatenate([x, -x, mask], -1)))
    out = conv("skip_in", h)
    h = h + conv("conv_0_1", norm("norm_0_1", conv("conv_0_0", norm("norm_0_0", h))))
    out = out + conv("skip_0", h)
    shift, raw = jnp.split(conv("out", norm("norm_out", out)), 2, axis=-1)
    return jnp.concatenate([shift, params["rescaling"] * jnp.tanh(raw)], axis=-1)


NUMBERS = ("NHWC", "HWIO", "NHWC")


def test_against_the_equations():
    x = jax.random.normal(KEY, (2, 4, 4, 3))
    mask = (jnp.indices((4, 4)).sum(0) % 2 == 0).astype(jnp.float32)[None, ..., None]
    network = SkipResNet(6, 8, 1, rescaling=0.0)

    @jax.jit
    def run(x):
        start, variables = network.init_with_output(KEY, x, None, mask)
        params = disturbed(variables["params"])
        return start, network.apply({"params": params}, x, None, mask), params

    start, output, params = run(x)
    assert not start[..., 3:].any()  # log-scales
    assert start[..., :3].any()  # shifts
    with jax.numpy_rank_promotion("allow"):
        np.testing.assert_allclose(output, reference(params, x, mask), atol=1e-4)


def test_a_normed_kernel_has_its_magnitude():
    x = jax.random.normal(KEY, (1, 1, 1, 5))
    layer = NormedConv(4, 3, use_magnitude=True)
    params = layer.init(KEY, x)["params"]
    np.testing.assert_allclose(params["magnitude"], 3 / np.sqrt(6), rtol=1e-6)
    bound = np.sqrt(2 / 5)
    assert 0.9 * bound < np.abs(params["direction"]).max() <= bound
    scaled = {**params, "direction": 7 * params["direction"]}
    outputs = [layer.apply({"params": p}, x) for p in (params, scaled)]
    np.testing.assert_allclose(*outputs, rtol=1e-5)


@pytest.mark.parametrize(("inputs", "width", "told"), [(3, 64, True), (6, 128, False)])
def test_as_many_parameters_as_the_authors(inputs, width, told):
    """Counted layer by layer from their code, but for the batch norm of the input."""
    d, out = width, 2 * inputs
    first = 9 * (2 * inputs + told) * d + d
    skip = d * d + 2 * d
    block = 2 * 9 * d * d + 2 * d + 2 * d  # two shifts of norms, a bias and magnitudes
    last = d + d * out + 2 * out
    expected = first + skip + 8 * (block + skip) + last + 1
    network = SkipResNet(out, d, 8)
    x, mask = jnp.zeros((1, 4, 4, inputs)), jnp.ones((1, 4, 4, 1)) if told else None
    params = jax.eval_shape(network.init, KEY, x, None, mask)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


def test_the_penalty_is_of_magnitudes_and_rescalings():
    params = {
        "a": {"magnitude": jnp.array([1.0, 2.0]), "direction": jnp.ones(5)},
        "rescaling": jnp.float32(3.0),
        "bias": jnp.ones(2),
    }
    assert sum_of_squared_scales(params) == 14
    with pytest.raises(ValueError, match="scales of a SkipResNet, got none"):
        sum_of_squared_scales({"bias": jnp.ones(2)})


def test_masks_that_differ_between_channels_are_not_told():
    x = jnp.zeros((1, 2, 2, 2))
    mask = np.array([[[True, False]]])
    network = partial(SkipResNet, width=4, num_blocks=1)
    coupling = Coupling(network, ShiftScale(), mask, tells_mask=True)
    with pytest.raises(ValueError, match="same for all channels"):
        jax.eval_shape(coupling.init, KEY, x)
