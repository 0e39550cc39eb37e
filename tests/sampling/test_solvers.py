"""Solvers of the ODE and of the SDE where the answer is known: order, law, odd numbers of steps."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.noise.levels import levels_at, reverse
from jaxgen.noise.log_snr import log_snr_cosine, log_snr_linear
from jaxgen.noise.process import edm, rectified, sub_vp, trigonometric, ve, vp
from jaxgen.noise.times import karras_times, log_snr_times, power_times, uniform_times
from jaxgen.sampling.ode_solvers import Churn, dpm_solver, heun, unipc
from jaxgen.sampling.sde_solvers import (
    dpm_solver_sde,
    euler_maruyama,
    predictor_corrector,
    reverse_diffusion,
)
from jaxgen.sampling.solvers import ancestral, ddim, euler, solve
from tests.sampling import mixture

LINEAR = vp(log_snr_linear)
SHARES = np.linspace(0.02, 0.98, 49)


def run(process, times, solver, x, *, seed=0, num_steps=None):
    levels = levels_at(process, times, num_steps)
    return jax.jit(lambda x, key: solve(mixture.denoise, levels, solver, key, x))(
        jnp.asarray(x, jnp.float32), jax.random.key(seed)
    )


ODE = {
    "ddim": (ddim(), 1),
    "heun": (heun(), 2),
    "dpm 1": (dpm_solver(1), 1),
    "dpm 2": (dpm_solver(), 2),
    "unipc 1": (unipc(1), 2),
    "unipc 2": (unipc(2), 2),
    "unipc 3": (unipc(3), 2),  # its first and last steps are of lower order
}
PROCESSES = {"vp": LINEAR, "straight": rectified(), "ve": ve(0.05, 20.0), "sub-vp": sub_vp()}


@pytest.mark.parametrize(
    ("solver", "process"),
    [(s, p) for s, p in itertools.product(ODE, PROCESSES) if p == "vp" or s in ("heun", "unipc 2")],
)
def test_order_of_convergence(solver, process):
    """The ODE keeps each value at its quantile."""
    method, order = ODE[solver]
    process = PROCESSES[process]
    first, last = (0.8, 0.2)
    start, end = (mixture.quantile(process, t, SHARES)[:, None] for t in (first, last))

    def error(num_steps):
        times = log_snr_times(process, num_steps, first=first, last=last)
        return float(np.abs(run(process, times, method, start) - end).mean())

    rough, fine = error(24), error(72)
    assert np.log(rough / fine) / np.log(3) == pytest.approx(order, abs=0.4)
    assert fine < {1: 0.01, 2: 0.002}[order]


def test_higher_orders_need_fewer_steps():
    """Twenty evaluations of each: what the orders are for."""
    start, end = (mixture.quantile(LINEAR, t, SHARES)[:, None] for t in (0.8, 0.2))
    times = log_snr_times(LINEAR, 20, first=0.8, last=0.2)
    error = {
        name: float(np.abs(run(LINEAR, times, method, start) - end).mean())
        for name, (method, _) in ODE.items()
        if name in ("ddim", "dpm 2", "unipc 2", "unipc 3")
    }
    assert error["dpm 2"] < 0.5 * error["ddim"]
    assert error["unipc 3"] < 0.25 * error["ddim"]


def samples(process, times, solver, *, num=6000):
    x = process.prior_std * jax.random.normal(jax.random.key(3), (num, 1))
    return np.asarray(run(process, times, solver, x, seed=4))


LAWS = {
    "ancestral": (LINEAR, lambda: uniform_times(120), ancestral()),
    "ddim": (LINEAR, lambda: power_times(120, last=0.0), ddim()),
    "ddim, half the noise": (LINEAR, lambda: uniform_times(120), ddim(0.5)),
    "euler, straight lines": (rectified(), lambda: uniform_times(120), euler()),
    "heun, edm": (edm(), lambda: karras_times(25), heun()),
    "heun with churn, edm": (
        edm(),
        lambda: karras_times(40),
        heun(Churn(edm(), 20.0, 0.05, 50.0, 1.003)),
    ),
    "heun with churn, vp": (
        LINEAR,
        lambda: karras_times(40, process=LINEAR, sigma_max=100.0),
        heun(Churn(LINEAR, 20.0, 0.05, 50.0, 1.0)),
    ),
    "dpm 2": (LINEAR, lambda: log_snr_times(LINEAR, 30), dpm_solver()),
    "dpm 2, straight lines": (rectified(), lambda: uniform_times(60), dpm_solver()),
    "unipc 3": (LINEAR, lambda: log_snr_times(LINEAR, 30), unipc()),
    "unipc 2, quarter circle": (trigonometric(), lambda: uniform_times(40), unipc(2)),
    "dpm 2, sde": (LINEAR, lambda: log_snr_times(LINEAR, 60), dpm_solver_sde()),
    "euler-maruyama, vp": (LINEAR, lambda: uniform_times(400, last=1e-3), euler_maruyama(LINEAR)),
    "euler-maruyama, sub-vp": (
        sub_vp(),
        lambda: uniform_times(400, last=1e-3),
        euler_maruyama(sub_vp()),
    ),
    "reverse diffusion, ve": (ve(), lambda: uniform_times(400), reverse_diffusion()),
    "predictor and corrector, ve": (
        ve(),
        lambda: uniform_times(150),
        predictor_corrector(reverse_diffusion(), snr=0.16),
    ),
}


@pytest.mark.parametrize("name", LAWS)
def test_the_law_of_the_samples(name):
    """Kolmogorov's distance to the data: 0.021 is that of as many true samples, one time in 100."""
    process, times, solver = LAWS[name]
    drawn = samples(process, times(), solver)
    limit = 0.05 if "predictor" in name else 0.03
    assert mixture.kolmogorov(drawn) < limit
    mean = (mixture.WEIGHTS * mixture.MEANS).sum()
    second = (mixture.WEIGHTS * (mixture.MEANS**2 + mixture.STDS**2)).sum()
    assert drawn.mean() == pytest.approx(mean, abs=0.04)
    assert drawn.std() == pytest.approx(np.sqrt(second - mean**2), abs=0.04)


SOLVERS = {
    "heun": heun(),
    "heun, churn": heun(Churn(LINEAR, 10.0)),
    "dpm": dpm_solver(),
    "unipc": unipc(),
    "sde": dpm_solver_sde(),
    "em": euler_maruyama(LINEAR),
    "rd": reverse_diffusion(),
    "pc": predictor_corrector(reverse_diffusion()),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_padding_changes_nothing_and_one_step_works(name):
    """The number of steps may be traced: 1, 2, 3, 7 of at most 9, compiled once."""
    solver, traced = SOLVERS[name], []
    x = jax.random.normal(jax.random.key(0), (5, 2))

    @jax.jit
    def sample(num_steps):
        traced.append(1)
        times = uniform_times(num_steps, last=1e-3, most=9)
        levels = levels_at(LINEAR, times, num_steps)
        return solve(mixture.denoise, levels, solver, jax.random.key(1), x)

    for count in (1, 2, 3, 7):
        padded = sample(jnp.int32(count))
        plain = run(LINEAR, uniform_times(count, last=1e-3), solver, x, seed=1)
        assert np.isfinite(padded).all()
        np.testing.assert_allclose(padded, plain, atol=2e-5)
    assert len(traced) == 1


@pytest.mark.parametrize("name", ["heun", "dpm", "unipc", "sde"])
def test_one_step_to_clean_data_is_the_denoisers_answer(name):
    x = jax.random.normal(jax.random.key(0), (5, 2))
    for process in (rectified(), trigonometric()):  # a VP process ends just short of clean data
        level = jax.tree.map(lambda v: jnp.full(5, v), process.at(jnp.float32(1)))
        wanted = mixture.denoise(x, level).x0
        one = run(process, uniform_times(1), SOLVERS[name], x)
        np.testing.assert_allclose(one, wanted, atol=1e-3)


def test_heun_spares_the_last_evaluation():
    """2 N - 1 evaluations, as the paper counts: 35 by 18 steps."""
    asked = []

    def counted(x, level, condition=None):
        jax.debug.callback(lambda _: asked.append(1), x[0, 0])
        return mixture.denoise(x, level)

    levels = levels_at(edm(), karras_times(18))
    x = 80 * jax.random.normal(jax.random.key(0), (3, 1))
    jax.jit(lambda x: solve(counted, levels, heun(), jax.random.key(1), x))(x)
    jax.effects_barrier()
    assert len(asked) == 35


def test_heun_inverts_itself():
    times = karras_times(60, sigma_max=20.0)
    x0 = mixture.quantile(edm(), 0.002, SHARES)[:, None]
    levels = levels_at(edm(), times)
    up = solve(mixture.denoise, reverse(levels), heun(), jax.random.key(0), jnp.float32(x0))
    assert np.std(up) == pytest.approx(18, abs=3)
    down = solve(mixture.denoise, levels, heun(), jax.random.key(0), up)
    np.testing.assert_allclose(down, x0, atol=0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dpm_solver(3), "order must be 1 or 2, got 3"),
        (lambda: unipc(4), "order must be 1, 2 or 3, got 4"),
        (lambda: unipc(2, variant="x"), "variant must be 'bh1' or 'bh2', got 'x'"),
        (lambda: heun(Churn(LINEAR, -1.0)), "churn needs amount and noise at least 0"),
        (lambda: heun(Churn(LINEAR, 1.0, 2.0, 1.0)), "0 <= low <= high"),
        (lambda: predictor_corrector(ddim(), snr=0.0), "snr must be positive, got 0.0"),
        (
            lambda: predictor_corrector(ddim(), num_corrections=0),
            "num_corrections must be at least 1, got 0",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", [n for n in SOLVERS if not n.startswith("heun")])
def test_solvers_to_data_refuse_rising_levels(name):
    levels = reverse(levels_at(LINEAR, uniform_times(3)))
    with pytest.raises(ValueError, match="levels must fall for .*, got reversed ones"):
        solve(mixture.denoise, levels, SOLVERS[name], jax.random.key(0), jnp.zeros((2, 1)))


def test_cosine_process_by_every_grid():
    """Grids of other processes serve this one: karras_times by its ratio of noise to signal."""
    process = vp(log_snr_cosine)
    for times in (
        karras_times(25, process=process),
        log_snr_times(process, 40),
        uniform_times(40, last=1e-3),
    ):
        assert mixture.kolmogorov(samples(process, times, dpm_solver())) < 0.035
