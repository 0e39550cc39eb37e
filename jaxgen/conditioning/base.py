"""What a model is told to make: a class, attributes, a text, an embedding from outside.

One interface for all of them, used alike by every family: a `Conditioning` turns conditions as the
data has them into a `Condition`, a vector or a sequence of tokens or both. A layer that takes the
vector through a linear map then has a learned embedding of each class, where the condition is a
class (one-hot times matrix is a table look-up), and a learned sum of effects, where it is a set of
attributes. `null` is what stands for "no condition": conditions are dropped for it in training, and
guidance compares with it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, Shaped

from jaxgen.core import Batch, PyTree, Variables

NAME = "conditioning"
"""The key of its parameters in `Variables.params` and of its arrays in `Variables.fixed`."""


class Condition(NamedTuple):
    """What a network is told, of B examples; a pytree, so that it can be repeated and sliced.

    Attributes:
        vector: One vector an example, or None.
        tokens: A sequence of L vectors an example, or None.
        mask: True where `tokens` has a token, False where it is padded; None where all are.
    """

    vector: Float[Array, "batch width"] | None = None
    tokens: Float[Array, "batch length features"] | None = None
    mask: Bool[Array, "batch length"] | None = None


def _no_parameters(key: Key[Array, ""]) -> PyTree:
    return {}


class Conditioning(NamedTuple):
    """A kind of condition.

    Attributes:
        key: The batch's entry that holds it.
        shape: The shape of one condition as the data has it: `()` for a class.
        encode: `(variables, conditions) -> Condition`. It raises ValueError for a wrong shape or
            type, and for values out of range where they are known; inside a compiled function,
            where they are not, such an example's vector is NaN, so that the step's guard finds it.
        null: `(variables, num) -> Condition` that stands for no condition, `num` times.
        width: The width of the vector, or None where there is none.
        sweep: Conditions that show each effect by itself, `[rows, *shape]`: every class; no
            attribute and then each alone, or as the examples have it; None for embeddings, which
            only their maker knows.
        num_classes: The number of classes, or None for other kinds.
        init: `key -> parameters` of an encoder that is trained with the model.
        trained: Whether `init` makes parameters.
        fixed: The arrays of a pretrained encoder.
        names: Names of the classes or attributes, in their order; () where they have none.
        tokenize: Function from captions to conditions as the data has them, of a model that is told
            a text; it raises ValueError for words that it does not know. None for other kinds.
        files: What a run keeps so that its conditions mean the same ever after, by the file's name.
        num_attributes: The number of attributes, or None for other kinds.
        examples: Conditions that the data has, `[rows, *shape]`, or None where they are not known:
            what a model was trained on together, batch statistics are of.
        sweep_names: What each row of `sweep` asks for, in words; () where there is no sweep.
    """

    key: str
    shape: tuple[int, ...]
    encode: Callable[[Variables, Shaped[Array, "..."]], Condition]
    null: Callable[[Variables, int], Condition]
    width: int | None = None
    sweep: np.ndarray | None = None
    num_classes: int | None = None
    init: Callable[[Key[Array, ""]], PyTree] = _no_parameters
    trained: bool = False
    fixed: PyTree = {}
    names: tuple[str, ...] = ()
    tokenize: Callable[[Sequence[str]], np.ndarray] | None = None
    files: Mapping[str, bytes] = {}
    num_attributes: int | None = None
    examples: np.ndarray | None = None
    sweep_names: tuple[str, ...] = ()


def vector_conditioning(
    key: str,
    shape: tuple[int, ...],
    width: int,
    encode: Callable[[Shaped[Array, "..."]], Float[Array, "batch width"]],
    *,
    sweep: np.ndarray | None = None,
    num_classes: int | None = None,
    names: tuple[str, ...] = (),
) -> Conditioning:
    """A conditioning by one vector without parameters; zeros stand for no condition.

    Args:
        key: The batch's entry that holds the conditions.
        shape: The shape of one condition.
        width: The width of the vector.
        encode: `conditions -> f32[B, width]`.
        sweep: Conditions that show each effect by itself, or None.
        num_classes: The number of classes, or None.
        names: Names of the classes or attributes, or ().

    Raises:
        ValueError: Names of another number than there are classes or attributes.
    """
    if names and len(names) != width:
        raise ValueError(f"names must be {width} of {key!r}, got {len(names)}")

    def to_condition(variables: Variables, values: Shaped[Array, "..."]) -> Condition:
        return Condition(encode(values))

    def null(variables: Variables, num: int) -> Condition:
        return Condition(jnp.zeros((num, width)))

    return Conditioning(key, shape, to_condition, null, width, sweep, num_classes, names=names)


def encode(
    conditioning: Conditioning | None, variables: Variables, condition: Any
) -> Condition | None:
    """What a network is told by conditions as the data has them, or None where it takes none.

    A `Condition`, which is encoded already, passes: one between two others, say.

    Raises:
        ValueError: a condition for a model that takes none, none for one that does, and what
            `conditioning.encode` raises.
    """
    if conditioning is None:
        if condition is not None:
            raise ValueError(f"condition must be None: the model takes none, got {condition}")
        return None
    if condition is None:
        raise ValueError(
            f"condition must be given: the model is conditioned on {conditioning.key!r}"
        )
    if isinstance(condition, Condition):
        return condition
    return conditioning.encode(variables, jnp.asarray(condition))


def encode_batch(
    conditioning: Conditioning | None, variables: Variables, batch: Batch
) -> Condition | None:
    """What a network is told by a batch's own conditions, or None where it takes none.

    Raises:
        ValueError: a batch without the entry, and what `conditioning.encode` raises.
    """
    if conditioning is None:
        return None
    return conditioning.encode(variables, _entry(conditioning, batch))


def condition_of(conditioning: Conditioning | None, batch: Batch) -> Array | None:
    """A batch's conditions as the data has them, or None where the model takes none.

    Raises:
        ValueError: a batch without the entry.
    """
    return None if conditioning is None else _entry(conditioning, batch)


def _entry(conditioning: Conditioning, batch: Batch) -> Array:
    if conditioning.key not in batch:
        raise ValueError(
            f"the batch must have the condition {conditioning.key!r}, it has {sorted(batch)}"
        )
    return batch[conditioning.key]


def drop(
    key: Key[Array, ""], condition: Condition, null: Condition, probability: float
) -> Condition:
    """The condition with each example's replaced by `null` with a probability.

    Classifier-free guidance trains on such (Ho & Salimans 2022, algorithm 1).

    Args:
        key: PRNG key.
        condition: What the network is told.
        null: What stands for no condition, of the same shapes.
        probability: The probability of a replacement, the same for each example.

    Returns:
        A condition of the same shapes.

    Raises:
        ValueError: a probability outside [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie in [0, 1], got {probability}")
    num = jax.tree.leaves(condition)[0].shape[0]
    return replace(jax.random.bernoulli(key, probability, (num,)), condition, null)


def replace(which: Bool[Array, " batch"], condition: Condition, other: Condition) -> Condition:
    """The condition with some examples' replaced.

    Args:
        which: Whether an example's is replaced.
        condition: What the network is told.
        other: What it is told instead, of the same shapes.
    """

    def choose(given: Array, instead: Array) -> Array:
        return jnp.where(which.reshape(-1, *(1,) * (given.ndim - 1)), instead, given)

    return jax.tree.map(choose, condition, other)


def repeat(condition: Condition | None, times: int) -> Condition | None:
    """Each example's condition `times` times, one after another; None stays None."""
    return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), condition)


def between(start: Condition, end: Condition, steps: int) -> Condition:
    """Conditions on straight lines, `(1 - t) start + t end` for t from 0 to 1, f[steps, B, ...].

    Args:
        start: What the network is told at first; without a mask.
        end: What it is told at last, of the same shapes.
        steps: The number of conditions on the way, both ends included.

    Raises:
        ValueError: conditions with a mask: tokens of different texts do not lie in one place.
    """
    if start.mask is not None or end.mask is not None:
        raise ValueError("start and end must have no mask: there is nothing between two texts")

    def line(first: Array, last: Array) -> Array:
        t = jnp.linspace(0.0, 1.0, steps).reshape(-1, *(1,) * first.ndim)
        return (1 - t) * first[None] + t * last[None]

    return jax.tree.map(line, start, end)


def vector_of(condition: Condition | None) -> Float[Array, "batch width"] | None:
    """The vector of a condition, for networks that take nothing else; None stays None.

    Raises:
        ValueError: a condition with tokens.
    """
    if condition is None:
        return None
    if condition.vector is None or condition.tokens is not None:
        raise ValueError("condition must be one vector an example: the network takes no tokens")
    return condition.vector


def init(conditioning: Conditioning | None, key: Key[Array, ""]) -> dict[str, PyTree]:
    """The parameters to train with a model, `{}` or by the key `NAME`."""
    if conditioning is None or not conditioning.trained:
        return {}
    return {NAME: conditioning.init(key)}


def trains(conditioning: Conditioning | None) -> tuple[str, ...]:
    """The network that a model's optimizer trains besides its own: `()` or `(NAME,)`."""
    return (NAME,) if conditioning is not None and conditioning.trained else ()


def fixed(conditioning: Conditioning | None) -> Mapping[str, PyTree]:
    """The arrays that a model's `Variables.fixed` must have, `{}` or by the key `NAME`."""
    if conditioning is None or not jax.tree.leaves(conditioning.fixed):
        return {}
    return {NAME: conditioning.fixed}


def frozen(conditioning: Conditioning, variables: Variables) -> Conditioning:
    """The conditioning of a trained model, for one that uses it as it is: a second stage.

    Its parameters, if it has any, are among the new one's `fixed` arrays.

    Args:
        conditioning: The trained model's conditioning.
        variables: The trained model's variables.
    """
    arrays = {
        "params": variables.params.get(NAME, {}),
        "fixed": conditioning.fixed,
    }
    if not jax.tree.leaves(arrays):
        return conditioning

    def of_trained(variables: Variables) -> Variables:
        arrays = variables.fixed[NAME]
        return Variables({NAME: arrays["params"]}, {}, {NAME: arrays["fixed"]})

    return conditioning._replace(
        encode=lambda variables, values: conditioning.encode(of_trained(variables), values),
        null=lambda variables, num: conditioning.null(of_trained(variables), num),
        init=_no_parameters,
        trained=False,
        fixed=arrays,
    )


def key_of(conditioning: Conditioning | None) -> str | None:
    """The batch's entry that a model is told, or None where it takes none."""
    return None if conditioning is None else conditioning.key


def check_width(name: str, values: Array | np.ndarray, width: int) -> None:
    """Raise ValueError unless `values` is [B, width]."""
    if values.ndim != 2 or values.shape[1] != width:
        raise ValueError(f"{name} must have the shape [B, {width}], got {list(values.shape)}")


def check_values(name: str, values: Array, least: int, most: int) -> None:
    """Raise ValueError for values out of range, unless they are not known yet (traced)."""
    if isinstance(values, jax.core.Tracer):
        return
    known = np.asarray(values)
    if known.size and (known.min() < least or known.max() > most):
        raise ValueError(
            f"{name} must lie in {least}..{most}, got values in {known.min()}..{known.max()}"
        )
