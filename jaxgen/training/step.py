"""The one training step: every family's phases, reduced, guarded and applied."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key

from jaxgen.core import Batch, Family, Params, Phase, PyTree, State
from jaxgen.losses.reduce import masked_sum
from jaxgen.training.optim import ema_decay

Metrics = Mapping[str, tuple[Float[Array, ""], Float[Array, ""]]]


class StepResult(NamedTuple):
    """What a step returns.

    Attributes:
        state: the next state.
        metrics: name -> (total, weight); the mean over any number of steps is the ratio of sums.
            Steps that were skipped weigh nothing.
        bad: i32[], the index in `guarded_names` of the first loss or gradient that is not finite
            (its phase's update was skipped), or -1.
    """

    state: State
    metrics: Metrics
    bad: Int[Array, ""]


# One global batch and a key make the next state.
Step = Callable[[State, Batch, Key[Array, ""]], StepResult]


class _Update(NamedTuple):
    params: Params
    model_state: PyTree
    opt_state: PyTree
    totals: Metrics
    bad: Int[Array, ""]  # within the phase: -1 none, 0 the loss, i the i-th gradient


def init_state(
    family: Family, key: Key[Array, ""], batch: Batch, *, ema_of: Sequence[str] | None = None
) -> State:
    """The state before the first step.

    Args:
        family: the model.
        key: for the parameters.
        batch: a real batch, for data-dependent initialization.
        ema_of: the top-level keys of the parameters to average; None for all.

    Raises:
        ValueError: if a phase or `ema_of` names parameters that the family does not have.
    """
    params, model_state = family.init(key, batch)
    for what, names in [(f"phase {p.name!r} trains", p.trains) for p in family.phases] + [
        ("ema_of names", tuple(ema_of or ()))
    ]:
        unknown = sorted(set(names) - set(params))
        if unknown:
            raise ValueError(f"{what} {unknown}, but the parameters are {sorted(params)}")
    opt_state = {p.name: p.optimizer.init(_select(params, p.trains)) for p in family.phases}
    # A copy: donated buffers must not stand in the state twice.
    ema = jax.tree.map(jnp.copy, _select(params, params if ema_of is None else ema_of))
    return State(jnp.zeros((), jnp.int32), params, model_state, opt_state, ema)


def make_step(
    family: Family,
    *,
    ema: float = 0.9999,
    accumulate: int = 1,
    axis_name: str | None = None,
) -> Step:
    """Compose a family's phases into one pure training step.

    Each phase in turn minimizes sum(loss * mask) / max(sum(mask), 1) over the global batch and
    updates the parameters it names. A phase whose gradient is not finite leaves parameters,
    optimizer and model state as they were. The step counts on in either case, and with it the
    data and the randomness.

    Args:
        family: the model; the step calls its phases' losses and optimizers, nothing else.
        ema: decay of the average of the parameters, warmed up by `ema_decay`.
        accumulate: micro-batches per update; the gradient is that of the whole batch (to rounding,
            for losses without batch statistics) in 1/accumulate of the memory.
        axis_name: the mapped axis to reduce over (pmap), or None where the batch is global (jit).

    Returns:
        `step(state, batch, key) -> StepResult`.

    Raises:
        ValueError: if an argument is out of its range.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1, got {accumulate}")
    if not 0 <= ema < 1:
        raise ValueError(f"ema must lie in [0, 1), got {ema}")
    if not family.phases:
        raise ValueError("family.phases must hold at least one phase, got none")
    for phase in family.phases:
        if phase.repeats < 1:
            raise ValueError(f"phase {phase.name!r}: repeats must be >= 1, got {phase.repeats}")

    def step(state: State, batch: Batch, key: Key[Array, ""]) -> StepResult:
        if axis_name is not None:  # each device draws its own noise for its own examples
            key = jax.random.fold_in(key, lax.axis_index(axis_name))
        params, model_state = state.params, state.model_state
        opt_states = dict(state.opt_state)
        totals: dict[str, tuple[Array, Array]] = {}
        bad, offset = jnp.int32(-1), 0
        slices = _interleaved(batch, max_repeats(family))
        for index, phase in enumerate(family.phases):
            update = _turn(
                phase,
                params,
                model_state,
                opt_states[phase.name],
                jax.tree.map(lambda x, n=phase.repeats: x[:n], slices),
                jax.random.fold_in(key, index),
                accumulate,
                axis_name,
            )
            params, model_state = update.params, update.model_state
            opt_states[phase.name] = update.opt_state
            prefix = f"{phase.name}/" if len(family.phases) > 1 else ""
            totals |= {prefix + k: v for k, v in update.totals.items()}
            bad = jnp.where((bad < 0) & (update.bad >= 0), update.bad + offset, bad)
            offset += 1 + len(jax.tree.leaves(_select(state.params, phase.trains)))
        decay = ema_decay(state.step, ema)
        averaged = optax.incremental_update(_select(params, state.ema), state.ema, 1.0 - decay)
        average = _where(bad < 0, averaged, state.ema)
        new = State(state.step + 1, params, model_state, opt_states, average)
        return StepResult(new, totals, bad)

    return step


def max_repeats(family: Family) -> int:
    """The number of slices that the step cuts its batch into: one for each repeated update."""
    return max(phase.repeats for phase in family.phases)


def guarded_names(family: Family, params: Params) -> list[str]:
    """The names that `StepResult.bad` indexes: each phase's loss, then its trained leaves."""
    names = []
    for phase in family.phases:
        names.append(f"the loss of phase {phase.name!r}")
        for path, _ in jax.tree_util.tree_leaves_with_path(_select(params, phase.trains)):
            leaf = jax.tree_util.keystr(path, simple=True, separator="/")
            names.append(f"the gradient of {leaf} in phase {phase.name!r}")
    return names


def _turn(
    phase: Phase,
    params: Params,
    model_state: PyTree,
    opt_state: PyTree,
    slices: Batch,
    key: Key[Array, ""],
    accumulate: int,
    axis_name: str | None,
) -> _Update:
    """A phase's updates, one after another, each on its own slice of the batch.

    A scan, so that a critic's five updates compile as fast as one.
    """

    def update(carry, batch_and_index):
        (params, model_state, opt_state), (batch, index) = carry, batch_and_index
        turn_key = jax.random.fold_in(key, index)
        new = _update(phase, params, model_state, opt_state, batch, turn_key, accumulate, axis_name)
        return (new.params, new.model_state, new.opt_state), (new.totals, new.bad)

    start = (dict(params), model_state, opt_state)
    if phase.repeats == 1:
        new, (totals, bad) = update(start, (jax.tree.map(lambda x: x[0], slices), 0))
    else:
        new, (totals, bads) = lax.scan(update, start, (slices, jnp.arange(phase.repeats)))
        totals = jax.tree.map(lambda x: jnp.sum(x, axis=0), totals)
        bad = bads[jnp.argmax(bads >= 0)]  # -1 where all were good
    return _Update(new[0], new[1], new[2], totals, bad)


def _update(
    phase: Phase,
    params: Params,
    model_state: PyTree,
    opt_state: PyTree,
    batch: Batch,
    key: Key[Array, ""],
    accumulate: int,
    axis_name: str | None,
) -> _Update:
    """One optimizer update of one phase on one slice of the batch."""
    trained = _select(params, phase.trains)

    def objective(trained: Params, model_state: PyTree, batch: Batch, key: Key[Array, ""]):
        loss, aux = phase.loss({**params, **trained}, model_state, batch, key, train=True)
        mask = batch.get("mask")
        totals = {k: masked_sum(v, mask) for k, v in {"loss": loss, **aux.metrics}.items()}
        return totals["loss"][0], (aux.model_state, totals)

    gradient = jax.grad(objective, has_aux=True)
    if accumulate == 1:
        grads, (new_model_state, totals) = gradient(trained, model_state, batch, key)
    else:

        def body(carry, micro):
            grads, model_state, index = carry
            g, (model_state, totals) = gradient(
                trained, model_state, micro, jax.random.fold_in(key, index)
            )
            return (jax.tree.map(jnp.add, grads, g), model_state, index + 1), totals

        zeros = jax.tree.map(jnp.zeros_like, trained)
        carry, stacked = lax.scan(
            body, (zeros, model_state, jnp.int32(0)), _interleaved(batch, accumulate)
        )
        grads, new_model_state, _ = carry
        totals = jax.tree.map(lambda x: jnp.sum(x, axis=0), stacked)
    if axis_name is not None:
        grads, totals = lax.psum((grads, totals), axis_name)
        # Statistics of the devices' parts of the batch are averaged: the state stays replicated.
        new_model_state = jax.tree.map(
            lambda x: lax.pmean(x, axis_name) if jnp.issubdtype(x.dtype, jnp.floating) else x,
            new_model_state,
        )
    weight = jnp.maximum(totals["loss"][1], 1.0)
    grads = jax.tree.map(lambda g: g / weight.astype(g.dtype), grads)

    squares = jnp.stack(
        [jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(grads)]
    )
    finite = jnp.isfinite(jnp.concatenate([totals["loss"][0][None], squares]))
    ok = jnp.all(finite)
    bad = jnp.where(ok, -1, jnp.argmin(finite)).astype(jnp.int32)
    updates, new_opt_state = phase.optimizer.update(grads, opt_state, trained)
    new_trained = optax.apply_updates(trained, updates)
    totals["grad_norm"] = (jnp.sqrt(jnp.sum(squares)), jnp.float32(1.0))
    totals = _where(ok, totals, jax.tree.map(jnp.zeros_like, totals))
    return _Update(
        {**params, **_where(ok, new_trained, trained)},
        _where(ok, new_model_state, model_state),
        _where(ok, new_opt_state, opt_state),
        totals,
        bad,
    )


def _select(params: Params, names: Any) -> dict[str, PyTree]:
    return {name: params[name] for name in names}


def _where(condition: Array, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


def _interleaved(batch: Batch, parts: int) -> Batch:
    """Split [B, ...] into [parts, B/parts, ...], part i holding the examples i, i + parts, ...

    Interleaved, because a batch sharded over devices is then split on each device, moving nothing.
    """

    def split(x: Array) -> Array:
        if x.shape[0] % parts:
            raise ValueError(
                f"a batch of {x.shape[0]} cannot be cut into {parts} equal parts "
                "(micro-batches, or a phase's repeats)"
            )
        return jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)

    return jax.tree.map(split, dict(batch))
