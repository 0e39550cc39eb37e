"""Floating-point operations of a function, counted from its shapes."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax

from jaxgen.models.conv.bilinear import LIBRARY


def count_flops(function: Callable[..., Any], *args: Any) -> int:
    """The operations of a function's matrix products and convolutions, as accelerators compute it.

    A multiplication and an addition are two. Everything else is left out, as is usual for a model's
    utilization: it is little beside them. So are products with zeros that a transposed convolution
    puts between its inputs; recomputation (remat) is counted, as it is computed. A scan counts as
    often as it turns; a loop of unknown length, such as the loop of training steps, as one turn; of
    a conditional the costlier branch counts.

    Args:
        function: Function of arrays; it is traced, not computed.
        args: Arguments, or their shapes.

    Returns:
        Number of operations of one call.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: Any) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if equation.primitive in LIBRARY:
        form = partial(LIBRARY[equation.primitive], **params)
        return count_flops(form, *(argument.aval for argument in equation.invars))
    if name == "cond":
        return _conditional(params)
    turns = params["length"] if name == "scan" else 1
    return turns * sum(_count(inner) for inner in _inner(params))


def _conditional(params: Any) -> int:
    branches = [_count(branch.jaxpr) for branch in params["branches"]]
    platforms = params.get("branches_platforms")
    if platforms is None:
        return max(branches)
    # A choice by platform: what is not for the CPU alone.
    return max(
        n for n, names in zip(branches, platforms, strict=True) if not names or "cpu" not in names
    )


def _inner(params: Any) -> Iterator[Any]:
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                yield inner


def _dot(equation: Any) -> int:
    ((contracted, _), _) = equation.params["dimension_numbers"]
    lhs, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return 2 * math.prod(out) * math.prod(lhs[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
    params = equation.params
    kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    numbers = params["dimension_numbers"].rhs_spec  # (features, channels, *space)
    per_output = math.prod(kernel[axis] for axis in numbers[1:])
    return 2 * math.prod(out) * per_output // math.prod(params["lhs_dilation"])
