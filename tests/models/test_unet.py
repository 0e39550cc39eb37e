"""The U-Net: the paper's network at the defaults, and equal to an independent implementation."""

from functools import partial
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit, lax

from jaxgen.conditioning.base import Condition
from jaxgen.models.unet import UNet, iddpm

# The networks here are tiny and run once: what takes time is compiling them.

SMALL: dict[str, Any] = {
    "channels": 8,
    "multipliers": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (4,),
}


def inputs(size=8, channels=3, batch=2):
    x = np.random.default_rng(5).normal(size=(batch, size, size, channels))
    return jnp.asarray(x, jnp.float32), jnp.asarray(np.arange(batch) * 300 + 5)


def one_hot(*labels, num_classes=3):
    """The condition of these classes, None for none."""
    hot = [np.eye(num_classes)[label] if label is not None else 0 for label in labels]
    return Condition(jnp.asarray(np.stack(np.broadcast_arrays(*hot)), jnp.float32))


def shapes_of(model, *args):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), *args, train=False))["params"]


def run(model, params, *args, **kwargs):
    """`model.apply`, compiled: op by op it takes far longer."""
    kwargs = {"train": False, **kwargs}
    return jit(lambda p: model.apply(p, *args, **kwargs))(params)


def randomized(model, *args):
    """Random parameters: at initialization the residual branches and the output are near zero."""
    rng = np.random.default_rng(1)
    draw = lambda leaf: 0.2 * rng.normal(size=leaf.shape).astype(np.float32)  # noqa: E731
    return {"params": jax.tree.map(draw, shapes_of(model, *args))}


def test_the_defaults_are_the_papers_network():
    shapes = shapes_of(UNet(), jnp.zeros((1, 32, 32, 3)), jnp.zeros(1, jnp.int32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 35_746_307
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
    attentions = {name for name in shapes if "attention" in name}
    assert attentions == {"mid_attention"} | {
        *(f"down1_attention{i}" for i in range(2)),
        *(f"up1_attention{i}" for i in range(3)),
    }


def test_the_network_of_improved_ddpm():
    """As many parameters as the authors' own code counts; a learned variance."""
    x, t = jnp.zeros((1, 32, 32, 3)), jnp.zeros(1)
    shapes = jax.eval_shape(lambda: iddpm().init_with_output(jax.random.key(0), x, t, train=False))
    assert shapes[0].shape == (1, 32, 32, 6)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes[1])) == 52_546_438


@pytest.mark.parametrize(
    ("fields", "size", "image_channels", "out"),
    [
        ({}, 8, 3, 3),
        ({"out_channels": 2}, 4, 1, 2),
        ({"multipliers": (1,)}, 5, 1, 1),
        ({"multipliers": (1, 1, 2), "num_heads": 2}, 8, 2, 2),
    ],
)
def test_shapes_and_dtype(fields, size, image_channels, out):
    model = UNet(**{**SMALL, **fields})
    x, t = inputs(size, image_channels)
    y = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x, t, train=False)[0])
    assert (y.shape, y.dtype) == ((2, size, size, out), jnp.float32)


def test_an_oblong_image_passes():
    x = jnp.zeros((1, 4, 8, 1))
    t = jnp.zeros(1, int)
    y = jax.eval_shape(
        lambda: UNet(**SMALL).init_with_output(jax.random.key(0), x, t, train=False)[0]
    )
    assert y.shape == x.shape


@pytest.mark.slow
def test_bfloat16_computes_near_float32_and_returns_float32():
    x, t = inputs()
    params = randomized(UNet(**SMALL), x, t)
    y = run(UNet(**SMALL), params, x, t)
    low = run(UNet(**SMALL, dtype=jnp.bfloat16), params, x, t)
    assert low.dtype == jnp.float32
    low_model = UNet(**SMALL, dtype=jnp.bfloat16)
    _, state = jax.eval_shape(
        lambda: low_model.apply(params, x, t, train=False, capture_intermediates=True)
    )
    inner = {k: v for k, v in state["intermediates"].items() if k != "__call__"}
    exact = {"time1", "time2", "conv_in", "conv_out", "norm_out"}
    assert {k for k, v in inner.items() if jax.tree.leaves(v)[0].dtype == jnp.float32} == exact
    error = float(jnp.linalg.norm(low - y) / jnp.linalg.norm(y))
    assert 1e-5 < error < 0.05


@pytest.mark.slow
def test_dropout_acts_in_training_only():
    x, t = inputs()
    model = UNet(**SMALL, dropout=0.5)
    params = randomized(model, x, t)

    @partial(jit, static_argnums=1)
    def dropped(key, train):
        return model.apply(params, x, t, train=train, rngs={"dropout": key})

    one, two = jax.random.key(1), jax.random.key(2)
    np.testing.assert_array_equal(dropped(one, True), dropped(one, True))
    assert np.any(np.asarray(dropped(one, True)) != np.asarray(dropped(two, True)))
    np.testing.assert_array_equal(dropped(one, False), dropped(two, False))
    undropped = run(UNet(**SMALL, dropout=0.0), params, x, t, train=True)
    np.testing.assert_allclose(undropped, dropped(one, False), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_every_level_knows_the_time():
    """Each block's time projection moves the output: no normalization takes it away again."""
    x, t = inputs()
    model = UNet(**SMALL)
    params = randomized(model, x, t)
    square = lambda p: jnp.sum(model.apply(p, x, t, train=False) ** 2)  # noqa: E731
    grads = jit(jax.grad(square))(params)["params"]
    blocks = [name for name in grads if "block" in name]
    assert len(blocks) == 2 + 2 + 4
    for name in blocks:
        own, conv = (np.linalg.norm(grads[name][part]["kernel"]) for part in ("time", "conv1"))
        assert own > 1e-3 * conv, name


def test_condition():
    x, t = inputs()
    model = UNet(**SMALL)
    params = randomized(model, x, t, one_hot(0, None))
    apply = jit(lambda condition: model.apply(params, x, t, condition, train=False))
    y, other = np.asarray(apply(one_hot(0, None))), np.asarray(apply(one_hot(1, None)))
    assert np.any(y[0] != other[0])
    np.testing.assert_allclose(y[1], other[1], rtol=1e-5, atol=1e-5)
    # Zeros, no condition, leave the embedding of the time alone; a wrong class is no number.
    np.testing.assert_allclose(y[1], run(model, params, x, t)[1], rtol=1e-5, atol=1e-5)
    assert np.isnan(apply(Condition(jnp.full((2, 3), jnp.nan)))).all()


def test_only_a_condition_adds_parameters():
    x, t = inputs()
    plain, conditional = (
        shapes_of(UNet(**SMALL), x, t),
        shapes_of(UNet(**SMALL), x, t, one_hot(0, 2)),
    )
    assert conditional.keys() - plain.keys() == {"condition"}
    assert jax.tree.map(np.shape, conditional["condition"]) == {"kernel": (3, 32)}
    same = {name: leaf for name, leaf in conditional.items() if name != "condition"}
    assert jax.tree.map(np.shape, same) == jax.tree.map(np.shape, plain)


def test_examples_do_not_mix():
    x, t = inputs(batch=3)
    params = randomized(UNet(**SMALL), x, t)
    second = lambda x: UNet(**SMALL).apply(params, x, t, train=False)[1].sum()  # noqa: E731
    jacobian = np.asarray(jit(jax.grad(second))(x))
    assert np.all(jacobian[[0, 2]] == 0)
    assert np.all(np.any(jacobian[1] != 0, axis=-1))


@pytest.mark.slow
def test_starts_near_zero_and_all_parameters_get_finite_gradients():
    x, t = inputs()
    model, condition = UNet(**SMALL), one_hot(0, 2)
    init = jit(lambda key: model.init_with_output(key, x, t, condition, train=False))
    y, params = init(jax.random.key(0))
    assert np.abs(y).max() < 1e-3
    for path, leaf in jax.tree_util.tree_leaves_with_path(params["params"]):
        *_, layer, kind = (entry.key for entry in path)
        if layer == "condition":  # of a one-hot condition, an embedding N(0, I)
            assert 0.8 < leaf.std() < 1.2
        elif kind == "kernel":  # uniform, of variance 2 / (fan in + fan out); residual ends tiny
            scale = 1e-5 if layer in ("conv2", "out", "conv_out") else 1.0
            bound = scale * np.sqrt(6 / (np.prod(leaf.shape[:-2]) * sum(leaf.shape[-2:])))
            assert 0.8 < np.abs(leaf).max() / bound <= 1.0001, path

    def loss(params):
        rngs = {"dropout": jax.random.key(3)}
        return jnp.sum((model.apply(params, x, t, condition, train=True, rngs=rngs) - x) ** 2)

    for path, grad in jax.tree_util.tree_leaves_with_path(jit(jax.grad(loss))(params)):
        name = jax.tree_util.keystr(path)
        assert np.all(np.isfinite(grad)), name
        # A bias on the keys shifts all of a query's logits alike, which the softmax ignores.
        assert np.any(np.asarray(grad)) or name.endswith("['key']['bias']"), name


@pytest.mark.slow
def test_trains_inside_a_scan_as_outside_it():
    x, t = inputs(size=4)
    model = UNet(**{**SMALL, "multipliers": (1,)}, dropout=0.0)
    params = randomized(model, x, t)

    def step(params, t):
        loss = lambda p: jnp.mean((model.apply(p, x, t, train=True) - x) ** 2)  # noqa: E731
        return jax.tree.map(lambda p, g: p - 1e-4 * g, params, jax.grad(loss)(params)), None

    times = jnp.stack([t, t + 9])
    scanned, _ = jit(lambda p: lax.scan(step, p, times))(params)
    stepped = params
    step = jit(step)
    for now in times:
        stepped, _ = step(stepped, now)
    for a, b in zip(jax.tree.leaves(scanned), jax.tree.leaves(stepped), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_remat_changes_memory_only():
    x, t = inputs(size=4)
    fields = {**SMALL, "multipliers": (1,)}
    model, lean = (UNet(**fields, remat=remat) for remat in (False, True))
    params = randomized(model, x, t)
    assert jax.tree.structure(params["params"]) == jax.tree.structure(shapes_of(lean, x, t))

    def loss(model, params):
        rngs = {"dropout": jax.random.key(3)}
        return jnp.mean(model.apply(params, x, t, train=True, rngs=rngs) ** 2)

    grads, lean_grads = (jit(jax.grad(lambda p, m=m: loss(m, p)))(params) for m in (model, lean))
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(lean_grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    text = str(jax.make_jaxpr(jax.grad(lambda p: loss(lean, p)))(params))
    assert "remat" in text or "checkpoint" in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": 0}, "channels must be even and at least 4, got 0"),
        ({"channels": 33}, "channels must be even and at least 4, got 33"),
        ({"multipliers": ()}, "multipliers must be one or more positives"),
        ({"multipliers": (1, 0)}, r"multipliers must be one or more positives, got \(1, 0\)"),
        ({"num_res_blocks": 0}, "num_res_blocks must be positive, got 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"dropout must lie in \[0, 1\), got -0.1"),
        ({"num_heads": 0}, "num_heads must be positive, got 0"),
        ({"out_channels": 0}, "out_channels must be positive, got 0"),
    ],
)
def test_refuses_bad_fields_at_once(fields, message):
    with pytest.raises(ValueError, match=message):
        UNet(**fields)


@pytest.mark.parametrize(
    ("fields", "shapes", "message"),
    [
        ({"multipliers": (1, 1, 1)}, [(2, 10, 12, 3), (2,)], "10x12 .* multiples of 4"),
        ({}, [(2, 8, 8, 3), (3,)], r"t must have shape \(2,\)"),
        ({}, [(2, 8, 8, 3), ()], r"t must have shape \(2,\)"),
        ({"num_heads": 3}, [(2, 8, 8, 3), (2,)], "num_heads must divide the 16 channels, got 3"),
    ],
)
def test_refuses_bad_inputs_while_tracing(fields, shapes, message):
    x, t = shapes
    with pytest.raises(ValueError, match=message):
        shapes_of(UNet(**{**SMALL, **fields}), jnp.zeros(x), jnp.zeros(t, jnp.int32))


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (Condition(jnp.zeros((1, 4))), "condition must be of 2 examples, got 1"),
        (Condition(jnp.zeros((2, 4)), jnp.zeros((2, 5, 4))), "takes no tokens"),
        (Condition(None, jnp.zeros((2, 5, 4))), "one vector an example"),
    ],
)
def test_refuses_bad_conditions_while_tracing(condition, message):
    with pytest.raises(ValueError, match=message):
        shapes_of(UNet(**SMALL), jnp.zeros((2, 8, 8, 3)), jnp.zeros(2, jnp.int32), condition)


def test_a_network_without_a_condition_refuses_one():
    x, t = inputs()
    params = {"params": shapes_of(UNet(**SMALL), x, t)}
    apply = lambda p: UNet(**SMALL).apply(p, x, t, one_hot(0, 1), train=False)  # noqa: E731
    with pytest.raises(flax.errors.ScopeParamNotFoundError):
        jax.eval_shape(apply, params)


class TestParityWithDiffusers:
    """Random weights of `diffusers.UNet2DModel`, carried across, give the same numbers."""

    @pytest.fixture(
        scope="class",
        params=["plain", pytest.param("classes, learned variance", marks=pytest.mark.slow)],
    )
    @staticmethod
    def case(request):
        pytest.importorskip("torch")
        pytest.importorskip("diffusers")
        import torch

        from experiments.benchmarks import unet_reference

        torch.manual_seed(0)
        fields: dict[str, Any] = {"channels": 32, "attention_resolutions": (8,)}
        labels, condition = [], []
        if request.param == "plain":
            fields |= {"multipliers": (1, 2, 2), "num_res_blocks": 1}
        else:
            fields |= {"multipliers": (1, 2), "out_channels": 6}
            labels, condition = [np.array([1, 3])], [one_hot(1, 3, num_classes=4)]
        model, num_classes = UNet(**fields), 4 if labels else None
        net = unet_reference.build(model, 16, 3, num_classes).eval()
        for parameter in net.parameters():  # also what starts as one or zero
            torch.nn.init.normal_(parameter, std=0.1)
        rng = np.random.default_rng(1)
        x = rng.normal(size=(2, 16, 16, 3)).astype(np.float32)
        out_channels = 3 if model.out_channels is None else model.out_channels
        cotangent = rng.normal(size=(2, 16, 16, out_channels)).astype(np.float32)

        torch_x = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
        t = np.array([2, 87])
        output = net(torch_x, *map(torch.tensor, [t, *labels])).sample.permute(0, 2, 3, 1)
        (output * torch.tensor(cotangent)).sum().backward()
        theirs = (
            output.detach().numpy(),
            torch_x.grad.permute(0, 2, 3, 1).numpy(),
            unet_reference.to_params(model, {n: p.grad for n, p in net.named_parameters()}),
        )

        params = unet_reference.to_params(model, net.state_dict())
        args = [jnp.asarray(t), *condition]

        def scalar(params, x):
            y = model.apply({"params": params}, x, *args, train=False)
            return jnp.vdot(y, cotangent), y

        grad = jit(jax.grad(scalar, (0, 1), has_aux=True))
        (param_grads, x_grad), y = grad(params, jnp.asarray(x))
        shapes = shapes_of(model, jnp.asarray(x), *args)
        return params, shapes, (y, x_grad, param_grads), theirs

    def test_the_trees_are_equal(self, case):
        params, shapes, *_ = case
        assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)

    def test_outputs_and_input_gradients(self, case):
        *_, ours, theirs = case
        for a, b in zip(ours[:2], theirs[:2], strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * np.abs(b).max())

    def test_parameter_gradients(self, case):
        *_, ours, theirs = case
        ours, theirs = (
            dict(jax.tree_util.tree_leaves_with_path(side[2])) for side in (ours, theirs)
        )
        overall = max(np.abs(b).max() for b in theirs.values())
        assert ours.keys() == theirs.keys()
        for path, b in theirs.items():
            # The key bias has no gradient but rounding: measure it by the others.
            scale = max(np.abs(b).max(), 1e-3 * overall)
            np.testing.assert_allclose(
                ours[path], b, rtol=0, atol=1e-4 * scale, err_msg=jax.tree_util.keystr(path)
            )

    def test_refuses_what_has_no_place(self, case):
        from experiments.benchmarks import unet_reference

        tensor = pytest.importorskip("torch").zeros(2)
        with pytest.raises(ValueError, match=r"no place for: \['alien.weight'\]"):
            unet_reference.to_params(UNet(**SMALL), {"alien.weight": tensor})
        with pytest.raises(ValueError, match="num_heads must be 1"):
            unet_reference.build(UNet(**SMALL, num_heads=2), 8, 3)


@pytest.mark.slow
def test_two_times_and_forward_mode():
    """Each of an image's times counts, and the derivative along image and time is the slope."""
    model = UNet(channels=4, multipliers=(1,), num_res_blocks=1, attention_resolutions=())
    x, direction = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 1))
    t = jnp.array([[0.2, 0.1], [0.9, 0.4]])
    params = model.init(jax.random.key(1), x, t, train=False)
    assert params["params"]["time1"]["kernel"].shape == (8, 16)
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(jax.random.key(2), p.shape), params)
    call = jit(lambda x, t: model.apply(params, x, t, train=False))
    for other in (t.at[:, 0].add(0.5), t.at[:, 1].add(0.5)):
        assert (jnp.abs(call(x, other) - call(x, t)).max((1, 2, 3)) > 1e-3).all()
    _, slope = jit(lambda x, t: jax.jvp(call, (x, t), (direction, jnp.ones_like(t))))(x, t)
    h = 1e-2
    difference = (call(x + h * direction, t + h) - call(x - h * direction, t - h)) / (2 * h)
    np.testing.assert_allclose(slope, difference, atol=2e-3 * jnp.abs(slope).max())
    with pytest.raises(ValueError, match="t must have shape"):
        model.apply(params, x, t[None], train=False)
