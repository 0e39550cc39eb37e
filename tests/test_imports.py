"""Each room's ceiling on what it imports, held in a fresh interpreter."""

import json
import subprocess
import sys

import pytest

HEAVY = ["flax", "optax", "orbax", "tensorflow_datasets", "grain", "tyro", "rich", "tensorboardX"]
PROGRAM = """
import json, sys
before = set(sys.modules)
import {module}
tops = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(json.dumps(sorted(tops)))
"""


def imported(module):
    """Top-level modules that importing `module` brings in."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(module=module)],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(result.stdout))


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("jaxgen", [*HEAVY, "jax", "numpy"]),
        ("jaxgen.schedules", HEAVY),
        ("jaxgen.distributions", HEAVY),
        ("jaxgen.gaussian_diffusion", HEAVY),
        ("jaxgen.losses.reduce", HEAVY),
        ("jaxgen.losses.diffusion", HEAVY),
        ("jaxgen.losses.gan", HEAVY),
        ("jaxgen.losses.vae", HEAVY),
        ("jaxgen.losses.flow", HEAVY),
        ("jaxgen.losses.autoregressive", HEAVY),
        ("jaxgen.sampling.autoregressive", HEAVY),
        ("jaxgen.sampling.diffusion", HEAVY),
        ("jaxgen.sampling.latent", HEAVY),
        ("jaxgen.augmentation", HEAVY),
        ("jaxgen.conditioning", HEAVY),
        ("jaxgen.discretized", HEAVY),
        ("jaxgen.likelihoods", HEAVY),
        ("jaxgen.core", [n for n in HEAVY if n not in ("optax", "flax")]),
        ("jaxgen.models.unet", ["orbax", "tensorflow_datasets", "grain", "tyro"]),
        ("jaxgen.families.diffusion", ["orbax", "tensorflow_datasets", "grain", "tyro"]),
        ("jaxgen.families.wavenet", ["orbax", "tensorflow_datasets", "grain", "tyro"]),
        ("jaxgen.data.audio", ["flax", "orbax", "tensorflow_datasets", "grain", "tyro"]),
        ("jaxgen.data.pipeline", ["flax", "orbax", "tensorflow_datasets", "grain", "tyro"]),
        ("jaxgen.metrics.frechet", [*HEAVY, "jax"]),
        ("jaxgen.metrics.kernel", [*HEAVY, "jax"]),
        ("jaxgen.metrics.prdc", [*HEAVY, "jax"]),
        ("jaxgen.metrics.inception_score", [*HEAVY, "jax"]),
        ("jaxgen.metrics.classification", HEAVY),
        ("jaxgen.metrics.report", [*HEAVY, "torch"]),
        ("jaxgen.metrics.inception", ["orbax", "tensorflow_datasets", "grain", "tyro", "torch"]),
        ("jaxgen.metrics.lite0", ["orbax", "tensorflow_datasets", "grain", "tyro", "torch"]),
        ("jaxgen.training.step", ["orbax", "tensorflow_datasets", "grain", "tyro"]),
        ("experiments.ddpm_cifar", ["tensorflow", "tensorflow_datasets", "grain"]),
    ],
)
def test_ceiling(module, forbidden):
    assert imported(module).isdisjoint(forbidden)


def test_models_know_no_losses_and_losses_no_flax():
    program = """
import sys
import jaxgen.models.dcgan, jaxgen.models.glow, jaxgen.models.resnet_gan, jaxgen.models.unet
import jaxgen.models.pixelcnnpp, jaxgen.models.wavenet
assert not [m for m in sys.modules if m.startswith(("jaxgen.losses", "jaxgen.families"))]
"""
    subprocess.run([sys.executable, "-c", program], check=True)
