"""What every solver costs beside the network's evaluations.

    python -m experiments.benchmarks.solvers [--size tiny|small] [--steps 20] [--repeats 7]

The network is that of `benchmarks.ddpm`, untrained. A solver's steps are timed beside as many bare
evaluations of the network in a loop compiled alike, interleaved, medians; and alone, by a denoiser
that costs nothing, which says on a busy machine too what the solver itself takes. The levels are
EDM's; `chain` are the solvers on the discrete chain of DDPM. A solver should cost at most 3 % of
its network.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgen.noise import parametrization, process, times
from jaxgen.noise.chain import levels_of
from jaxgen.noise.levels import Levels, levels_at
from jaxgen.noise.parametrization import Denoised, denoiser
from jaxgen.noise.process import Level
from jaxgen.noise.spacing import leading
from jaxgen.sampling.guidance import clip_x0
from jaxgen.sampling.solvers import solve

from ..comparison.solvers import ENTRANTS, Entrant
from .ddpm import CHAIN, SIZES, Size
from .harness import interleaved, jit, machine

MOST = 0.03  # of the network
CHAINED = ("ancestral", "ddim")


class Case(NamedTuple):
    """A solver on its levels.

    Attributes:
        entrant: The solver, and its evaluations a step.
        process: The process or chain.
        levels: `num_steps -> Levels`.
        predicts: What the network predicts.
        clip: Whether the expected data are clipped.
    """

    entrant: Entrant
    process: Any
    levels: Callable[[int], Levels]
    predicts: parametrization.Parametrization
    clip: bool = False


def cases() -> dict[str, Case]:
    """Every solver on EDM's process, and those of the chain."""
    path, predicts = process.edm(), parametrization.edm()
    scaled = predicts._replace(time=lambda level: 1000.0 * predicts.time(level))

    def edm_levels(num_steps: int) -> Levels:
        return levels_at(path, times.karras_times(num_steps))

    def chain_levels(num_steps: int) -> Levels:
        return levels_of(CHAIN, num_steps, leading)

    timed = {name: Case(entrant, path, edm_levels, scaled) for name, entrant in ENTRANTS.items()}
    for name in CHAINED:
        entrant = ENTRANTS[name]
        timed[f"{name}, chain"] = Case(entrant, CHAIN, chain_levels, parametrization.EPS, True)
    return timed


def measure(size: Size, num_steps: int, repeats: int) -> dict[str, tuple[float, float]]:
    """Solver -> its seconds a step beside the network's: by the difference, and alone.

    Args:
        size: Network, images and batch.
        num_steps: Number of steps of each solver.
        repeats: Number of timed rounds.

    Returns:
        The seconds by name, and under `network` those of one evaluation, twice.
    """
    shape = (size.samples, *size.image)
    key = jax.random.key(0)
    variables = size.model.init(key, jnp.zeros(shape), jnp.zeros(size.samples), None, train=False)

    def network(params: Any, x: jax.Array, time: jax.Array, condition: Any) -> jax.Array:
        output: Any = size.model.apply(params, x, time, condition, train=False)
        return output

    def bare(params: Any, x: jax.Array, count: jax.Array) -> jax.Array:
        def body(i: jax.Array, x: jax.Array) -> jax.Array:
            # Fed its own output, an untrained network would go to numbers that are slow, near 0.
            return x + 1e-3 * network(params, x, jnp.full(size.samples, i), None)

        return jax.lax.fori_loop(0, count, body, x)

    def halved(x: jax.Array, level: Level, condition: Any) -> Denoised:
        return Denoised(0.5 * x)

    def drawn(case: Case, free: bool) -> Callable[[], jax.Array]:
        solver, levels = case.entrant.make(case.process), case.levels(num_steps)

        def run(params: Any, x: jax.Array, levels: Levels) -> jax.Array:
            denoise = denoiser(lambda *args: network(params, *args), case.predicts)
            if free:
                denoise = halved
            if case.clip:
                denoise = clip_x0(denoise)
            return solve(denoise, levels, solver, key, case.process.prior_std * x)

        compiled = jit(run)
        return lambda: compiled(variables, start, levels)

    start = jax.random.normal(key, shape)
    loop = jit(bare)
    calls: dict[str, Callable[[], object]] = {
        "network": lambda: loop(variables, start, jnp.int32(num_steps))
    }
    alone: dict[str, Callable[[], object]] = {}
    for name, case in cases().items():
        calls[name], alone[name] = drawn(case, False), drawn(case, True)
    whole, lone = interleaved(calls, repeats, warmup=1), interleaved(alone, repeats, warmup=1)
    one = whole.pop("network") / num_steps
    results = {"network": (one, one)}
    for name, case in cases().items():
        to_data = float(case.levels(1).level.sigma[1]) == 0
        evaluations = case.entrant.evaluations(num_steps, to_data)
        beside = (whole[name] - evaluations * one) / num_steps
        results[name] = beside, lone[name] / num_steps
    return results


def main() -> None:
    """Print a row a solver."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny", help="Size to time.")
    parser.add_argument("--steps", type=int, default=20, help="Number of steps of each solver.")
    parser.add_argument("--repeats", type=int, default=7, help="Number of timed rounds.")
    options = parser.parse_args()
    if options.steps < 2 or options.repeats < 5:
        parser.error(f"--steps from 2, --repeats from 5: {options.steps}, {options.repeats}")
    print(machine())
    results = measure(SIZES[options.size], options.steps, options.repeats)
    (one, _) = results.pop("network")
    print(f"one evaluation of the network, {options.size}: {1e3 * one:.3f} ms")
    print(f"{'solver':24}{'beside it':>12}{'alone, us a step':>20}")
    for name, (beside, alone) in results.items():
        per_step = one * (cases()[name].entrant.per_step)
        shares = (beside / per_step, alone / per_step)
        mark = "  above 3 %" if max(shares) > MOST else ""
        print(f"{name:24}{shares[0]:>12.1%}{1e6 * alone:>12.0f} ({shares[1]:.1%}){mark}")


if __name__ == "__main__":
    main()
