"""The types that every family, step and loop share.

A generative model is a `Family`: a NamedTuple of pure functions, as an optax transformation is a
pair of them. Nothing here computes; this file is the contract between the rooms.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import optax
from jaxtyping import Array, Float, Int, Key

PyTree = Any
Batch = Mapping[str, Array]
Params = Mapping[str, PyTree]


class Aux(NamedTuple):
    """What a loss returns beside its per-example values.

    Attributes:
        metrics: name -> f32[B], one number per example; the step averages them under the mask.
        model_state: the new non-trained state (batch statistics, spectral-norm vectors), `{}` where
            there is none. Only a call with `train=True` may change it.
    """

    metrics: Mapping[str, Float[Array, " batch"]]
    model_state: PyTree


@runtime_checkable
class LossFn(Protocol):
    """One number per example, never reduced: the step owns masks, means and devices."""

    def __call__(
        self, params: Params, model_state: PyTree, batch: Batch, key: Key[Array, ""], *, train: bool
    ) -> tuple[Float[Array, " batch"], Aux]: ...


class Phase(NamedTuple):
    """One optimizer's turn inside the compiled step. A VAE has one, a GAN two.

    Attributes:
        name: prefixes the phase's metrics where a family has more than one phase.
        trains: the top-level keys of `params` that this phase updates.
        loss: the per-example objective.
        optimizer: any optax transformation, clipping and schedule included.
        repeats: updates a step; the i-th sees the i-th slice of the step's batch.
    """

    name: str
    trains: tuple[str, ...]
    loss: LossFn
    optimizer: optax.GradientTransformation
    repeats: int = 1


class Bound(NamedTuple):
    """What a family's `log_prob` says of log p(x); without it the number compares with nothing.

    Attributes:
        kind: "exact", or which lower bound: "ELBO", "IWAE-K" of K importance samples, or a
            diffusion's "variational bound" over its noise levels.
        num_dims: numbers in an example.
        eight_bit: x is the 8-bit data, so that bits per dimension have their usual meaning.
        dequantization: "none"; or the noise, "uniform" or "learned", that is added to the 8-bit
            data before their density is taken: by one draw of it even an exact density is a lower
            bound of the 8-bit data's log-likelihood.
        given: the batch's entry that x is conditional on, or None.
    """

    kind: str
    num_dims: int
    eight_bit: bool
    dequantization: str = "none"
    given: str | None = None


class Family(NamedTuple):
    """A generative model as pure functions.

    Attributes:
        init: `(key, batch) -> (params, model_state)`; it sees a real batch, so that data-dependent
            initialization (actnorm, weight normalization) needs no special case.
        phases: the optimizers' turns, in order.
        evaluate: a `LossFn`, called with `train=False`; with a `log_prob` its values are the
            negative of that.
        sample: `(params, model_state, key, num, *, condition=None) -> [num, ...]` in model space.
        log_prob: `(params, model_state, batch, key) -> f32[B]`, nats per example, exact or a lower
            bound; None where there is none.
        bound: what `log_prob` is; None where there is none.
        encode: `(params, model_state, batch, key) -> latents`, or None.
        decode: `(params, model_state, latents, key) -> x`, or None.
    """

    init: Callable[[Key[Array, ""], Batch], tuple[Params, PyTree]]
    phases: tuple[Phase, ...]
    evaluate: LossFn
    sample: Callable[..., Array]
    log_prob: Callable[..., Float[Array, " batch"]] | None = None
    encode: Callable[..., PyTree] | None = None
    decode: Callable[..., Array] | None = None
    bound: Bound | None = None


class State(NamedTuple):
    """Everything a run needs to go on: the checkpoint, arrays only.

    Randomness and data are functions of (seed, step), so neither keys nor iterators are kept.

    Attributes:
        step: i32[], updates done (skipped ones included).
        params: trained parameters, by network.
        model_state: non-trained state.
        opt_state: phase name -> optimizer state.
        ema: exponential moving average of (some of) `params`, by network; `{}` where there is none.
    """

    step: Int[Array, ""]
    params: Params
    model_state: PyTree
    opt_state: Mapping[str, PyTree]
    ema: Params
