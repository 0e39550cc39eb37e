"""The accelerator's numbers beside the CPU's, for the same parameters, data and keys."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.models.blocks.attention import dot_product_attention
from jaxgen.models.conv.layers import conv_general_dilated
from jaxgen.training import evaluation, pictures

from .programs import Changes, build, prepare

# Of the largest relative differences; float32 products are asked for in full precision.
TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2}
SAMPLES_TOLERANCE = 1e-2  # bytes: one level is up to 4e-3 of the range
STEPS = 3

# Recipes on embedded data, in the sizes that a CPU computes in seconds.
FAMILIES: dict[str, Changes] = {
    "ddpm_digits": {"model.channels": 16, "sampler.num_steps": 10},
    "dcgan_digits": {},
    "vae_digits": {},
    "realnvp_digits": {"model.width": 16},
    "pixelcnn_digits": {"model.features": 16},
    "maf_tabular": {},
}

# size, kernel, channels in and out, strides, padding, input's and kernel's dilation, groups
CONVOLUTIONS: dict[str, tuple[Any, ...]] = {
    "3x3": ((16, 16), (3, 3), 32, 64, (1, 1), "SAME", (1, 1), (1, 1), 1),
    "first layer": ((32, 32), (3, 3), 3, 64, (1, 1), "SAME", (1, 1), (1, 1), 1),
    "last layer": ((32, 32), (3, 3), 64, 3, (1, 1), "SAME", (1, 1), (1, 1), 1),
    "1x1": ((16, 16), (1, 1), 64, 32, (1, 1), "SAME", (1, 1), (1, 1), 1),
    "stride 2": ((16, 16), (4, 4), 32, 64, (2, 2), "SAME", (1, 1), (1, 1), 1),
    "stride 2, one-sided": ((16, 16), (3, 3), 32, 32, (2, 2), ((0, 1), (0, 1)), (1, 1), (1, 1), 1),
    "transposed": ((8, 8), (4, 4), 64, 32, (1, 1), ((2, 2), (2, 2)), (2, 2), (1, 1), 1),
    "dilated": ((16, 16), (3, 3), 16, 16, (1, 1), "SAME", (1, 1), (2, 2), 1),
    "depthwise": ((16, 16), (3, 3), 32, 32, (1, 1), "SAME", (1, 1), (1, 1), 32),
    "one dimension": ((256,), (2,), 32, 64, (1,), ((8, 0),), (1,), (8,), 1),
}

# heads, width of a head, queries, keys
ATTENTIONS: dict[str, tuple[int, int, int, int]] = {
    "one wide head": (1, 256, 256, 256),
    "four heads": (4, 64, 256, 256),
    "to text": (8, 40, 64, 77),
}


def convolutions(precision: str) -> dict[str, Any]:
    """Every form of convolution and its gradients, of both orders, beside the CPU.

    Args:
        precision: Type of the inputs.
    """
    dtype = jnp.dtype(precision)
    return _each(CONVOLUTIONS, partial(_convolution, dtype), precision)


def _convolution(
    dtype, size, kernel, channels, features, strides, padding, spacing, dilation, groups
) -> float:
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (4, *size, channels), dtype)
    w = jax.random.normal(keys[1], (*kernel, channels // groups, features), dtype)
    w = w / np.sqrt(w[..., 0].size).astype(dtype)
    space = "HW"[: len(size)]
    numbers = (f"N{space}C", f"{space}IO", f"N{space}C")

    def convolve(x, w):
        return conv_general_dilated(x, w, strides, padding, spacing, dilation, numbers, groups)

    def penalty(x, w):
        gradient = jax.grad(lambda x: jnp.sin(convolve(x, w).astype(jnp.float32)).sum())(x)
        return jnp.square(gradient.astype(jnp.float32)).sum()

    def everything(x, w):
        return convolve(x, w), jax.grad(penalty, (0, 1))(x, w)

    return _difference(everything, (x, w))


def attentions(precision: str) -> dict[str, Any]:
    """Attention and its gradients beside the CPU.

    Args:
        precision: Type of the inputs.
    """
    dtype = jnp.dtype(precision)
    return _each(ATTENTIONS, partial(_attention, dtype), precision)


def _each(
    cases: Mapping[str, tuple[Any, ...]], compare: Callable[..., float], precision: str
) -> dict[str, Any]:
    """The difference of each case; one that raises costs only its own."""
    rows, errors = {}, {}
    for name, case in cases.items():
        try:
            rows[name] = compare(*case)
        except Exception as error:
            rows[name] = float("inf")
            errors[name] = f"{type(error).__name__}: {error}"
    return {**_verdict(rows, precision), "errors": errors}


def _attention(dtype, heads, width, queries, keys) -> float:
    rngs = jax.random.split(jax.random.key(0), 3)
    lengths = (queries, keys, keys)
    inputs = [
        jax.random.normal(rng, (4, length, heads, width), dtype)
        for rng, length in zip(rngs, lengths, strict=True)
    ]

    def loss(*inputs):
        return jnp.sin(dot_product_attention(*inputs).astype(jnp.float32)).sum()

    def everything(*inputs):
        return dot_product_attention(*inputs), jax.grad(loss, (0, 1, 2))(*inputs)

    return _difference(everything, inputs)


def _difference(function: Callable[..., Any], arguments: Any) -> float:
    """The largest relative difference of a function's results on the two devices."""
    here, there = (_on(d, function, arguments) for d in (jax.devices()[0], jax.devices("cpu")[0]))
    return max(map(relative, jax.tree.leaves(here), jax.tree.leaves(there)))


def _on(device: jax.Device, function: Callable[..., Any], arguments: Any) -> Any:
    with jax.default_matmul_precision("float32"):
        return jax.device_get(jax.jit(function)(*jax.device_put(arguments, device)))


def relative(a: Any, b: Any) -> float:
    """|a - b| / |b| by the Euclidean norm; infinite where one of them is not finite."""
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    return float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), 1e-30)


def _verdict(rows: dict[str, Any], precision: str) -> dict[str, Any]:
    def tolerance(name: str) -> float:
        return SAMPLES_TOLERANCE if name.endswith("samples") else TOLERANCES[precision]

    return {
        "backend": jax.default_backend(),
        "precision": precision,
        "differences": rows,
        "tolerance": TOLERANCES[precision],
        "failed": sorted(name for name, value in rows.items() if not value <= tolerance(name)),
    }


def family(name: str, precision: str) -> dict[str, Any]:
    """Steps, evaluation and samples of a small model of a family, beside the CPU.

    Samples are compared in float32 alone: a chain of draws amplifies what bfloat16 rounds.

    Args:
        name: Name of the recipe, a key of `FAMILIES`.
        precision: Type of the network's arithmetic.
    """
    changes = {"precision": precision, "batch_size": 20, **FAMILIES[name]}
    config, experiment = build(name, changes, shrunk=False)
    results, state = [], None
    with jax.default_matmul_precision("float32"):
        for device in (jax.devices("cpu")[0], jax.devices()[0]):
            training = prepare(config, experiment, [device])
            if state is None:
                state = jax.device_get(training.state)
            results.append(_results(training, state, with_samples=precision == "float32"))
    there, here = results
    return _verdict({part: relative(here[part], there[part]) for part in there}, precision)


def _results(training: Any, state: Any, *, with_samples: bool) -> dict[str, np.ndarray]:
    """What a device makes of a state: numbers by what they are of."""
    experiment, strategy = training.experiment, training.strategy
    fixed = training.arguments[0]
    placed = strategy.put_replicated(jax.tree.map(np.asarray, state))
    variables = evaluation.variables_of(placed, experiment.averages, fixed)
    evaluate = evaluation.make_evaluate(
        experiment._replace(num_evaluated=32), strategy, 0, batch_size=32
    )
    results = {"evaluation": np.array([evaluate(variables)["loss"]])}
    if with_samples and experiment.family.sample is not None:
        draw = evaluation.sample_program(experiment, strategy)
        condition = pictures.in_turn(experiment.family, 8)
        samples, finite = draw(variables, jax.random.key(0), 8, condition)
        results["samples"] = np.where(finite.all(), np.asarray(samples, np.float32), np.nan)
    _, report = training.run(placed, *training.arguments, STEPS)
    totals = jax.device_get(report.metrics)
    results["training"] = np.array([total.sum() for _, (total, _) in sorted(totals.items())])
    return results


def devices_agree() -> dict[str, Any]:
    """Steps on one device and on all of them, of one model, in float32."""
    config, experiment = build("ddpm_digits", {"model.channels": 16}, shrunk=False)
    metrics = []
    for devices in (jax.devices()[:1], jax.devices()):
        training = prepare(config, experiment, devices)
        _, report = training.run(training.state, *training.arguments, STEPS)
        metrics.append(
            np.array([t for _, (t, _) in sorted(jax.device_get(report.metrics).items())])
        )
    return _verdict({"ddpm_digits": relative(*metrics)}, "float32")
