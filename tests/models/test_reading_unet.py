"""The U-Net that reads a condition: latent diffusion's networks, and their spatial transformer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit

from jaxgen.conditioning.base import Condition
from jaxgen.models.blocks.spatial_transformer import SpatialTransformer
from jaxgen.models.unet import UNet, ldm, ldm_imagenet, ldm_text

SMALL: dict[str, Any] = {
    "channels": 8,
    "multipliers": (1,),
    "num_res_blocks": 1,
    "attention_resolutions": (4,),
    "num_heads": 2,
    "token_width": 6,
}


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def shapes_of(model, *args, **options):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), *args, **options))["params"]


def randomized(model, *args, **options):
    """Random parameters: at initialization what is read has no effect."""
    rng = np.random.default_rng(1)
    shapes = shapes_of(model, *args, **options)
    return jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize(
    ("make", "size", "condition", "count"),
    [
        (ldm_text, (32, 32, 4), Condition(None, jnp.zeros((1, 77, 1280))), 872_300_484),
        pytest.param(
            ldm_imagenet,
            (64, 64, 3),
            Condition(jnp.zeros((1, 1001))),
            400_920_579 + 1001 * 512,
            marks=pytest.mark.slow,
        ),
        pytest.param(ldm, (64, 64, 3), None, 274_056_163, marks=pytest.mark.slow),
    ],
)
def test_the_papers_networks(make, size, condition, count):
    """As many parameters as the authors' code counts; classes are embedded in 512 numbers."""
    shapes = shapes_of(make(), jnp.zeros((1, *size)), jnp.zeros(1), condition, train=False)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_what_is_read_matters():
    """A token that counts does, a padded one does not; all begin without effect."""
    x, t = draw(2, 4, 4, 3), jnp.array([3, 700])
    model = ldm(**SMALL, transformer_depth=1, head_width=None)
    mask = jnp.asarray([[True, False], [False, False]])
    condition = Condition(draw(2, 9), draw(2, 2, 5), mask)
    params = randomized(model, x, t, condition, train=False)
    assert "condition" not in params
    apply = jit(lambda p, c: model.apply({"params": p}, x, t, c, train=False))
    y = np.asarray(apply(params, condition))
    assert np.isfinite(y).all()
    read = np.asarray(apply(params, condition._replace(tokens=condition.tokens.at[:, 0].add(1.0))))
    assert np.abs(read[0] - y[0]).max() > 1e-3
    padded = condition._replace(tokens=condition.tokens.at[0, 1].add(1.0))
    np.testing.assert_allclose(apply(params, padded), y, rtol=1e-5, atol=1e-5)
    other = condition._replace(vector=condition.vector + 1.0)  # a mean of what is read
    np.testing.assert_array_equal(apply(params, other), y)


def test_a_vector_is_read_as_one_token():
    x, t = draw(1, 4, 4, 3), jnp.array([3])
    model = ldm(**SMALL, transformer_depth=1, head_width=None)
    shapes = shapes_of(model, x, t, Condition(draw(1, 9)), train=False)
    assert shapes["condition"]["kernel"].shape == (9, 6)
    attention = shapes["mid_attention"]["block0"]
    assert attention["reading"]["key"]["kernel"].shape == (6, 8)
    assert set(attention["reading"]["key"]) == {"kernel"}
    assert attention["attention"]["key"]["kernel"].shape == (8, 8)


def test_parity_of_the_transformer_with_an_independent_definition():
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x, context = draw(2, 3, 4, 16), draw(2, 5, 6, seed=1)
    model = SpatialTransformer(num_heads=2)
    params = randomized(model, x, context)
    tensor = lambda a: torch.from_numpy(np.array(a))  # noqa: E731

    def linear(p, h):
        bias = tensor(p["bias"]) if "bias" in p else None
        return functional.linear(h, tensor(p["kernel"]).T, bias)

    def norm(p, h):
        return functional.layer_norm(h, (16,), tensor(p["scale"]), tensor(p["bias"]), 1e-5)

    def attention(p, h, other):
        heads = [
            linear(p[name], of).unflatten(-1, (2, 8)).transpose(1, 2)
            for name, of in (("query", h), ("key", other), ("value", other))
        ]
        y = functional.scaled_dot_product_attention(*heads)
        return linear(p["out"], y.transpose(1, 2).flatten(2))

    image, block = tensor(x).permute(0, 3, 1, 2), params["block0"]
    scale, bias = (tensor(params["norm"][name]) for name in ("scale", "bias"))
    h = functional.group_norm(image, 4, scale, bias, 1e-6).flatten(2).transpose(1, 2)
    h = linear(params["first"], h)
    normed = norm(block["norm_attention"], h)
    h = h + attention(block["attention"], normed, normed)
    h = h + attention(block["reading"], norm(block["norm_reading"], h), tensor(context))
    value, gate = linear(block["hidden"], norm(block["norm_mlp"], h)).chunk(2, dim=-1)
    h = h + linear(block["out"], value * functional.gelu(gate))
    theirs = tensor(x) + linear(params["last"], h).unflatten(1, (3, 4))
    ours = jit(lambda p: model.apply({"params": p}, x, context))(params)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head_width": 0}, "head_width must be positive, got 0"),
        ({"transformer_depth": -1}, "transformer_depth must be at least 0, got -1"),
        ({"token_width": 0}, "token_width must be positive, got 0"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        UNet(**{**SMALL, **fields})


@pytest.mark.parametrize(
    ("fields", "condition", "message"),
    [
        ({"transformer_depth": 1}, None, "condition must have tokens or a vector"),
        ({"transformer_depth": 1}, Condition(), "condition must have tokens or a vector"),
        ({"transformer_depth": 1}, Condition(None, jnp.zeros((3, 1, 4))), "of 2 examples, got 3"),
        ({"head_width": 3}, None, "head_width must divide the 8 channels, got 3"),
    ],
)
def test_what_the_network_refuses(fields, condition, message):
    model = UNet(**{**SMALL, **fields})
    with pytest.raises(ValueError, match=message):
        shapes_of(model, draw(2, 4, 4, 3), jnp.zeros(2), condition, train=False)
