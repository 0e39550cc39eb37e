"""Samplers' trajectories beside those of diffusers, step by step with the same noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.sampling.diffusion import ancestral, ddim
from jaxgen.schedules import cosine_betas, discrete_schedule, linear_betas

SHAPE = (4, 3, 3, 2)


def network(x, t, xp):
    """Any smooth function of x and t, in JAX or PyTorch; not near-linear, mixes channels."""
    return xp.tanh(1.5 * x) + 0.3 * xp.sin(3 * x + 0.01 * t)


@pytest.mark.parametrize(
    ("prediction", "prediction_type", "clip_x0", "eta"),
    [
        ("eps", "epsilon", True, 0.0),
        ("eps", "epsilon", False, 0.6),
        ("x0", "sample", True, 0.6),
        ("v", "v_prediction", False, 0.0),
        ("v", "v_prediction", True, 1.0),
    ],
)
def test_ddim_trajectories_are_those_of_diffusers(key, prediction, prediction_type, clip_x0, eta):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    num_steps, betas = 20, cosine_betas(200)
    scheduler = diffusers.DDIMScheduler(
        200,
        trained_betas=list(betas),
        prediction_type=prediction_type,
        clip_sample=clip_x0,
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

    got = ddim(
        lambda x, t, _: network(x, t.reshape(-1, 1, 1, 1), jnp),
        discrete_schedule(betas),
        key,
        SHAPE,
        num_steps=num_steps,
        eta=eta,
        prediction=prediction,
        clip_x0=clip_x0,
    )
    want = x.numpy()
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize(("variance", "kind"), [("small", "fixed_small"), ("large", "fixed_large")])
def test_ancestral_trajectories_are_those_of_diffusers(key, monkeypatch, variance, kind):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    betas = linear_betas(50, 2e-3, 0.3)
    scheduler = diffusers.DDPMScheduler(50, trained_betas=list(betas), variance_type=kind)
    scheduler.alphas_cumprod = torch.cumprod(1 - torch.tensor(betas), dim=0)
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)

    @jax.jit
    def sample(num_steps):
        return ancestral(
            lambda x, t, _: network(x, t.reshape(-1, 1, 1, 1), jnp),
            discrete_schedule(betas),
            key,
            SHAPE,
            num_steps=num_steps,
            spacing="leading",
            variance=variance,
        )

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
        np.testing.assert_allclose(sample(num_steps), x.numpy(), atol=2e-4)
