"""DPM-Solver++ and UniPC beside diffusers' schedulers, Heun beside the paper's algorithm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.distributions.elementwise import standard_normal
from jaxgen.noise.levels import levels_at
from jaxgen.noise.parametrization import EPS, denoiser, edm
from jaxgen.noise.process import Level, Process
from jaxgen.noise.process import edm as edm_process
from jaxgen.noise.times import karras_times
from jaxgen.sampling.ode_solvers import Churn, dpm_solver, heun, unipc
from jaxgen.sampling.sde_solvers import dpm_solver_sde
from jaxgen.sampling.solvers import euler, solve
from tests.sampling.test_diffusion_parity import SHAPE, network

NUM_STEPS = 12


def levels_of_scheduler(scheduler):
    """The levels that a scheduler of diffusers visits, from its own table of sigma / alpha."""
    ratio = scheduler.sigmas.double().numpy()
    alpha = 1 / np.sqrt(1 + ratio**2)
    times = np.append(scheduler.timesteps.numpy(), 0)
    table = [jnp.asarray(v, jnp.float32) for v in (alpha, alpha * ratio, times)]
    process = Process(lambda i: Level(*(v[i] for v in table)), 1.0)
    return levels_at(process, jnp.arange(NUM_STEPS + 1))


CASES = {
    "dpm 2": ("DPMSolverMultistepScheduler", {"solver_order": 2}, dpm_solver()),
    "dpm 1": ("DPMSolverMultistepScheduler", {"solver_order": 1}, dpm_solver(1)),
    "dpm 2, sde": (
        "DPMSolverMultistepScheduler",
        {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"},
        dpm_solver_sde(),
    ),
    "unipc 2": ("UniPCMultistepScheduler", {"solver_order": 2}, unipc(2)),
    "unipc 3": ("UniPCMultistepScheduler", {"solver_order": 3}, unipc(3)),
    "unipc 3, bh1": (
        "UniPCMultistepScheduler",
        {"solver_order": 3, "solver_type": "bh1"},
        unipc(3, variant="bh1"),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("karras", [False, True])
def test_trajectories_are_those_of_diffusers(name, karras):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    kind, options, solver = CASES[name]
    end = "sigma_min" if "bh1" in name else "zero"  # theirs is NaN with bh1 at clean data
    scheduler = getattr(diffusers, kind)(
        1000, final_sigmas_type=end, use_karras_sigmas=karras, lower_order_final=True, **options
    )
    scheduler.set_timesteps(NUM_STEPS)
    levels = levels_of_scheduler(scheduler)
    key, key_start = jax.random.key(1), jax.random.key(0)
    start = jax.random.normal(key_start, SHAPE)

    x = torch.tensor(np.asarray(start)).double()
    for i, t in enumerate(scheduler.timesteps):
        more = {}
        if "sde" in name:
            noise = standard_normal(jax.random.fold_in(key, NUM_STEPS - 1 - i), SHAPE)
            more = {"variance_noise": torch.tensor(np.asarray(noise)).double()}
        x = scheduler.step(network(x, float(t), torch), t, x, **more).prev_sample

    denoise = denoiser(lambda x, t, _: network(x, t.reshape(-1, 1, 1, 1), jnp), EPS)
    got = jax.jit(lambda x: solve(denoise, levels, solver, key, x))(start)
    assert np.std(x.numpy()) > 0.1
    np.testing.assert_allclose(got, x.numpy(), rtol=1e-4, atol=3e-5)


EDM_CASES = {
    "euler": ("EDMEulerScheduler", {}, euler()),
    "dpm 1": ("EDMDPMSolverMultistepScheduler", {"solver_order": 1}, dpm_solver(1)),
    "dpm 2": ("EDMDPMSolverMultistepScheduler", {"solver_order": 2}, dpm_solver()),
}


@pytest.mark.parametrize("name", EDM_CASES)
def test_edms_trajectories_are_those_of_diffusers(name):
    """Their preconditioning too: the schedulers scale what the network sees and says."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    kind, options, solver = EDM_CASES[name]
    scheduler = getattr(diffusers, kind)(prediction_type="epsilon", **options)
    scheduler.set_timesteps(NUM_STEPS)
    sigma = jnp.asarray(scheduler.sigmas.numpy())
    np.testing.assert_allclose(sigma, karras_times(NUM_STEPS), rtol=1e-4, atol=1e-6)
    start = 80 * jax.random.normal(jax.random.key(0), SHAPE)

    x = torch.tensor(np.asarray(start)).double()
    for t in scheduler.timesteps:
        said = network(scheduler.scale_model_input(x, t), float(t), torch)
        x = scheduler.step(said, t, x).prev_sample

    denoise = denoiser(lambda x, t, _: network(x, t.reshape(-1, 1, 1, 1), jnp), edm(0.5))
    got = jax.jit(
        lambda x: solve(denoise, levels_at(edm_process(), sigma), solver, jax.random.key(1), x)
    )(start)
    assert np.std(x.numpy()) > 0.1
    np.testing.assert_allclose(got, x.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("amount", [0.0, 20.0])
def test_heun_is_edms_algorithm(amount):
    """Algorithm 2 of Karras et al. in float64, with the same noise."""
    low, high, noise_std = 0.05, 20.0, 1.007
    sigma = np.float64(karras_times(NUM_STEPS))
    key = jax.random.key(1)
    start = 80 * jax.random.normal(jax.random.key(0), SHAPE)

    def expected(x, s):
        skip, scale = 0.25 / (s**2 + 0.25), 1 / np.sqrt(s**2 + 0.25)
        return skip * x + s * 0.5 * scale * network(scale * x, np.log(s) / 4, np)

    x = np.float64(start)
    for i in range(NUM_STEPS):
        fresh = np.float64(standard_normal(jax.random.fold_in(key, NUM_STEPS - 1 - i), SHAPE))
        gamma = min(amount / NUM_STEPS, np.sqrt(2) - 1) if low <= sigma[i] <= high else 0.0
        hat = sigma[i] * (1 + gamma)
        x_hat = x + np.sqrt(hat**2 - sigma[i] ** 2) * noise_std * fresh
        slope = (x_hat - expected(x_hat, hat)) / hat
        x = x_hat + (sigma[i + 1] - hat) * slope
        if sigma[i + 1] > 0:
            other = (x - expected(x, sigma[i + 1])) / sigma[i + 1]
            x = x_hat + (sigma[i + 1] - hat) * 0.5 * (slope + other)

    denoise = denoiser(lambda x, t, _: network(x, t.reshape(-1, 1, 1, 1), jnp), edm(0.5))
    process = edm_process()
    solver = heun(Churn(process, amount, low, high, noise_std) if amount else None)
    levels = levels_at(process, karras_times(NUM_STEPS))
    got = jax.jit(lambda x: solve(denoise, levels, solver, key, x))(start)
    np.testing.assert_allclose(got, x, rtol=1e-3, atol=1e-3)
