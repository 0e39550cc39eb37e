"""PixelCNNs: exactly one distribution over images, and nothing seen of the future."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit

from jaxgen.conditioning.base import Condition
from jaxgen.losses.autoregressive import categorical_nll, mixture_of_logistics_nll
from jaxgen.models.pixelcnn import GatedPixelCNN, PixelCNN
from jaxgen.models.pixelcnnpp import PixelCNNPP

# These programs are compiled often and run once.

GREY, COLOUR, RGB = (6, 4, 1), (4, 4, 2), (3, 3, 3)
NETWORKS = {
    "pixelcnn": (PixelCNN(1, 3, 8, 1, 8), GREY, None),
    "pixelcnn, colours": (PixelCNN(2, 3, 8, 1, 8), COLOUR, None),
    "gated": (GatedPixelCNN(1, 3, 16, 2, 3, 64), GREY, 3),
    "gated, colours": (GatedPixelCNN(2, 3, 16, 2, 3, 64), COLOUR, None),
    # Features that three channels do not divide, as the defaults are.
    "pixelcnn, rgb": (PixelCNN(3, 2, 14, 1, 8), RGB, None),
    "gated, rgb": (GatedPixelCNN(3, 2, 8, 2, 3, 16), RGB, None),
    "pixelcnnpp": (PixelCNNPP(2, 4, 1, 2, 2, 0.0), COLOUR, 3),
}


def make(name, key, scale=1.0):
    """A network with every parameter away from its initial value."""
    network, shape, classes = NETWORKS[name]
    x = jax.random.uniform(key, (2, *shape), minval=-1.0)
    condition = None if classes is None else Condition(jax.nn.one_hot(jnp.arange(2), classes))
    params = jit(network.init)(key, x, condition)["params"]
    leaves, treedef = jax.tree.flatten(params)
    noise = jax.random.normal(key, (sum(leaf.size for leaf in leaves),))
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    moved = [
        leaf + scale * 0.3 * part.reshape(leaf.shape)
        for leaf, part in zip(leaves, jnp.split(noise, ends), strict=True)
    ]
    return network, jax.tree.unflatten(treedef, moved), x, condition


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n == "pixelcnnpp")) for n in NETWORKS],
)
def test_causal_by_gradient(name, key):
    """Zero, exactly, by what is not before: and not zero by most of what is."""
    network, params, x, condition = make(name, key, 0.3)
    first = jax.tree.map(lambda v: v[:1], condition)
    height, width, channels = shape = x.shape[1:]
    mixture = isinstance(network, PixelCNNPP)

    positions = height * width * (1 if mixture else channels)

    def output(image, position):
        outputs = network.apply({"params": params}, image[None], first)
        # A sum of squares takes a position's logits, or mixture, in one number.
        return jnp.sum(jnp.square(outputs.reshape(positions, -1)), axis=1)[position]

    gradient = jit(jax.grad(output))
    jacobian = np.stack([gradient(x[0], t).reshape(-1) for t in range(positions)])
    per = channels if mixture else 1
    allowed = np.arange(np.prod(shape))[None] < np.arange(positions)[:, None] * per
    assert (jacobian[~allowed] == 0).all()
    seen = (jacobian[allowed] != 0).mean()
    assert seen > (0.5 if name.startswith("pixelcnn,") or name == "pixelcnn" else 0.85)


@pytest.mark.parametrize(
    ("network", "shape", "conditional"),
    [
        (PixelCNN(1, 3, 4, 1, 4), (2, 3, 1), False),
        (PixelCNN(2, 2, 8, 1, 4), (2, 2, 2), False),
        (GatedPixelCNN(1, 2, 4, 2, 3, 4), (3, 3, 1), True),
        (GatedPixelCNN(3, 2, 6, 2, 3, 6), (1, 2, 3), False),
        (PixelCNNPP(2, 4, 1, 1, 2, 0.0), (1, 2, 2), True),
    ],
)
def test_probabilities_of_all_images_sum_to_one(network, shape, conditional, key):
    mixture = isinstance(network, PixelCNNPP)
    values = 4 if mixture else network.num_values
    grid = np.array(list(itertools.product(range(values), repeat=int(np.prod(shape)))))
    classes = jnp.asarray(grid.reshape(-1, *shape))
    x = 2 * classes / (values - 1) - 1
    condition = Condition(jnp.ones((len(x), 2))) if conditional else None

    @jit
    def total(key):
        params = network.init(key, x, condition)
        params = jax.tree.map(
            lambda p: p + 0.5 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), params
        )
        outputs = network.apply(params, x, condition)
        if mixture:
            nats = mixture_of_logistics_nll(outputs, x, values)
        else:
            nats = categorical_nll(outputs, classes)
        return jnp.sum(jnp.exp(-nats)), jnp.std(nats)

    mass, spread = total(key)
    assert float(mass) == pytest.approx(1.0, abs=1e-5)
    assert float(spread) > 0.1  # and no uniform one


@pytest.mark.parametrize("network", [PixelCNN(3), GatedPixelCNN(3)])
def test_default_widths_take_colours(network, key):
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    logits, _ = jax.eval_shape(network.init_with_output, key, x)
    assert logits.shape == (2, 32, 32, 3, 256)


def test_label_weights_of_pixelcnnpp(key):
    """N(0, 0.05), as its authors' are."""
    network, x = PixelCNNPP(1, 64, 1, 1, 1), jnp.ones((1, 2, 2, 1))
    params = jit(network.init)(key, x, Condition(jnp.ones((1, 50))))["params"]
    kernel = params["vertical"]["down0_0"]["told"]["kernel"]
    assert float(kernel.std()) == pytest.approx(0.05, rel=0.05)


def test_dropout_only_in_training(key):
    network = PixelCNNPP(1, 4, 1, 1, 2, 0.5)
    x = jnp.zeros((1, 4, 4, 1))
    params = jit(network.init)(key, x + 0.1)
    run = jit(partial(network.apply, train=True))
    one, two = (run(params, x, rngs={"dropout": jax.random.key(k)}) for k in (0, 1))
    assert not np.array_equal(one, two)
    calm = jit(network.apply)
    np.testing.assert_array_equal(calm(params, x), calm(params, x))


def test_paper_sizes(key):
    """PixelCNN++ on CIFAR-10: its authors' network has 53 million parameters."""
    network = PixelCNNPP(3)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, key, x)["params"]
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert 50e6 < count < 56e6


@pytest.mark.parametrize(
    ("network", "shape", "message"),
    [
        (PixelCNN(1), (4, 4, 3), "images must have 1 channels, got 3"),
        (PixelCNN(3, features=4), (4, 4, 3), "num_groups must be from 1 to"),
        (GatedPixelCNN(1, kernel_size=2), (4, 4, 1), "kernel_size must be odd, got 2"),
        (GatedPixelCNN(1, dropout=1.0), (4, 4, 1), r"dropout must be in \[0, 1\), got 1.0"),
        (PixelCNNPP(1), (6, 6, 1), "3 levels need sides divisible by 4"),
        (PixelCNNPP(3), (8, 8, 1), "images must have 3 channels, got 1"),
        (PixelCNNPP(1, num_mixtures=0), (4, 4, 1), "num_mixtures must be at least 1, got 0"),
        (PixelCNNPP(1, dropout=-0.1), (4, 4, 1), "dropout must be"),
    ],
)
def test_bad_input(network, shape, message, key):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(network.init, key, jnp.zeros((1, *shape)))


def test_pixelcnn_takes_no_condition(key):
    condition = Condition(jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match="PixelCNN takes no condition"):
        jax.eval_shape(PixelCNN(1).init, key, jnp.zeros((1, 4, 4, 1)), condition)
