"""Samplers' trajectories beside those of diffusers, step by step with the same noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.noise.chain import (
    chain,
    cosine_betas,
    large_variance,
    levels_of,
    linear_betas,
    small_variance,
)
from jaxgen.noise.parametrization import EPS, X0, V, denoiser
from jaxgen.noise.spacing import leading
from jaxgen.sampling.guidance import clip_x0
from jaxgen.sampling.solvers import ancestral, ddim, solve

SHAPE = (4, 3, 3, 2)


def network(x, t, xp):
    """Any smooth function of x and t, in JAX or PyTorch; not near-linear, mixes channels."""
    return xp.tanh(1.5 * x) + 0.3 * xp.sin(3 * x + 0.01 * t)


def sample(predicts, steps, key, solver, num_steps, *, clip=True):
    denoise = denoiser(lambda x, t, _: network(x, t.reshape(-1, 1, 1, 1), jnp), predicts)
    key_start, key_steps = jax.random.split(key)
    x = jax.random.normal(key_start, SHAPE)
    levels = levels_of(steps, num_steps, leading)
    return solve(clip_x0(denoise) if clip else denoise, levels, solver, key_steps, x)


@pytest.mark.parametrize(
    ("predicts", "prediction_type", "clip", "eta"),
    [
        (EPS, "epsilon", True, 0.0),
        (EPS, "epsilon", False, 0.6),
        (X0, "sample", True, 0.6),
        (V, "v_prediction", False, 0.0),
        (V, "v_prediction", True, 1.0),
    ],
)
def test_ddim_trajectories_are_those_of_diffusers(key, predicts, prediction_type, clip, eta):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    num_steps, betas = 20, cosine_betas(200)
    scheduler = diffusers.DDIMScheduler(
        200,
        trained_betas=list(betas),
        prediction_type=prediction_type,
        clip_sample=clip,
        timestep_spacing="leading",
    )
    scheduler.alphas_cumprod = torch.cumprod(1 - torch.tensor(betas), dim=0)
    scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(num_steps)

    key_start, key_steps = jax.random.split(key)
    x = torch.tensor(np.asarray(jax.random.normal(key_start, SHAPE), np.float64))
    for i, t in zip(reversed(range(num_steps)), scheduler.timesteps.tolist(), strict=True):
        noise = np.asarray(jax.random.normal(jax.random.fold_in(key_steps, i), SHAPE), np.float64)
        x = scheduler.step(
            network(x, t, torch),
            t,
            x,
            eta=eta,
            use_clipped_model_output=True,
            variance_noise=torch.tensor(noise) if eta else None,
        ).prev_sample

    got = sample(predicts, chain(betas), key, ddim(eta), num_steps, clip=clip)
    want = x.numpy()
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize(
    ("variance", "kind"), [(small_variance, "fixed_small"), (large_variance, "fixed_large")]
)
def test_ancestral_trajectories_are_those_of_diffusers(key, monkeypatch, variance, kind):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    betas = linear_betas(50, 2e-3, 0.3)
    scheduler = diffusers.DDPMScheduler(50, trained_betas=list(betas), variance_type=kind)
    scheduler.alphas_cumprod = torch.cumprod(1 - torch.tensor(betas), dim=0)
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)

    @jax.jit
    def draw(num_steps):
        return sample(EPS, chain(betas), key, ancestral(variance), num_steps)

    key_start, key_steps = jax.random.split(key)
    for num_steps in (50, 10):
        scheduler.set_timesteps(num_steps)
        x = torch.tensor(np.asarray(jax.random.normal(key_start, SHAPE), np.float64))
        for i, t in zip(reversed(range(num_steps)), scheduler.timesteps.tolist(), strict=True):
            noise = jax.random.normal(jax.random.fold_in(key_steps, i), SHAPE)
            monkeypatch.setattr(
                "diffusers.schedulers.scheduling_ddpm.randn_tensor",
                lambda *_, noise=noise, **__: torch.tensor(np.asarray(noise, np.float64)),
            )
            # The scheduler looks at the second axis only to find a learned variance.
            x = scheduler.step(network(x, t, torch), t, x).prev_sample
        np.testing.assert_allclose(draw(num_steps), x.numpy(), atol=2e-4)
