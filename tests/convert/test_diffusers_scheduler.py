"""diffusers' schedulers and ours: betas, timesteps, and what is refused."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.convert.diffusers_scheduler import DDIM, DDPM, Scheduler, from_config
from jaxgen.noise.parametrization import Denoised


def peer(kind, **options):
    diffusers = pytest.importorskip("diffusers", reason="needs diffusers, of the extra parity")
    return getattr(diffusers, kind)(**options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "sigmoid", "num_train_timesteps": 200},
        {"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3},
        {"rescale_betas_zero_snr": True},
    ],
    ids=["linear", "scaled_linear", "cosine", "sigmoid", "trained", "zero_snr"],
)
def test_the_chain_is_theirs(options):
    theirs = peer(DDPM, **options)
    ours = from_config(dict(theirs.config))
    np.testing.assert_allclose(
        ours.chain().alphas_cumprod, theirs.alphas_cumprod.numpy(), rtol=1e-4, atol=1e-7
    )
    assert from_config({**theirs.config, "_class_name": DDIM}).kind == DDIM


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("num_steps", [2, 7, 50, 100])
def test_the_timesteps_are_theirs(spacing, num_steps):
    theirs = peer(DDPM, num_train_timesteps=100, timestep_spacing=spacing)
    theirs.set_timesteps(num_steps)
    ours = from_config(dict(theirs.config)).spacing()(100, num_steps)
    np.testing.assert_array_equal(ours[:num_steps], theirs.timesteps.numpy()[::-1])


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_small_log", "fixed_large", "learned_range"])
def test_the_variance_is_theirs(kind):
    theirs = peer(DDPM, num_train_timesteps=100, variance_type=kind)
    torch = pytest.importorskip("torch", reason="needs PyTorch, of the extra parity")
    given = theirs._get_variance(50, predicted_variance=torch.tensor(0.3)).item()
    # Theirs is a deviation, a variance or its logarithm, by the kind.
    expected = {"fixed_small_log": 2 * np.log(given), "learned_range": given}
    ours = from_config(dict(theirs.config))
    x = jnp.zeros((1, 1))
    denoised = Denoised(x, jnp.full((1, 1), 0.3))
    log_variance = ours.variance()(ours.chain().posterior(jnp.array([50])), denoised)
    np.testing.assert_allclose(log_variance, expected.get(kind, np.log(given)), rtol=1e-4)


def test_an_offset_of_the_timesteps():
    visited = Scheduler(num_train_timesteps=100, steps_offset=1).spacing()(100, 5)
    np.testing.assert_array_equal(visited[:6], jnp.array([1, 21, 41, 61, 81, 99]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"_class_name": "PNDMScheduler"},
            "scheduler._class_name must be one of DDPMSched",
        ),
        ({"beta_schedule": "laplace"}, "scheduler.beta_schedule must be one of linear, scaled_lin"),
        ({"prediction_type": "flow"}, "scheduler.prediction_type must be one of epsilon, sample"),
        ({"variance_type": "learned"}, "scheduler.variance_type must be one of fixed_small"),
        ({"timestep_spacing": "karras"}, "scheduler.timestep_spacing must be one of leading"),
        ({"thresholding": True}, "scheduler.thresholding must be False here, got True"),
        ({"clip_sample_range": 2.0}, "scheduler.clip_sample_range must be 1.0 here, got 2.0"),
        ({"set_alpha_to_one": False}, "scheduler.set_alpha_to_one must be True here, got False"),
        (
            {"clip_samples": True},
            r"scheduler.clip_samples is an option that is not known here \(near is clip_sam",
        ),
        ({"clip_sample": "yes"}, "scheduler.clip_sample must be bool, got 'yes'"),
        ({"num_train_timesteps": True}, "scheduler.num_train_timesteps must be int, got True"),
        ({"num_train_timesteps": 0}, "scheduler.num_train_timesteps must be at least 1, got 0"),
        ({"trained_betas": [0.1]}, "trained_betas must be num_train_timesteps 1000, got 1"),
        ({"trained_betas": 0.1}, "scheduler.trained_betas must be a list of numbers, got 0.1"),
    ],
)
def test_what_ours_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        from_config({"_class_name": DDPM, "_diffusers_version": "0.1.1", **change})


def test_an_offset_within_a_step_leads_to_the_data():
    """Theirs goes on by 2 from the last timestep, 1, and by 1 of many steps: not to the data."""
    offset = {"num_train_timesteps": 100, "steps_offset": 1}
    assert Scheduler(DDIM, **offset).sampler(50).num_steps == 50
    assert Scheduler(DDPM, **offset).sampler(60).num_steps == 60
    theirs = peer(DDIM, **offset)
    theirs.set_timesteps(60)
    assert theirs.timesteps[-1] - theirs.config.num_train_timesteps // 60 == 0


@pytest.mark.parametrize(
    ("scheduler", "arguments", "message"),
    [
        (Scheduler(), {"num_steps": 1001}, "num_steps must be from 1 to 1000, got 1001"),
        (Scheduler(), {"eta": 0.5}, "eta must be 0 of a DDPMScheduler, got 0.5"),
        (Scheduler(DDIM), {"eta": 1.5}, "eta must be from 0 to 1, got 1.5"),
        (Scheduler(steps_offset=1), {}, "steps_offset must keep 1000 timesteps below 1000, got 1"),
        (
            Scheduler(DDIM, timestep_spacing="linspace"),
            {"num_steps": 50},
            "'linspace' of a DDIMScheduler does not go with 50 steps of 1000",
        ),
        (
            Scheduler(DDIM, timestep_spacing="trailing"),
            {"num_steps": 30},
            "'trailing' of a DDIMScheduler does not go with 30 steps of 1000",
        ),
        (
            Scheduler(DDIM, steps_offset=1),
            {"num_steps": 600},
            "'leading' of a DDIMScheduler does not go with 600 steps of 1000 and steps_offset 1",
        ),
    ],
)
def test_samplers_that_theirs_has_not(scheduler, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        scheduler.sampler(**arguments)
