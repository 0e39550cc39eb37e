"""The order of the packages, of all modules at once; and what importing one may bring along."""

import ast
import functools
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the bottom up: a module may import from its own package and from those of lower rank.
# Packages of one rank do not know each other.
RANKS = (
    ("jaxgen", "core", "checks", "files", "pickles"),
    ("distributions",),
    ("noise",),
    ("conditioning",),
    ("losses", "sampling", "augmentation", "models"),
    ("families", "data"),
    ("training",),
    ("metrics",),
    ("convert",),
    ("experiments",),
)
WAYS = "experiments import each other relatively, jaxgen absolutely"
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
# What a package never imports, at any depth of its own modules.
FORBIDDEN = {
    "core": ("flax", "optax", "numpy"),
    "distributions": ("flax", "optax"),
    "noise": ("flax", "optax"),
    "conditioning": ("flax", "optax"),
    "losses": ("flax", "optax"),
    "sampling": ("flax", "optax"),
    "augmentation": ("flax", "optax"),
    "models": ("optax",),
    "data": ("flax", "optax"),
}
# Each of these has one module, or package, that imports it.
ONE_PLACE = {
    "orbax": ("jaxgen/training/checkpoint.py",),
    "tyro": ("jaxgen/training/cli.py", "jaxgen/training/short_help.py"),
    "tensorflow_datasets": ("jaxgen/data/tfds.py",),
    "tensorboardX": ("jaxgen/training/trackers.py",),
    "wandb": ("jaxgen/training/trackers.py",),
    "mlflow": ("jaxgen/training/trackers.py",),
    "trackio": ("jaxgen/training/trackers.py",),
}


@functools.cache
def modules():
    """(path from the root, package, imported modules, those imported where types are checked)."""
    rows = []
    for top in ("jaxgen", "experiments"):
        for path in sorted((ROOT / top).rglob("*.py")):
            relative = path.relative_to(ROOT)
            parts = relative.with_suffix("").parts
            package = "experiments" if top == "experiments" else (*parts, "")[1].replace("__", "")
            package = "jaxgen" if package == "init" else package
            rows.append((relative.as_posix(), package, imports(path)))
    return rows


def imports(path):
    """The modules that a file imports, other than for its types alone."""
    tree = ast.parse(path.read_text())
    typing = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # Recipes are `experiments.NAME` in a checkout, `jaxgen.experiments.NAME` installed.
            relative = path.relative_to(ROOT).parts[0] == "experiments"
            own = (node.module or "").partition(".")[0] == "experiments" or node.level > 0
            assert bool(node.level) == (relative and own), f"{path}, line {node.lineno}: {WAYS}"
            if node.level:
                found.add("experiments")
                continue
            # `from jaxgen import x` names a package, `from jaxgen.losses import x` one already.
            inner = node.module in ("jaxgen", "experiments")
            found |= {f"{node.module}.{a.name}" for a in node.names} if inner else {node.module}
    return found


def test_arrows_point_one_way():
    """No module imports a package of its own rank or of a higher one."""
    wrong = []
    for path, package, imported in modules():
        for name in imported:
            top, _, rest = name.partition(".")
            if top not in ("jaxgen", "experiments"):
                continue
            other = "experiments" if top == "experiments" else rest.partition(".")[0] or "jaxgen"
            if other == "__version__":
                continue
            if other != package and RANK[other] >= RANK[package]:
                wrong.append(f"{path} imports {name}")
    assert not wrong


def test_every_package_has_a_rank():
    assert {package for _, package, _ in modules()} <= set(RANK)


def test_what_packages_never_import():
    wrong = []
    for path, package, imported in modules():
        tops = {name.partition(".")[0] for name in imported}
        wrong += [f"{path} imports {x}" for x in FORBIDDEN.get(package, ()) if x in tops]
        for library, places in ONE_PLACE.items():
            if library in tops and not path.startswith(places):
                wrong.append(f"{path} imports {library}")
        wrong += [f"{path} imports {name}" for name in imported if "jax._src" in name]
        wrong += [f"{path} imports {x}" for x in ("tensorflow", "chex", "torch") if x in tops]
    references = ("experiments/benchmarks/", "jaxgen/data/prepare.py")
    assert not [w for w in wrong if not w.startswith(references)]


HEAVY = ["flax", "optax", "orbax", "tensorflow_datasets", "grain", "tyro", "rich", "tensorboardX"]
IO = ["orbax", "tensorflow_datasets", "grain", "tyro"]
SERVICES = ["tensorboardX", "wandb", "mlflow", "trackio"]
PROGRAM = """
import json, sys
before = set(sys.modules)
import {modules}
tops = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(json.dumps(sorted(tops)))
"""


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        (
            [
                "jaxgen.core",
                "jaxgen.distributions.likelihoods",
                "jaxgen.noise.chain",
                "jaxgen.noise.process",
                "jaxgen.noise.parametrization",
                "jaxgen.conditioning.labels",
                "jaxgen.losses.diffusion",
                "jaxgen.losses.gan",
                "jaxgen.losses.vae",
                "jaxgen.losses.flow",
                "jaxgen.losses.autoregressive",
                "jaxgen.sampling.autoregressive",
                "jaxgen.sampling.solvers",
                "jaxgen.sampling.guidance",
                "jaxgen.sampling.latent",
                "jaxgen.augmentation.diff_augment",
            ],
            HEAVY,
        ),
        (
            [
                "jaxgen.models.unet",
                "jaxgen.families.diffusion",
                "jaxgen.families.wavenet",
                "jaxgen.training.step",
            ],
            IO,
        ),
        (["jaxgen.data.audio", "jaxgen.data.pipeline"], ["flax", *IO]),
        (
            [
                "jaxgen.metrics.frechet",
                "jaxgen.metrics.kernel",
                "jaxgen.metrics.prdc",
                "jaxgen.metrics.inception_score",
            ],
            [*HEAVY, "jax"],
        ),
        (
            [
                "jaxgen.metrics.classification",
                "jaxgen.metrics.inception",
                "jaxgen.metrics.lite0",
            ],
            [*IO, "torch"],
        ),
        (["experiments.ddpm_cifar"], ["tensorflow", "tensorflow_datasets", "grain"]),
        (["jaxgen.training.cli"], SERVICES),
    ],
)
def test_importing_brings_along(modules, forbidden):
    """In a fresh interpreter: an import is not paid for by what it does not need."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(modules=", ".join(modules))],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert set(json.loads(result.stdout)).isdisjoint(forbidden)


def test_the_package_itself_imports_nothing():
    """What it offers by name is imported when it is asked for (`test_trained_run.py`)."""
    program = "import sys; before = {*sys.modules}; import jaxgen; print({*sys.modules} - before)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout == "{'jaxgen'}\n"


def test_the_wheel_has_every_package():
    """pyproject.toml names them: the recipes' are elsewhere than where they are installed."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    places = [path.parent.relative_to(ROOT) for path in ROOT.glob("jaxgen/**/__init__.py")]
    places += [
        "jaxgen" / path.parent.relative_to(ROOT) for path in ROOT.glob("experiments/**/__init__.py")
    ]
    assert sorted(listed) == sorted(".".join(place.parts) for place in places)
