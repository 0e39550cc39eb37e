"""Every bijector through the same table of checks; then what each promises by itself."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import TypeCheckError

from jaxgen.conditioning.base import Condition, vector_of
from jaxgen.models.bijectors import algebra as bij
from jaxgen.models.bijectors.conditioners import MLP
from jaxgen.models.bijectors.coupling import (
    Additive,
    Affine,
    Coupling,
    LearnedPrior,
    ShiftScale,
    Split,
    checkerboard,
)
from jaxgen.models.bijectors.linear import InvertibleLinear, check_invertible
from jaxgen.models.bijectors.made import MADE, MaskedAutoregressive
from jaxgen.models.bijectors.splines import Spline

BATCH = 4
VECTOR, IMAGE = (5,), (4, 4, 2)
mlp = partial(MLP, hidden=(8,))
ODD = np.array([True, False, False, True, False])


class Pixels(nn.Module):
    """A conditioner of images that compiles in no time: each pixel sees itself and a neighbour."""

    features: int

    @nn.compact
    def __call__(self, x, condition=None):
        e = vector_of(condition)
        h = nn.Dense(6)(jnp.concatenate([x, jnp.roll(x, 1, axis=1)], -1))
        h = nn.tanh(h if e is None else h + nn.Dense(6)(e)[:, None, None])
        return nn.Dense(self.features, kernel_init=nn.initializers.zeros)(h)


# name -> (bijector, shape of an example, takes a condition: None for always)
TABLE = {
    "actnorm": (bij.ActNorm(), IMAGE, False),
    "actnorm, factor": (bij.ActNorm(log_scale_factor=3.0), VECTOR, False),
    "linear, lu": (InvertibleLinear(), VECTOR, False),
    "linear, plain": (InvertibleLinear(lu=False), IMAGE, False),
    "reverse": (bij.Reverse(), VECTOR, False),
    "permute": (bij.Permute(), VECTOR, False),
    "squeeze": (bij.Squeeze(), IMAGE, False),
    "squeeze, channels": (bij.Squeeze("channels"), IMAGE, False),
    "squeeze, diagonal": (bij.Squeeze("diagonal"), IMAGE, False),
    "logit": (bij.Logit(0.1), VECTOR, False),
    "prior": (LearnedPrior(), IMAGE, True),
    "prior, edges": (LearnedPrior(ShiftScale(), edges=True, log_scale_factor=3.0), IMAGE, True),
    "coupling, additive": (Coupling(mlp, Additive()), VECTOR, False),
    "coupling, affine": (Coupling(mlp, Affine(), swap=True), VECTOR, True),
    "coupling, shift and scale": (Coupling(mlp, ShiftScale()), VECTOR, False),
    "coupling, sigmoid": (Coupling(Pixels, ShiftScale(sigmoid=True)), IMAGE, False),
    "coupling, any mask": (Coupling(mlp, mask=ODD), VECTOR, False),
    "coupling, spline": (Coupling(mlp, Spline(4)), VECTOR, False),
    "coupling, checkerboard": (
        Coupling(Pixels, mask="checkerboard", swap=True),
        IMAGE,
        True,
    ),
    "coupling, channels": (Coupling(Pixels), IMAGE, False),
    "split": (Split(Pixels), IMAGE, False),
    "maf": (MaskedAutoregressive(hidden=(8, 8)), VECTOR, True),
    "iaf": (bij.Invert(MaskedAutoregressive(hidden=(8,))), VECTOR, True),
    "repeat": (
        bij.Repeat(bij.chain(bij.ActNorm(), InvertibleLinear(), bij.Permute()), 2),
        VECTOR,
        False,
    ),
    "repeat, remat": (bij.Repeat(Coupling(mlp), 2, remat=True), VECTOR, None),
    "multi-scale": (
        bij.MultiScale((bij.Squeeze(), bij.chain(bij.ActNorm(), bij.Squeeze())), (Split(),)),
        IMAGE,
        False,
    ),
}
KINDS = {False: [False], True: [False, True], None: [True]}
CASES = [(name, conditional) for name, row in TABLE.items() for conditional in KINDS[row[2]]]

KEY = jax.random.key(1, impl="rbg")  # compiles sooner than threefry


def data(shape, seed=0, dtype=jnp.float32):
    """In (0, 1), where every bijector is defined."""
    return jax.random.uniform(jax.random.key(seed), (BATCH, *shape), dtype, 0.05, 0.95)


def condition_of(conditional, sign=1):
    if not conditional:
        return None
    return Condition(sign * jnp.linspace(-1, 1, 3 * BATCH).reshape(BATCH, 3))


def disturbed(variables, scale=0.3):
    """Variables off the identity that `init` begins with; the fixed choices as they are."""
    leaves, treedef = jax.tree.flatten(variables.get("params", {}))
    rng = np.random.default_rng(9)
    moved = [x + scale * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    return {**variables, "params": jax.tree.unflatten(treedef, moved)}


def row(y):
    """A tree of latents as one row for each example."""
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(y)], 1)


@cache
def examination(name, conditional):
    """`(scale, x, condition) -> everything the checks need`, compiled once."""
    bijector, shape, _ = TABLE[name]

    @jax.jit
    def run(scale, x, condition):
        first = bijector.init(KEY, data(shape), condition_of(conditional))
        variables = disturbed(first, scale)

        def round_trips(params, x):
            v = {**variables, "params": params}
            y, log_det = bijector.apply(v, x, condition, method="forward")
            back, log_det_back = bijector.apply(v, y, condition, method="inverse")
            other = jax.tree.map(lambda z: 0.8 * z + 0.1, y)  # latents of no data
            its_data, log_det_of_it = bijector.apply(v, other, condition, method="inverse")
            again, log_det_again = bijector.apply(v, its_data, condition)
            seen = {
                "y": row(y),
                "log_det": log_det,
                "there and back": (row(back), row(x)),
                "log-dets of there and back": (log_det, -log_det_back),
                "back and there": (row(again), row(other)),
                "log-dets of back and there": (log_det_of_it, -log_det_again),
            }
            return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(seen)), seen

        def forward(x):
            one = jax.tree.map(lambda v: v[:1], condition)
            return row(bijector.apply(variables, x[None], one)[0])[0]

        gradient = jax.grad(round_trips, argnums=(0, 1), has_aux=True)
        gradients, seen = gradient(variables["params"], x)
        jacobian = jax.jacrev(forward)(x[0]).reshape(x[0].size, x[0].size)
        return {**seen, "gradients": gradients, "jacobian": jacobian}

    return lambda scale, x, condition=None: jax.device_get(run(jnp.float32(scale), x, condition))


@pytest.mark.parametrize(("name", "conditional"), CASES)
def test_every_bijector(name, conditional):
    """Inverse both ways, log-det equal to the Jacobian's, finite gradients."""
    x, condition = data(TABLE[name][1]), condition_of(conditional)
    seen = examination(name, conditional)(0.3, x, condition)
    assert seen["log_det"].shape == (BATCH,)
    for pair in ("there and back", "back and there"):
        np.testing.assert_allclose(*seen[pair], atol=2e-5, rtol=1e-5, err_msg=pair)
        np.testing.assert_allclose(*seen[f"log-dets of {pair}"], atol=1e-4, err_msg=pair)
    expected = np.linalg.slogdet(seen["jacobian"].astype(np.float64))[1]
    np.testing.assert_allclose(seen["log_det"][0], expected, atol=2e-4)
    for leaf in jax.tree.leaves(seen["gradients"]):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("name", ["linear, lu", "coupling, affine", "coupling, spline", "maf"])
def test_float64(name):
    """With 64-bit data all is 64-bit, and a hundred thousand times more exact."""
    bijector, shape, _ = TABLE[name]
    with jax.enable_x64(True):
        x = data(shape, dtype=jnp.float64)

        @jax.jit
        def run(x):
            variables = disturbed(bijector.init(KEY, x))
            y, log_det = bijector.apply(variables, x)
            return y, log_det, *bijector.apply(variables, y, method="inverse")

        y, log_det, back, log_det_back = run(x)
        assert y.dtype == log_det.dtype == back.dtype == jnp.float64
        np.testing.assert_allclose(back, x, atol=1e-11)
        np.testing.assert_allclose(log_det, -log_det_back, atol=1e-11)


@pytest.mark.parametrize(
    "name",
    [
        "actnorm",
        "linear, lu",
        "logit",
        "coupling, affine",
        "coupling, spline",
        "maf",
        "iaf",
        "split",
    ],
)
@pytest.mark.parametrize("size", [1e6, -1e6])
def test_far_outside(name, size):
    """Inputs of a million: finite values and gradients both ways, and the same inputs again."""
    usual = data(TABLE[name][1])
    far = jnp.where(jnp.arange(usual.size).reshape(usual.shape) % 3 == 0, size, usual)
    seen = examination(name, False)(0.1, far)
    for leaf in jax.tree.leaves(seen):
        assert np.isfinite(leaf).all()
    if name != "logit":  # which is not defined there
        np.testing.assert_allclose(*seen["there and back"], rtol=1e-4, atol=5.0)


@pytest.mark.parametrize("name", [name for name, conditional in CASES if conditional])
def test_condition_is_heard(name):
    """By every variable that moves; in MADE by the first one too."""
    x = data(TABLE[name][1])
    one, two = (examination(name, True)(0.3, x, condition_of(True, s))["y"] for s in (1, -1))
    moved = (one != np.asarray(row(x))).any(axis=0)
    assert not np.isclose(one, two)[:, moved].any()


def test_logit_at_the_ends():
    """1 - p of a p near 1 has few digits left in float32: 13.8023."""
    x = jnp.array([[0.0, 1e-6, 0.5, 1 - 1e-6, 1.0]])
    (y, _), _ = bij.Logit(1e-6).init_with_output(KEY, x)
    p = 1e-6 + (1 - 2e-6) * np.asarray(x, np.float64)
    np.testing.assert_allclose(y, np.log(p) - np.log1p(-p), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(y[0, [0, -1]], [-13.8155, 13.8155], atol=1e-4)


@pytest.mark.parametrize(("hidden", "conditional"), [((3, 5), False), ((1,), True)])
def test_a_narrow_made_ignores_no_input(hidden, conditional):
    """Every input but the last conditions some output, and only outputs after it."""
    width, condition = 12, jax.tree.map(lambda v: v[:1], condition_of(conditional, 1))
    network = MADE(2, hidden)
    x = jax.random.normal(jax.random.key(0), (1, width))
    params = jax.jit(network.init)(KEY, x, condition)
    leaves, treedef = jax.tree.flatten(params)
    params = treedef.unflatten([jnp.cos(jnp.arange(p.size)).reshape(p.shape) for p in leaves])
    outputs = jax.jit(lambda x: network.apply(params, x, condition)[0].sum(axis=0))
    jacobian = jax.jacrev(outputs)(x)[:, 0]
    depends = np.asarray(jacobian) != 0  # [output, input]
    assert not np.triu(depends).any()
    assert depends.any(axis=0)[:-1].all()
    assert depends.any(axis=1)[-1]


@pytest.mark.parametrize(
    ("order", "places"),
    [
        ("pixels", [(i, j, c) for i in (0, 1) for j in (0, 1) for c in (0, 1, 2)]),
        ("channels", [(i, j, c) for c in (0, 1, 2) for i in (0, 1) for j in (0, 1)]),
        ("diagonal", [(*p, c) for p in [(0, 0), (1, 1), (0, 1), (1, 0)] for c in (0, 1, 2)]),
    ],
)
def test_orders_of_squeezed_channels(order, places):
    x = jnp.arange(4 * 4 * 3.0).reshape(1, 4, 4, 3)
    y, _ = bij.Squeeze(order).apply({}, x)
    for k, (i, j, c) in enumerate(places):
        np.testing.assert_array_equal(y[..., k], x[:, i::2, j::2, c])
    np.testing.assert_array_equal(bij.Squeeze(order).apply({}, y, method="inverse")[0], x)


def test_shift_scale_at_known_values():
    """Parameters (0, 0): slope 1, or as a sigmoid 0.8808; shifted first; the scale has no bound."""
    x, zero = jnp.array([[2.0]]), jnp.zeros((1, 2, 1))
    for sigmoid, slope in ((False, 1.0), (True, 0.880797)):
        y, log_slope = ShiftScale(sigmoid)(x, zero)
        np.testing.assert_allclose(y, 2 * slope, rtol=1e-6)
        np.testing.assert_allclose(log_slope, np.log(slope), rtol=1e-5, atol=1e-7)
    raw = jnp.array([[[-1.5], [5.0]]])
    np.testing.assert_allclose(ShiftScale()(x, raw)[0], 0.5 * np.exp(5), rtol=1e-6)
    y, log_slope = ShiftScale(sigmoid=True)(x, raw)
    np.testing.assert_allclose(y, 0.5 / (1 + np.exp(-7.0)), rtol=1e-6)
    back, log_slope_back = ShiftScale(sigmoid=True)(y, raw, reverse=True)
    np.testing.assert_allclose((back, log_slope_back), (x, -log_slope), rtol=1e-6)


def test_a_factor_moves_log_scales_further():
    """The same scale of a third of the parameter."""
    x = 5 * jax.random.normal(jax.random.key(0), (64, 2))
    for factor in (1.0, 3.0):
        norm = bij.ActNorm(log_scale_factor=factor)
        (_, log_det), variables = norm.init_with_output(KEY, x)
        log_scale = variables["params"]["log_scale"]
        np.testing.assert_allclose(factor * log_scale, -np.log(x.std(axis=0)), rtol=1e-5)
        np.testing.assert_allclose(log_det, factor * log_scale.sum(), rtol=1e-5)


def test_actnorm_normalizes_in_the_direction_of_init():
    x = 5 * jax.random.normal(jax.random.key(0), (64, 3, 3, 2)) + jnp.array([[[[7.0, -2.0]]]])
    fast = bij.ActNorm(log_scale_factor=3.0)
    for bijector in (bij.ActNorm(), bij.Invert(bij.ActNorm()), fast, bij.Invert(fast)):
        (y, log_det), _ = bijector.init_with_output(KEY, x)
        np.testing.assert_allclose(np.mean(y, axis=(0, 1, 2)), 0, atol=1e-5)
        np.testing.assert_allclose(np.std(y, axis=(0, 1, 2)), 1, atol=1e-5)
        scale = np.std(np.asarray(x), axis=(0, 1, 2))
        np.testing.assert_allclose(log_det, -9 * np.sum(np.log(scale)), rtol=1e-4)


def test_actnorm_of_a_constant_channel_is_finite():
    (y, log_det), _ = bij.ActNorm().init_with_output(jax.random.key(1), jnp.ones((8, 2)))
    assert np.isfinite(y).all()
    assert np.isfinite(log_det).all()


def test_every_step_of_a_loop_is_initialized_on_its_own_input():
    """After `init` the output of each ActNorm is normalized, the stacked parameters show."""
    x = 4 * jax.random.normal(jax.random.key(0), (64, 4)) ** 2 + 3
    step = bij.chain(Coupling(mlp), InvertibleLinear(), bij.ActNorm())
    loop = bij.Repeat(step, 3)
    (y, _), variables = jax.jit(loop.init_with_output)(KEY, x)
    apply = jax.jit(step.apply)
    np.testing.assert_allclose(np.std(y, axis=0), 1, atol=1e-4)
    for i in range(3):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], variables)
        one = {c: tree["step"] for c, tree in one.items()}
        x, _ = apply(one, x)
        np.testing.assert_allclose(np.mean(x, axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(np.std(x, axis=0), 1, atol=1e-4)
    np.testing.assert_allclose(x, y, atol=1e-5)  # and the loop is the steps one by one
    triangles = variables["params"]["step"]["bijectors_1"]["triangles"]
    assert not np.allclose(triangles[0], triangles[1])


def test_initialization_on_eight_devices_equals_one():
    x = np.asarray(3 * jax.random.normal(jax.random.key(0), (32, 4, 4, 2)) + 1)
    loop = bij.Repeat(bij.chain(bij.ActNorm(), InvertibleLinear(), Coupling(Pixels)), 2)
    results = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = jax.sharding.Mesh(np.array(devices), ("data",))
        placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        replicated = NamedSharding(mesh, PartitionSpec())
        results.append(jax.device_get(jax.jit(loop.init, out_shardings=replicated)(KEY, placed)))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), *results)
    log_scale = results[1]["params"]["step"]["bijectors_0"]["log_scale"][0]
    np.testing.assert_allclose(log_scale, -np.log(x.std(axis=(0, 1, 2))), atol=1e-4)


def test_couplings_pass_what_the_mask_says():
    x = data(IMAGE)
    board = np.broadcast_to(checkerboard(4, 4), IMAGE)
    for mask, swap, passes in (
        ("checkerboard", False, board),
        ("checkerboard", True, ~board),
        ("halves", False, np.broadcast_to([True, False], IMAGE)),
        (checkerboard(4, 4), False, board),
    ):
        coupling = Coupling(Pixels, mask=mask, swap=swap)
        variables = disturbed(jax.jit(coupling.init)(KEY, x))
        changed = np.asarray(jax.jit(coupling.apply)(variables, x)[0] != x)
        np.testing.assert_array_equal(changed, np.broadcast_to(~passes, changed.shape))


@pytest.mark.parametrize("transform", [Additive(), Affine(), Spline(4)])
def test_couplings_start_as_the_identity(transform):
    x = data(VECTOR)
    init = jax.jit(Coupling(mlp, transform).init_with_output)
    (y, log_det), _ = init(KEY, x)
    np.testing.assert_allclose(y, x, atol=1e-6)
    np.testing.assert_allclose(log_det, 0, atol=1e-4)


def test_affine_scale_is_bounded():
    raw = jnp.array([[[0.0], [1e9]], [[0.0], [-1e9]]])
    y, log_slope = Affine(2.0)(jnp.ones((2, 1)), raw)
    np.testing.assert_allclose(log_slope[:, 0], [2, -2])
    np.testing.assert_allclose(y[:, 0], np.exp([2, -2]), rtol=1e-6)


def test_squeeze_order():
    """Row by row, the block's pixels side by side."""
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    y, _ = bij.Squeeze().apply({}, x)
    np.testing.assert_array_equal(y[0, 0, 1], [2, 3, 6, 7])


def test_check_invertible():
    x = data(VECTOR)
    plain = jax.jit(bij.Repeat(InvertibleLinear(lu=False), 2).init)(KEY, x)["params"]
    product = jax.jit(InvertibleLinear().init)(KEY, x)["params"]
    check_invertible({"flow": plain, "other": product})
    matrix = np.array(plain["step"]["matrix"])
    matrix[1, :, 0] = matrix[1, :, 1]
    with pytest.raises(ValueError, match=r"flow/step/matrix is singular.*condition number"):
        check_invertible({"flow": {"step": {"matrix": matrix}}})
    bad = {**product, "log_scale": jnp.full(5, jnp.inf)}
    with pytest.raises(ValueError, match="log_scale holds values that are not finite"):
        check_invertible(bad)


@pytest.mark.parametrize(
    ("bijector", "shape", "message"),
    [
        (bij.Squeeze(), (3, 4, 1), r"height and width must be even, got x of shape \(4, 3, 4, 1\)"),
        (bij.Invert(bij.Squeeze()), (4, 4, 3), "channels must be divisible by 4"),
        (Split(), (4, 4, 3), "channels must be even"),
        (Coupling(mlp), (1,), "mask 'halves' needs 2 channels"),
        (Coupling(mlp, mask="checkers"), VECTOR, "mask must be 'halves', 'checkerboard' or"),
        (Coupling(mlp, mask="checkerboard"), VECTOR, "mask 'checkerboard' needs images"),
        (Coupling(mlp, mask=np.ones(4, bool)), VECTOR, r"mask must be bools.*\[5\], got bool\[4\]"),
        (Coupling(mlp, mask=np.ones(5)), VECTOR, "mask must be bools"),
        (Coupling(mlp, mask=np.ones(5, bool)), VECTOR, "mask must let some variables pass"),
        (bij.Repeat(bij.ActNorm(), 0), VECTOR, "num must be at least 1, got 0"),
        (bij.Chain(()), VECTOR, "bijectors must hold at least one"),
        (bij.Logit(0.5), VECTOR, r"alpha must lie in \(0, 0.5\), got 0.5"),
        (bij.MultiScale((bij.Squeeze(),), (Split(),)), IMAGE, "splits must be one fewer"),
    ],
)
def test_bad_input(bijector, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(bijector.init, KEY, data(shape))


def test_more_bad_input():
    with pytest.raises(ValueError, match="bound must be positive"):
        Affine(0.0)
    pyramid = bij.MultiScale((bij.Squeeze(), bij.Squeeze()), (Split(),))
    with pytest.raises(ValueError, match="y must be 2 latents, got 1"):
        pyramid.apply({}, (data(IMAGE),), method="inverse")
    with pytest.raises(TypeCheckError):
        bij.Squeeze().init(jax.random.key(0), data(VECTOR))
