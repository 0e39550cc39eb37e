"""Every solver of the reverse process by name, what it costs, and a model through any of them."""

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.core import Denoising, Variables
from jaxgen.data.transforms import to_uint8
from jaxgen.families.denoising import draw
from jaxgen.files import open_atomically
from jaxgen.noise.chain import Chain
from jaxgen.noise.levels import Levels
from jaxgen.noise.process import Process
from jaxgen.sampling.ode_solvers import Churn, dpm_solver, heun, unipc
from jaxgen.sampling.sde_solvers import (
    dpm_solver_sde,
    euler_maruyama,
    predictor_corrector,
    reverse_diffusion,
)
from jaxgen.sampling.solvers import Solver, ancestral, ddim

BATCH = 64  # images of a call


class Entrant(NamedTuple):
    """A solver, and what it costs.

    Attributes:
        make: Function from the process to the solver.
        per_step: Evaluations of the network a step.
        spares_last: Whether the step to clean data takes one less.
        continuous: Whether it needs a process whose times have derivatives, not a chain.
    """

    make: Callable[[Any], Solver]
    per_step: int = 1
    spares_last: bool = False
    continuous: bool = False

    def steps(self, evaluations: int, to_data: bool) -> int:
        """The most steps of so many evaluations; may be 0."""
        return (evaluations + (self.spares_last and to_data)) // self.per_step

    def evaluations(self, steps: int, to_data: bool) -> int:
        """The evaluations of so many steps."""
        return self.per_step * steps - (self.spares_last and to_data)


def _churned(process: Process) -> Solver:
    """With the numbers of CIFAR-10 (Karras et al. 2022, table 5)."""
    return heun(Churn(process, amount=30.0, low=0.01, high=1.0, noise=1.007))


ENTRANTS: Mapping[str, Entrant] = {
    "ancestral": Entrant(lambda process: ancestral()),
    "ddim": Entrant(lambda process: ddim()),  # which is Euler's method
    "ddim_eta_0.5": Entrant(lambda process: ddim(0.5)),
    "ddim_eta_1": Entrant(lambda process: ddim(1.0)),
    "heun": Entrant(lambda process: heun(), 2, spares_last=True),
    "heun_churn": Entrant(_churned, 2, spares_last=True, continuous=True),
    "euler_maruyama": Entrant(euler_maruyama, continuous=True),
    "reverse_diffusion": Entrant(lambda process: reverse_diffusion()),
    "predictor_corrector": Entrant(lambda process: predictor_corrector(reverse_diffusion()), 2),
    "dpm": Entrant(lambda process: dpm_solver()),
    "dpm_sde": Entrant(lambda process: dpm_solver_sde()),
    "unipc2": Entrant(lambda process: unipc(2)),
    "unipc3": Entrant(lambda process: unipc(3)),
}


def chosen(parts: Denoising, solvers: Sequence[str] | None) -> list[str]:
    """The solvers to run, of those that fit.

    Args:
        parts: What samples are made by.
        solvers: Names that are asked for; None for all that fit.

    Raises:
        ValueError: If one that is asked for does not fit.
    """
    chain = isinstance(parts.process, Chain)
    fitting = [name for name, entrant in ENTRANTS.items() if not (chain and entrant.continuous)]
    for name in solvers or ():
        if name not in fitting:
            raise ValueError(f"--solvers {name} needs a continuous process, the run is of a chain")
    return fitting if solvers is None else list(dict.fromkeys(solvers))


def plan(parts: Denoising, name: str, evaluations: Sequence[int]) -> dict[int, int]:
    """The numbers of steps of a solver by their numbers of evaluations, least first.

    Args:
        parts: What samples are made by.
        name: Name of the solver.
        evaluations: Greatest numbers of evaluations; none of less than a step costs.
    """
    entrant = ENTRANTS[name]
    to_data = float(parts.levels(1).level.sigma[1]) == 0
    planned = {}
    for most in sorted(evaluations):
        steps = entrant.steps(most, to_data)
        if isinstance(parts.process, Chain):
            steps = min(steps, parts.process.num_timesteps)
        if steps:
            planned[entrant.evaluations(steps, to_data)] = steps
    return planned


def program(parts: Denoising, solver: Solver) -> Callable[..., tuple[Any, Any]]:
    """The compiled `(variables, levels, key, condition) -> (uint8 images, which are finite)`.

    Args:
        parts: What samples are made by.
        solver: The solver.
    """

    @jax.jit
    def run(variables: Variables, levels: Levels, key: Any, condition: Any):
        by = parts._replace(solver=solver, levels=lambda num_steps: levels)
        x = draw(by, variables, key, BATCH, condition)
        return to_uint8(x), jnp.isfinite(x).reshape(BATCH, -1).all(axis=1)

    return run


def read_shown(path: Path, protocol: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Some images of each row by its name; none where there is no sound file of the protocol.

    Args:
        path: Path of the file.
        protocol: What every row names.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, zipfile.BadZipFile):
        return {}
    same = str(arrays.pop("protocol", "")) == json.dumps(protocol)
    return arrays if same else {}


def write_shown(path: Path, protocol: Mapping[str, str], shown: Mapping[str, np.ndarray]) -> None:
    """Write some images of each row, replacing the file at once.

    Args:
        path: Path of the file.
        protocol: What every row names.
        shown: Images, uint8 [num, H, W, C], by the row's name.
    """
    with open_atomically(path) as file:
        arrays: dict[str, Any] = {"protocol": np.array(json.dumps(protocol)), **shown}
        np.savez(file, **arrays)
