"""The types that every family, step and loop share: the contract of the package.

A generative model is a `Family`: a NamedTuple of pure functions, as an optax transformation is a
pair of them. Nothing here computes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Array, Float, Int, Key

if TYPE_CHECKING:
    import optax

    from jaxgen.conditioning.base import Conditioning

PyTree = Any
Batch = Mapping[str, Array]
Params = Mapping[str, PyTree]
Metrics = Mapping[str, Float[Array, " batch"]]


class Variables(NamedTuple):
    """Every array that a model computes with.

    Attributes:
        params: The trained parameters, by network.
        state: What training changes without a gradient: batch statistics, spectral vectors,
            codebooks, controllers.
        fixed: What is used as it is (a pretrained first stage, a text encoder): never trained,
            averaged or checkpointed, and an argument of compiled functions, never a constant.
    """

    params: Params
    state: PyTree = {}
    fixed: PyTree = {}


class Aux(NamedTuple):
    """What a loss returns beside its per-example values.

    Attributes:
        metrics: Name -> f32[B], one number per example; the step averages them by weight.
        state: The whole new `Variables.state`, or None where it is as it was.
    """

    metrics: Metrics = {}
    state: PyTree = None


@runtime_checkable
class LossFn(Protocol):
    """A training objective: one number per example, never reduced.

    The step owns weights, means and devices. `step` counts the updates done, for warm-ups.
    """

    def __call__(
        self, variables: Variables, batch: Batch, key: Key[Array, ""], step: Int[Array, ""]
    ) -> tuple[Float[Array, " batch"], Aux]: ...


@runtime_checkable
class Evaluate(Protocol):
    """What `evaluate` measures of held-out examples: one number per example, and metrics."""

    def __call__(
        self, variables: Variables, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, " batch"], Metrics]: ...


class Optimizer(NamedTuple):
    """One optimizer's state and what it updates; several phases may share it.

    Attributes:
        trains: The top-level keys of `params` that it updates.
        transform: Any optax transformation, with clipping and schedule.
        skip_norm: Global norm of the gradient from which on an update is left out: parameters,
            state, moments and averages stay as they were, and the metric "left_out" counts it. None
            for none.
    """

    trains: tuple[str, ...]
    transform: "optax.GradientTransformation"
    skip_norm: float | None = None


# (state, means of the phase's metrics over the global batch, step) -> state
Observe = Callable[[PyTree, Mapping[str, Float[Array, ""]], Int[Array, ""]], PyTree]


class Phase(NamedTuple):
    """One turn inside the compiled step. A VAE has one, a GAN two or more.

    Attributes:
        name: The prefix of the phase's metrics where a family has more than one phase.
        optimizer: A key of `Family.optimizers`; phases of one optimizer share its moments.
        loss: The per-example objective.
        repeats: Updates a turn; the i-th sees the i-th slice of the step's batch.
        every: The turn comes at steps 0, every, 2 every, ... A turn that is not taken changes
            nothing and weighs 0 in its metrics. The phase's loss decides whether its weight makes
            up for the turns that are left out.
        start: The step before which no turn is taken, as if there were no such phase.
        observe: `(state, means, step) -> state` after each update, from the phase's metrics as
            averaged over the whole batch on all devices: a controller's place. None for none.
    """

    name: str
    optimizer: str
    loss: LossFn
    repeats: int = 1
    every: int = 1
    start: int = 0
    observe: Observe | None = None


class Bound(NamedTuple):
    """What a family's `log_prob` says of log p(x); without it the number compares with nothing.

    Attributes:
        kind: "exact", or which lower bound: "ELBO", "IWAE-K" of K importance samples, or a
            diffusion's "variational bound" over its noise levels.
        num_dims: The numbers in an example.
        eight_bit: Whether x is the 8-bit data, so that bits per dimension have their usual meaning.
        dequantization: "none"; or the noise, "uniform" or "learned", that is added to the 8-bit
            data before their density is taken: by one draw of it even an exact density is a lower
            bound of the 8-bit data's log-likelihood.
        given: The batch's entry that x is conditional on, or None.
    """

    kind: str
    num_dims: int
    eight_bit: bool
    dequantization: str = "none"
    given: str | None = None


class LatentSpace(NamedTuple):
    """The latents that a family decodes: how to draw them, and how to walk between them.

    Latents are pytrees whose leaves begin with the batch: one vector, a vector and a map, a
    hierarchy.

    Attributes:
        interpolate: `(start, end, steps) -> latents [steps, B, ...]`, from start to end.
        draw: `(key, num) -> latents` from the prior, or None where there is none.
        width: The numbers in a latent where it is one vector f32[B, width] whose entries may be
            moved one by one, else None.
    """

    interpolate: Callable[[PyTree, PyTree, int], PyTree]
    draw: Callable[[Key[Array, ""], int], PyTree] | None = None
    width: int | None = None


class Sampling(NamedTuple):
    """What a sample costs.

    Attributes:
        passes: How many passes of the network a sample takes, one after another.
        note: What these passes are, as a phrase: "denoising steps, each for all pixels".
    """

    passes: int
    note: str


class Denoising(NamedTuple):
    """The parts that a family of denoisers draws its samples by, for those who take the steps.

    Attributes:
        denoiser: `(variables, *, scale=None, clip=None) -> Denoise`: the network under its
            parameters, with guidance and clipping; None for the sampler's own.
        encode_condition: `(variables, condition) -> ` what the denoiser is told of a condition as
            the data has it; None of None.
        process: The `Process`, or the discrete `Chain`.
        levels: `num_steps -> Levels`, from noise to data, spaced as the sampler spaces them.
        solver: The sampler's `Solver`.
        num_steps: The sampler's number of steps.
        shape: The shape of an example.
    """

    denoiser: Callable[..., Any]
    encode_condition: Callable[[Variables, Any], Any]
    process: Any
    levels: Callable[[int], Any]
    solver: Any
    num_steps: int
    shape: tuple[int, ...]


def _nothing_to_say(metrics: Mapping[str, float]) -> Sequence[str]:
    return ()


def _usable(params: Params) -> None:
    return None


class Family(NamedTuple):
    """A generative model as pure functions.

    What a family does not do is None, and what can be drawn and measured of it follows from that.

    Attributes:
        init: `(key, batch, fixed={}) -> Variables`; it sees a real batch, so that data-dependent
            initialization (actnorm, weight normalization) needs no special case.
        optimizers: Name -> `Optimizer`.
        phases: The turns of a training step, in order.
        evaluate: The measure of held-out examples; with a `log_prob` its values are the negative
            of that.
        sample: `(variables, key, num, *, condition=None, **options) -> [num, ...]` in model space;
            None where there is no prior to draw from. `condition` is as the data has it, `num`
            labels, say, or an encoded `Condition`. The family's docstring lists further options.
        log_prob: `(variables, batch, key) -> f32[B]`, nats per example, exact or a lower bound.
        bound: What `log_prob` is.
        encode: `(variables, batch, key) -> latents`.
        decode: `(variables, latents, key, *, condition=None) -> x`.
        complete: `(variables, key, given, known, *, condition=None) -> x`: examples `given`, drawn
            anew where `known` is false.
        latents: The space of what `decode` takes and `encode` gives.
        conditioning: What the model is told, or None.
        fixed: The pretrained arrays that `Variables.fixed` holds.
        watch: `metrics -> warnings` for the user, from a row of averaged metrics.
        check: Raises ValueError for parameters, read from a checkpoint, that cannot be used.
        name: What kind of model it is, as people call it: "GAN", "Diffusion".
        sampling: What a sample of `sample` costs, or None where that is not known.
        denoising: What `sample` is made of in a family of denoisers: for other solvers, and for
            what is edited on the way from noise to data (`jaxgen.sampling.editing`). Else None.
        num_codes: Number of different codes where `encode` gives a map of them, integers [B, h, w].
            Else None.
    """

    init: Callable[..., Variables]
    optimizers: Mapping[str, Optimizer]
    phases: tuple[Phase, ...]
    evaluate: Evaluate
    sample: Callable[..., Array] | None = None
    log_prob: Callable[..., Float[Array, " batch"]] | None = None
    bound: Bound | None = None
    encode: Callable[..., PyTree] | None = None
    decode: Callable[..., Array] | None = None
    complete: Callable[..., Array] | None = None
    latents: LatentSpace | None = None
    conditioning: "Conditioning | None" = None
    fixed: PyTree = {}
    watch: Callable[[Mapping[str, float]], Sequence[str]] = _nothing_to_say
    check: Callable[[Params], None] = _usable
    name: str = ""
    sampling: Sampling | None = None
    denoising: Denoising | None = None
    num_codes: int | None = None


class State(NamedTuple):
    """Everything a run needs to go on: the checkpoint, arrays only.

    Randomness and data are functions of (seed, step), so neither keys nor iterators are kept.

    Attributes:
        step: The updates done, skipped ones included; i32[].
        params: The trained parameters, by network.
        state: `Variables.state`.
        opt_state: Optimizer name -> its state.
        averages: Average name -> moving average of (some of) `params`, by network.
    """

    step: Int[Array, ""]
    params: Params
    state: PyTree
    opt_state: Mapping[str, PyTree]
    averages: Mapping[str, Params]
