"""The training step of every family: its phases, reduced, guarded and applied."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key

from jaxgen.core import Batch, Family, Optimizer, Params, Phase, PyTree, State, Variables
from jaxgen.losses.reduce import weighted_sum
from jaxgen.training import averages as averaging
from jaxgen.training.averages import Average
from jaxgen.training.guard import earlier, first, first_bad, is_finite, names_of
from jaxgen.training.packing import SMALL, pack_like, pack_state, unpack

Metrics = Mapping[str, tuple[Float[Array, ""], Float[Array, ""]]]


class StepResult(NamedTuple):
    """The result of a step.

    Attributes:
        state: State after the step.
        metrics: Name -> (total, weight); the mean over any number of steps is the ratio of sums.
            Updates that were not finite and turns that were not taken have weight 0.
        bad: Index i32[] in `guarded_names` of the first loss, gradient, updated array or average
            that is not finite (its update was skipped), or -1.
    """

    state: State
    metrics: Metrics
    bad: Int[Array, ""]


@dataclass(frozen=True)
class Step:
    """A training step, `(state, fixed, global batch, key) -> StepResult`.

    Attributes:
        packed: The step on a packed state, for a loop of steps.
        pack: Function from a state to its packed form, which has few arrays.
        unpack: Inverse of `pack`.
    """

    packed: Callable[[State, PyTree, Batch, Key[Array, ""]], StepResult]
    pack: Callable[[State], State]
    unpack: Callable[[State], State]

    def __call__(
        self, state: State, fixed: PyTree, batch: Batch, key: Key[Array, ""]
    ) -> StepResult:
        """One step of a state as it is kept."""
        result = self.packed(self.pack(state), fixed, batch, key)
        return result._replace(state=self.unpack(result.state))


class _Trained(NamedTuple):
    """The arrays that a phase's update changes."""

    params: Params
    state: PyTree
    opt_state: PyTree


class _Turn(NamedTuple):
    """The values that all updates of a phase's turn share."""

    phase: Phase
    optimizer: Optimizer
    fixed: PyTree
    step: Int[Array, ""]
    accumulate: int
    axis_name: str | None


def init_state(
    family: Family,
    key: Key[Array, ""],
    batch: Batch,
    *,
    averages: Mapping[str, Average] | None = None,
    fixed: PyTree = None,
) -> State:
    """The state before the first step.

    Args:
        family: Model to train.
        key: Key of the initial parameters.
        batch: Batch of real examples, for data-dependent initialization.
        averages: Moving averages of the parameters to keep, by name; None for none.
        fixed: Pretrained arrays of the family; `family.fixed` by default. Give them where the call
            is compiled, so that they are arguments and not constants.

    Raises:
        ValueError: If an optimizer or an average names parameters that the family does not have.
    """
    variables = family.init(key, batch, family.fixed if fixed is None else fixed)
    params = variables.params
    for name, optimizer in family.optimizers.items():
        if unknown := sorted(set(optimizer.trains) - set(params)):
            raise ValueError(
                f"optimizer {name!r} trains {unknown}, but the parameters are {sorted(params)}"
            )
    opt_state = {
        name: optimizer.transform.init(_select(params, optimizer.trains))
        for name, optimizer in family.optimizers.items()
    }
    average = averaging.init(averages or {}, params)
    return State(jnp.zeros((), jnp.int32), params, variables.state, opt_state, average)


def make_step(
    family: Family,
    *,
    averages: Mapping[str, Average] | None = None,
    accumulate: int = 1,
    axis_name: str | None = None,
    small: int = SMALL,
) -> Step:
    """Compose a family's phases into one pure training step.

    Each phase in turn minimizes `sum(loss * weight) / max(sum(weight), 1)` over the global batch
    and updates the parameters of its optimizer. An update whose loss, gradient, new parameters or
    new state are not finite leaves parameters, optimizer and state unchanged, and so does one whose
    gradient reaches the optimizer's `skip_norm`, which the metric "left_out" counts. The step's
    number increases in either case, and with it the data and the randomness advance.

    Args:
        family: Model to train; the step calls only its phases' losses and optimizers.
        averages: Moving averages of the parameters to keep, by name; None for none.
        accumulate: Number of micro-batches in an update; the gradient is that of the whole batch
            (to rounding, for losses without batch statistics) in 1/accumulate of the memory.
        axis_name: Name of the mapped axis to reduce over (pmap), or None where the batch is global
            (jit).
        small: Number of elements up to which arrays of networks with elementwise optimizers are
            packed for the work; 0 for none, where the state is sharded.

    Returns:
        `step(state, fixed, batch, key) -> StepResult`.

    Raises:
        ValueError: If `accumulate` is below 1, or the family's phases cannot be taken.
    """
    averages = averages or {}
    _check(family, accumulate)

    def step(state: State, fixed: PyTree, batch: Batch, key: Key[Array, ""]) -> StepResult:
        if axis_name is not None:  # each device draws its own noise for its own examples
            key = jax.random.fold_in(key, lax.axis_index(axis_name))
        params, model_state = state.params, state.state
        opt_states = dict(state.opt_state)
        totals: dict[str, tuple[Array, Array]] = {}
        bad, offset, skipped = jnp.int32(-1), 0, jnp.zeros((), bool)
        slices = _interleaved(batch, max_repeats(family))
        for index, phase in enumerate(family.phases):
            optimizer = family.optimizers[phase.optimizer]
            turn = _Turn(phase, optimizer, fixed, state.step, accumulate, axis_name)
            before = _Trained(dict(params), model_state, opt_states[phase.optimizer])
            own = jax.tree.map(lambda x, n=phase.repeats: x[:n], slices)
            after, new_totals, new_bad = _take(turn, before, own, jax.random.fold_in(key, index))
            params, model_state, opt_states[phase.optimizer] = after
            prefix = f"{phase.name}/" if len(family.phases) > 1 else ""
            totals |= {prefix + k: v for k, v in new_totals.items()}
            if optimizer.skip_norm is not None:
                skipped |= new_totals["left_out"][0] > 0
            bad = earlier(bad, new_bad, offset)
            offset += len(names_of(phase, _select(unpack(params), optimizer.trains)))
        moved = averaging.update(averages, state.averages, params, state.step)
        bad = earlier(bad, first([is_finite(moved[name]) for name in sorted(moved)]), offset)
        average = _where((bad < 0) & ~skipped, moved, state.averages)
        new = State(state.step + 1, params, model_state, opt_states, average)
        return StepResult(new, totals, bad)

    return Step(step, lambda state: pack_state(family, state, small), unpack)


def max_repeats(family: Family) -> int:
    """The number of slices of the step's batch: one for each repeated update."""
    return max(phase.repeats for phase in family.phases)


def _check(family: Family, accumulate: int) -> None:
    """Raise ValueError for phases that cannot be taken."""
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1, got {accumulate}")
    if not family.phases:
        raise ValueError("family.phases must hold at least one phase, got none")
    names = [phase.name for phase in family.phases]
    if len(set(names)) < len(names):
        raise ValueError(f"family.phases must have different names, got {names}")
    for phase in family.phases:
        if phase.optimizer not in family.optimizers:
            raise ValueError(
                f"phase {phase.name!r}: optimizer must be one of {sorted(family.optimizers)}, "
                f"got {phase.optimizer!r}"
            )
        for field in ("repeats", "every"):
            if getattr(phase, field) < 1:
                raise ValueError(
                    f"phase {phase.name!r}: {field} must be >= 1, got {getattr(phase, field)}"
                )
        skip_norm = family.optimizers[phase.optimizer].skip_norm
        if skip_norm is not None and not skip_norm > 0:
            raise ValueError(
                f"optimizer {phase.optimizer!r}: skip_norm must be positive or None, "
                f"got {skip_norm}"
            )
        if phase.start < 0:
            raise ValueError(f"phase {phase.name!r}: start must be >= 0, got {phase.start}")


def _take(turn: _Turn, before: _Trained, slices: Batch, key: Key[Array, ""]):
    """(trained arrays, totals, bad) after a phase's turn; unchanged where the turn is not taken."""

    def taken(before: _Trained):
        return _turn(turn, before, slices, key)

    every, start = turn.phase.every, turn.phase.start
    if every == 1 and start == 0:
        return taken(before)
    totals = jax.eval_shape(taken, before)[1]

    def left_out(before: _Trained):
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), totals)
        return before, zeros, jnp.int32(-1)

    due = (turn.step >= start) & (turn.step % every == 0)
    return lax.cond(due, taken, left_out, before)


def _turn(turn: _Turn, before: _Trained, slices: Batch, key: Key[Array, ""]):
    """A phase's updates, one after another, each on its own slice of the batch.

    A scan, so that a critic's five updates compile as fast as one.
    """

    def update(trained: _Trained, batch_and_index):
        batch, index = batch_and_index
        trained, totals, bad = _update(turn, trained, batch, jax.random.fold_in(key, index))
        return trained, (totals, bad)

    repeats = turn.phase.repeats
    if repeats == 1:
        after, (totals, bad) = update(before, (jax.tree.map(lambda x: x[0], slices), 0))
    else:
        after, (totals, bads) = lax.scan(update, before, (slices, jnp.arange(repeats)))
        totals = jax.tree.map(lambda x: jnp.sum(x, axis=0), totals)
        bad = bads[jnp.argmax(bads >= 0)]  # -1 where all were good
    return after, totals, bad


def _update(turn: _Turn, before: _Trained, batch: Batch, key: Key[Array, ""]):
    """One optimizer update of one phase on one slice of the batch."""
    params, model_state, opt_state = before
    trained = _select(params, turn.optimizer.trains)
    grads, new_state, totals = _gradient(turn, before, batch, key)
    weight = jnp.maximum(totals["loss"][1], 1.0)
    grads = jax.tree.map(lambda g: g / weight.astype(g.dtype), grads)
    if turn.phase.observe is not None:
        means = {name: total / jnp.maximum(w, 1.0) for name, (total, w) in totals.items()}
        new_state = turn.phase.observe(new_state, means, turn.step)

    updates, new_opt_state = turn.optimizer.transform.update(grads, opt_state, trained)
    new_trained = optax.apply_updates(trained, updates)
    bad_grad, squares = first_bad(grads, lambda g: jnp.square(g.astype(jnp.float32)))
    # A finite gradient, too, can be made into an update that is not. The moments need no look of
    # their own: they are averages of gradients that were found finite.
    bad_param, _ = first_bad(new_trained, lambda x: jnp.where(jnp.isfinite(x), 0.0, jnp.inf))
    bad = first([jnp.isfinite(totals["loss"][0])])
    bad, count = earlier(bad, bad_grad, 1), len(jax.tree.leaves(unpack(trained)))
    bad = earlier(bad, bad_param, 1 + count)
    bad = earlier(bad, first([is_finite(new_state)]), 1 + 2 * count)
    ok, norm = bad < 0, jnp.sqrt(squares)
    totals["grad_norm"] = (norm, jnp.float32(1.0))
    if turn.optimizer.skip_norm is not None:
        fits = norm < turn.optimizer.skip_norm
        totals["left_out"] = (1.0 - fits.astype(jnp.float32), jnp.float32(1.0))
    totals = _where(ok, totals, jax.tree.map(jnp.zeros_like, totals))
    if turn.optimizer.skip_norm is not None:
        ok &= fits
    after = _Trained(
        {**params, **_where(ok, new_trained, trained)},
        _where(ok, new_state, model_state),
        _where(ok, new_opt_state, opt_state),
    )
    return after, totals, bad


def _gradient(turn: _Turn, before: _Trained, batch: Batch, key: Key[Array, ""]):
    """(gradient of the summed loss, new state, totals), over all micro-batches and devices.

    The gradient is packed as the parameters are.
    """
    packed, model_state, _ = before
    params = unpack(packed)
    trained = _select(params, turn.optimizer.trains)

    def objective(trained: Params, model_state: PyTree, batch: Batch, key: Key[Array, ""]):
        variables = Variables({**params, **trained}, model_state, turn.fixed)
        loss, aux = turn.phase.loss(variables, batch, key, turn.step)
        weight = batch.get("weight")
        totals = {k: weighted_sum(v, weight) for k, v in {"loss": loss, **aux.metrics}.items()}
        new_state = model_state if aux.state is None else aux.state
        return totals["loss"][0], (new_state, totals)

    def gradient(*args: Any):
        grads, aux = jax.grad(objective, has_aux=True)(*args)
        return {name: pack_like(packed[name], tree) for name, tree in grads.items()}, aux

    if turn.accumulate == 1:
        grads, (new_state, totals) = gradient(trained, model_state, batch, key)
    else:

        def body(carry, micro):
            grads, model_state, index = carry
            g, (model_state, totals) = gradient(
                trained, model_state, micro, jax.random.fold_in(key, index)
            )
            return (jax.tree.map(jnp.add, grads, g), model_state, index + 1), totals

        zeros = jax.tree.map(jnp.zeros_like, _select(packed, turn.optimizer.trains))
        carry, stacked = lax.scan(
            body, (zeros, model_state, jnp.int32(0)), _interleaved(batch, turn.accumulate)
        )
        grads, new_state, _ = carry
        totals = jax.tree.map(lambda x: jnp.sum(x, axis=0), stacked)
    if turn.axis_name is not None:
        grads, totals = lax.psum((grads, totals), turn.axis_name)
        # Statistics of the devices' parts of the batch are averaged: the state stays replicated.
        new_state = jax.tree.map(
            lambda x: lax.pmean(x, turn.axis_name) if jnp.issubdtype(x.dtype, jnp.floating) else x,
            new_state,
        )
    return grads, new_state, totals


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
