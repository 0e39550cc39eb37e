"""Every flow: a density that integrates to one, samples that have it, exact ways back."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.conditioning.base import Condition
from jaxgen.models.bijectors.algebra import Logit, chain
from jaxgen.models.bijectors.conditioners import MLP, ConvNet, ResNet
from jaxgen.models.bijectors.coupling import Affine, Coupling
from jaxgen.models.bijectors.made import MADE, MaskedDense
from jaxgen.models.bijectors.splines import Spline, neural_spline_flow
from jaxgen.models.glow import glow
from jaxgen.models.maf import iaf, maf
from jaxgen.models.realnvp import alternating, nice, realnvp, realnvp_image

KEY = jax.random.key(1, impl="rbg")  # compiles sooner than threefry
SMALL = (8,)


def disturbed(variables, scale):
    """Variables off the identity that `init` begins with; the fixed choices as they are."""
    rng = np.random.default_rng(5)
    move = lambda x: x + scale * rng.normal(size=x.shape).astype(np.float32)  # noqa: E731
    return {**variables, "params": jax.tree.map(move, variables["params"])}


# name -> (flow, width of the data)
VECTORS = {
    "nice": (nice(3, SMALL), 2),
    "realnvp": (realnvp(4, SMALL, bound=0.8), 2),
    "maf": (maf(2, SMALL, shuffle=True), 2),
    "maf of splines": (maf(1, SMALL, transform=Spline(4)), 2),
    "maf of one variable": (maf(1, SMALL), 1),
    "iaf": (iaf(2, SMALL), 2),
    "neural spline flow": (neural_spline_flow(2, SMALL, num_bins=4, remat=True), 2),
}


@pytest.mark.parametrize(
    ("name", "conditional"), [*((n, False) for n in VECTORS), ("realnvp", True), ("maf", True)]
)
def test_density(name, conditional):
    """Quadrature of exp(log p): 1 over the plane, the share of samples over each square."""
    flow, width = VECTORS[name]
    side, step = 12.0, 0.1 if width == 2 else 0.01
    axis = np.arange(-side + step / 2, side, step, np.float32)
    grid = np.stack(np.meshgrid(*[axis] * width, indexing="ij"), -1).reshape(-1, width)
    z = np.random.default_rng(2).normal(size=(20_000, width)).astype(np.float32)
    first = jax.random.normal(KEY, (64, width))

    def condition(num):
        vector = jnp.array([[1.0, -0.5]])
        return Condition(jnp.broadcast_to(vector, (num, 2))) if conditional else None

    @jax.jit
    def run(grid, z):
        variables = disturbed(flow.init(KEY, first, condition(64)), 0.3)
        latents, log_det = flow.apply(variables, grid, condition(len(grid)))
        log_prob = jnp.sum(jax.scipy.stats.norm.logpdf(latents), axis=1) + log_det
        samples, log_det_back = flow.apply(variables, z, condition(len(z)), method="inverse")
        again, log_det_again = flow.apply(variables, samples, condition(len(z)))
        return jnp.exp(log_prob), samples, again, log_det_back, log_det_again

    density, samples, again, log_det_back, log_det_again = jax.device_get(run(grid, z))
    mass = density.astype(np.float64) * step**width
    np.testing.assert_allclose(mass.sum(), 1, atol=0.01)
    edges = [np.linspace(-side, side, 25)] * width
    expected, _ = np.histogramdd(grid, edges, weights=mass)
    counts, _ = np.histogramdd(samples, edges)
    assert 0.5 * np.abs(counts / len(z) - expected).sum() < 0.04  # total variation
    assert expected.max() < 0.9  # or the comparison says nothing
    np.testing.assert_allclose(again, z, atol=1e-3)
    np.testing.assert_allclose(log_det_back, -log_det_again, atol=1e-3)


AUTHORS = {
    "coupling": "sigmoid",
    "lu": False,
    "bound": None,
    "edges": True,
    "log_scale_factor": 3.0,
}
IMAGES = {
    "glow, conditional, remat": (glow(2, 2, 4, remat=True), True),
    "glow, plain matrices, additive": (glow(1, 2, 4, lu=False, coupling="additive"), False),
    "realnvp": (
        chain(Logit(), realnvp_image(2, 4, 1, num_couplings=1, num_last=2)),
        False,
    ),
    "glow, as its authors'": (glow(2, 2, 4, remat=True, **AUTHORS), True),
    "realnvp, as its authors'": (
        chain(
            Logit(),
            realnvp_image(2, 4, 1, num_couplings=1, num_last=2, skips=True, diagonal=True),
        ),
        False,
    ),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if "authors" in n else n for n in IMAGES],
)
def test_image_flows(name):
    """There and back, log-det equal to the Jacobian's, latents of the image's size."""
    flow, conditional = IMAGES[name]
    x = jax.random.uniform(KEY, (8, 4, 4, 1), minval=0.1, maxval=0.9)
    condition = Condition(jnp.linspace(-1, 1, 16).reshape(8, 2)) if conditional else None

    def row(latents):
        return jnp.concatenate([z.reshape(z.shape[0], -1) for z in latents], axis=1)

    @jax.jit
    def run(x):
        variables = disturbed(flow.init(KEY, x, condition), 0.05)

        def forward(x):
            return flow.apply(variables, x, condition)

        (latents, log_det), pull = jax.vjp(forward, x)
        back, log_det_back = flow.apply(variables, latents, condition, method="inverse")

        def first_row(cotangent):
            """A row of the first example's Jacobian, which other examples do not enter."""
            parts = jnp.split(cotangent, np.cumsum([z[0].size for z in latents])[:-1])
            tree = tuple(
                jnp.zeros_like(z).at[0].set(p.reshape(z.shape[1:]))
                for z, p in zip(latents, parts, strict=True)
            )
            return pull((tree, jnp.zeros_like(log_det)))[0]

        jacobian = jax.lax.map(first_row, jnp.eye(16))
        return row(latents), log_det, back, log_det_back, jacobian

    latents, log_det, back, log_det_back, jacobian = jax.device_get(run(x))
    assert latents.shape == (8, 16)
    np.testing.assert_allclose(back, x, atol=1e-4)
    np.testing.assert_allclose(log_det, -log_det_back, atol=1e-3)
    assert not jacobian[:, 1:].any()
    expected = np.linalg.slogdet(jacobian[:, 0].reshape(16, 16).astype(np.float64))[1]
    np.testing.assert_allclose(log_det[0], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (MLP(3, SMALL), (4,)),
        (ConvNet(3, 4), (4, 4, 2)),
        (ConvNet(3, 4, edges=True, log_scale_factor=3.0), (4, 4, 2)),
        (ResNet(3, 4, 1), (4, 4, 2)),
    ],
)
def test_conditioners(network, shape):
    """They start at zero; once off it, they hear the condition."""
    x = jax.random.normal(KEY, (4, *shape))
    one_hot, others = Condition(jnp.eye(4)), Condition(1 - jnp.eye(4))

    @jax.jit
    def run(x):
        start, variables = network.init_with_output(KEY, x, one_hot)
        moved = disturbed(variables, 0.3)
        return start, network.apply(moved, x, one_hot), network.apply(moved, x, others)

    start, one, two = run(x)
    assert start.shape == (*x.shape[:-1], 3)
    assert not start.any()
    assert not np.isclose(one, two).all()


@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("conditional", [False, True])
def test_made_is_autoregressive(width, conditional):
    """Output i has a gradient in inputs 0..i-1, every one of them, and in no other."""
    network = MADE(2, (16, 16))
    x = jax.random.normal(KEY, (1, width))
    condition = Condition(jnp.ones((1, 2))) if conditional else None

    @jax.jit
    def run(x):
        variables = disturbed(network.init(KEY, x, condition), 0.5)
        by_x = jax.jacrev(lambda x: network.apply(variables, x, condition)[0])(x)[:, :, 0]
        if condition is None:
            return by_x, None
        by_condition = jax.jacrev(lambda c: network.apply(variables, x, c)[0])(condition)
        return by_x, by_condition.vector[:, :, 0]

    by_x, by_vector = run(x)
    earlier = np.tri(width, k=-1, dtype=bool)
    np.testing.assert_array_equal(np.asarray(by_x) != 0, np.stack([earlier] * 2))
    assert by_vector is None or (np.asarray(by_vector) != 0).all()


@pytest.mark.parametrize("diagonal", [False, True])
def test_what_realnvp_factors_out(diagonal):
    """The pixels off each block's diagonal, or the odd rows: read off where it is the identity."""
    flow = realnvp_image(2, 4, 1, num_couplings=1, num_last=1, diagonal=diagonal)
    x = jax.random.normal(KEY, (2, 4, 4, 3))

    @jax.jit
    def run(x):
        nothing = jax.tree.map(jnp.zeros_like, flow.init(KEY, x))
        return flow.apply(nothing, x)[0]

    z, kept = run(x)
    block = {(i, j): x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)}
    stays, goes = ((0, 0), (1, 1)), ((0, 1), (1, 0))
    if not diagonal:
        stays, goes = ((0, 0), (0, 1)), ((1, 0), (1, 1))
    np.testing.assert_array_equal(kept, np.concatenate([block[p] for p in stays], axis=-1))
    np.testing.assert_array_equal(z, np.concatenate([block[p] for p in goes], axis=-1))


def test_log_scales_of_realnvp_start_by_kind():
    """In the authors' form at 0 under checkerboards, at their full size under channel masks."""
    flow = realnvp_image(2, 4, 1, skips=True)
    boards, _, halves = flow.levels[0].bijectors
    starts = [c.step.conditioner.keywords["rescaling"] for c in (boards, halves, flow.levels[1])]
    assert starts == [0, 1, 0]


def test_glow_as_its_authors_starts_as_theirs():
    """Each coupling scales by sigmoid(2); normalized inputs keep deviation 1 until then."""
    flow = glow(1, 1, 4, **AUTHORS)
    x = 3 * jax.random.normal(KEY, (64, 4, 4, 3)) + 2
    ((z,), _), _ = jax.jit(flow.init_with_output)(KEY, x)
    channels = np.asarray(z).reshape(-1, 12)
    # A rotation of normalized channels has mean 0, and in all 12 times variance 1.
    np.testing.assert_allclose(channels.mean(axis=0), 0, atol=1e-5)
    moved = channels[:, 6:] / 0.880797
    total = np.var(channels[:, :6], axis=0).sum() + np.var(moved, axis=0).sum()
    np.testing.assert_allclose(total, 12, rtol=1e-4)


def test_nice_scales_all_examples_alike():
    """Its couplings keep volumes; only the last scaling does not."""
    x = jax.random.normal(KEY, (8, 3))
    run = jax.jit(lambda x: nice(2, SMALL).apply(disturbed(nice(2, SMALL).init(KEY, x), 0.3), x))
    y, log_det = run(x)
    assert not np.allclose(y, x)
    assert log_det[0] != 0
    np.testing.assert_array_equal(log_det, log_det[0])


def test_deep_stacks_hold_one_step():
    """Parameters are stacked; the program does not grow with the depth."""
    x = jnp.zeros((2, 4))

    def length(num):
        flow = realnvp(num, SMALL)
        variables = jax.eval_shape(flow.init, KEY, x)
        assert {leaf.shape[0] for leaf in jax.tree.leaves(variables)} == {num}
        return len(jax.jit(flow.apply).lower(variables, x).as_text())

    assert length(64) < 1.05 * length(4)


@pytest.mark.parametrize(
    ("mask", "network", "shape"),
    [
        ("halves", MLP, (4,)),
        ("halves", MLP, (3,)),
        ("checkerboard", partial(ResNet, width=4, num_blocks=1), (3, 2, 2)),
    ],
)
def test_alternating_couplings_equal_the_unrolled_ones(mask, network, shape):
    """Every other one has its mask turned over, sizes that two does not divide included."""
    x = jax.random.normal(KEY, (4, *shape))
    couplings = alternating(3, network, Affine(), mask, normalize=False)

    @jax.jit
    def run(x):
        variables = disturbed(couplings.init(KEY, x), 0.1)
        y = x
        for i in range(3):
            inner = jax.tree.map(lambda leaf, i=i: leaf[i], variables["params"]["step"])
            one = {"params": inner["Coupling_0"]}
            y, _ = Coupling(network, Affine(), mask, swap=i % 2 == 1).apply(one, y)
        looped, _ = couplings.apply(variables, x)
        back, _ = couplings.apply(variables, looped, method="inverse")
        return y, looped, back

    expected, looped, back = run(x)
    np.testing.assert_allclose(looped, expected, atol=1e-5)
    np.testing.assert_allclose(back, x, atol=1e-4)
    assert (np.abs(looped - x).max(axis=0) > 1e-3).all()  # nothing passed them all


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: realnvp(0), "num_couplings must be at least 1, got 0"),
        (lambda: realnvp_image(0), "num_levels must be at least 1, got 0"),
        (lambda: glow(0), "num_levels must be at least 1, got 0"),
        (lambda: glow(coupling="linear"), "coupling must be one of .* got 'linear'"),
        (lambda: glow(log_scale_factor=0.0), "log_scale_factor must be positive, got 0.0"),
        (lambda: jax.eval_shape(maf(0).init, KEY, jnp.zeros((2, 2))), "num must be at least 1"),
        (
            lambda: jax.eval_shape(realnvp().init, KEY, jnp.zeros((2, 1))),
            "needs 2 channels or more",
        ),
        (
            lambda: jax.eval_shape(glow(1, 1, 4).init, KEY, jnp.zeros((1, 3, 4, 1))),
            "height and width must be even, got x of shape",
        ),
        (
            lambda: jax.eval_shape(MaskedDense(np.ones((3, 2), bool)).init, KEY, jnp.zeros((1, 4))),
            r"mask must be \[4, features\]",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
