"""What every recipe computes, kept from one revision to compare with another.

Each recipe runs shrunk, in a fresh process on one device, from seed 0: three steps, one draw of
samples, one evaluation. `record` keeps every array of the last checkpoint, the metrics of each
step, the samples and the evaluation; `compare` tells the first two records apart, by the largest
difference relative to an array's own size.

    python tests/experiments/guard.py record OUT [NAME ...]
    python tests/experiments/guard.py compare BEFORE AFTER

It is run by hand before and after a change that should change no number; `--repo` names the
checkout whose recipes are run.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

SHARED = "--steps=3 --log-every=1 --sample-every=0 --checkpoint-every=3 --evaluate-every=0".split()
DIGITS = ["--data.name=digits", "--batch-size=16"]
RESNET = [
    *"--data.name=digits --data.resize=32 --batch-size=40 --model.latent-dim=4".split(),
    *"--model.generator-channels=4 --model.discriminator-channels=4".split(),
]
ATTRIBUTES = [
    *"--data.name=captioned_digits --data.resize=None --batch-size=16".split(),
    *"--model.latent-dim=4 --model.generator-blocks=1 --model.discriminator-blocks=1".split(),
    *"--model.generator-channels=4 --model.discriminator-channels=4".split(),
]
STYLES = [
    *"--model.channel-base=32 --model.channel-max=4 --model.latent-dim=4".split(),
    *"--model.style-dim=4 --model.mapping-layers=1".split(),
]
DENSE = "--model.network dense --model.features 8 --model.latent-dim 2".split()
CONV = "--model.channels=2 --model.hidden=4 --model.latent-dim=2".split()
REALNVP = "--model.width=4 --model.levels=2 --model.blocks=1 --model.couplings=1".split()
GLOW = "--model.width=4 --model.steps=2 --model.levels=1".split()
PIXELS = "--model.features=4 --model.layers=2 --model.head-features=4".split()
DDPM = [
    *"--model.channels=8 --model.multipliers 1 2 --model.attention-resolutions 4".split(),
    *"--model.num-res-blocks=1 --diffusion.num-timesteps=20".split(),
    "--evaluation.num-examples=16",
]
SCORE = [
    *"--model.channels=8 --model.multipliers 1 2 --model.attention-resolutions 4".split(),
    *"--model.num-res-blocks=1 --evaluation.num-examples=16".split(),
]
TWO_MOONS = ["--batch-size=16", "--data.name=two_moons"]
# name -> (flags of the run, flags of `sample`, or None where there is no prior)
RECIPES: dict[str, tuple[list[str], list[str] | None]] = {
    "dcgan_digits": ([*DIGITS, "--model.generator-channels=8"], ["--sampler.standing-batches=1"]),
    "dcgan_mnist": (
        [*DIGITS, *"--data.resize=28 --model.generator-channels=4".split()]
        + ["--model.discriminator-channels=4"],
        ["--sampler.standing-batches=1"],
    ),
    "sngan_cifar": (RESNET, ["--sampler.standing-batches=1"]),
    "wgan_gp_cifar": (RESNET, ["--sampler.standing-batches=1"]),
    "cgan_cifar": (RESNET, ["--sampler.standing-batches=1"]),
    "acgan_cifar": (RESNET, ["--sampler.standing-batches=1"]),
    "anime_attributes": (ATTRIBUTES, ["--sampler.standing-batches=1"]),
    "manga_attributes": (ATTRIBUTES, ["--sampler.standing-batches=1"]),
    "stylegan2_digits": ([*DIGITS, *STYLES], []),
    "stylegan2_cifar": (
        [*DIGITS, "--data.resize=16", "--model.stddev-group=4", *STYLES],
        ["--sampler.truncation=0.5"],
    ),
    "stackgan_digits": (
        [*"--batch-size=16 --model.generator-channels=4 --model.condition-dim=4".split()]
        + ["--model.discriminator-channels=4", "--text.width=8", "--text.num-layers=1"],
        [],
    ),
    "vae_digits": ([*DIGITS, *DENSE, "--model.prior-couplings=2", "--model.prior-width=8"], []),
    "vae_mnist": ([*DIGITS, *DENSE], []),
    "beta_vae": ([*DIGITS, *DENSE, "--objective.free-bits=0.1"], []),
    "infovae_mnist": ([*DIGITS, *CONV], []),
    "cvae_mnist": ([*DIGITS, *DENSE], []),
    "perceptual_vae": (
        [*DIGITS, *CONV, "--perceptual.distance=features", "--perceptual.layers", "relu2_2"],
        [],
    ),
    "autoencoder_mnist": ([*DIGITS, *DENSE], None),
    "vqvae_cifar": (
        [*DIGITS, *"--model.channels=4 --model.num-res-blocks=0 --model.num-halvings=1".split()]
        + ["--model.num-codes=8"],
        None,
    ),
    "autoencoder_kl_digits": (
        "--batch-size=16 --model.channels=4 --game.weight=0.5 --game.channels=4".split()
        + ["--game.start=1"],
        None,
    ),
    "realnvp_digits": ([*DIGITS, *REALNVP], []),
    "realnvp_cifar": ([*DIGITS, *REALNVP], []),
    "glow_cifar": ([*DIGITS, *GLOW], []),
    "glow_mnist": ([*DIGITS, *GLOW], []),
    "maf_tabular": (["--batch-size=16", "--model.hidden", "8", "--model.layers=2"], []),
    "nsf_tabular": (["--batch-size=16", "--model.hidden", "8", "--model.layers=2"], []),
    "maf_power": ([*TWO_MOONS, "--model.hidden", "8", "--model.layers=2"], []),
    "nsf_gas": ([*TWO_MOONS, "--model.hidden", "8", "--model.layers=2"], []),
    "pixelcnn_digits": ([*DIGITS, *PIXELS], []),
    "imagegpt_digits": (
        [*DIGITS, *"--model.features=8 --model.layers=1 --model.num-heads=2".split()],
        [],
    ),
    "imagegpt_cifar": (
        [*DIGITS, *"--model.features=8 --model.layers=1 --model.num-heads=2".split()]
        + ["--palette=8"],
        [],
    ),
    "maskgit_digits": (
        [*DIGITS, *"--model.width=8 --model.depth=1 --model.num-heads=2".split()],
        ["--sampler.num-steps=3"],
    ),
    "pixelcnn_mnist": ([*DIGITS, *PIXELS], []),
    "pixelcnnpp_cifar": (
        [*DIGITS, *"--model.features=4 --model.res-blocks=1 --model.levels=2".split()]
        + ["--model.mixtures=2"],
        [],
    ),
    "wavenet_audio": (
        [
            *"--batch-size=8 --audio.label=folder --model.condition=label".split(),
            *"--model.stacks=1 --model.layers=3 --model.channels=4".split(),
            *"--model.skip-channels=8 --audio.window=100".split(),
        ],
        ["--sample-seconds=0.06"],
    ),
    "noisy_classifier_digits": ([*DIGITS, "--model.channels=8"], None),
    "ddpm_digits": ([*DIGITS, *DDPM], ["--sampler.num-steps", "None"]),
    "edm_digits": ([*DIGITS, *SCORE], []),
    "edm_cifar": ([*DIGITS, *SCORE], []),
    "edm_mnist": ([*DIGITS, *SCORE, "--optimizer.decay-steps=None"], []),
    "ncsnpp_cifar": ([*DIGITS, *SCORE, "--sampler.num-steps=3"], []),
    "ddpmpp_cifar": ([*DIGITS, *SCORE, "--sampler.num-steps=3"], []),
    "flow_cifar": ([*DIGITS, *SCORE, "--sampler.num-steps=3"], []),
    "iddpm_cifar": (
        [*DIGITS, *DDPM, "--model.num-heads=1", "--diffusion.objective=bound"]
        + ["--diffusion.importance"],
        [],
    ),
    **dict.fromkeys(
        ("vdvae_digits", "vdvae_cifar"),
        (
            [*DIGITS, "--model.encoder=8x1,8d2,4x1", "--model.decoder=4x1,8m4", "--model.width=8"],
            ["--sampler.temperature=0.9"],
        ),
    ),
    "vdm_cifar": (
        [*DIGITS, "--model.channels=8", "--model.num-res-blocks=1", "--sampler.preview-steps=2"],
        ["--sampler.num-steps=3"],
    ),
    "flow_digits": ([*DIGITS, *SCORE], ["--sampler.solver=dpm"]),
    "dit_digits": (
        [*DIGITS, *"--model.dit.width=16 --model.dit.depth=2 --model.dit.num-heads=2".split()]
        + ["--evaluation.num-examples=16"],
        ["--sampler.num-steps=3"],
    ),
    "meanflow_digits": ([*DIGITS, *SCORE], ["--sampler.num-steps=2"]),
    "consistency_digits": ([*DIGITS, *SCORE], ["--sampler.num-steps=2"]),
    "ddpm_cifar": ([*DIGITS, *DDPM], []),
    "ddpm_cifar ddim": (
        [*DIGITS, *DDPM, "--diffusion.schedule=cosine"],
        ["--sampler.name=ddim", "--sampler.num-steps=4", "--sampler.eta=0.5"]
        + ["--sampler.spacing=leading"],
    ),
}
# What the state's parts were called, to compare revisions across a renaming.
OLD_NAMES = {"ema": "averages/ema", "model_state": "state"}
NO_METRICS = ("per_second", "learning_rate")  # columns that a revision may not have
GONE = ("state/losses",)  # a counter of warm-ups, which the step has taken over


def record(out: Path, repo: Path, names: list[str]) -> None:
    """Run the recipes and keep what they computed, one .npz and one .json each."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        tones = make_tones(Path(work) / "tones")
        for name in names or list(RECIPES):
            flags, sample = RECIPES[name]
            module, run_dir = f"experiments.{name.split()[0]}", Path(work) / "run"
            shutil.rmtree(run_dir, ignore_errors=True)
            where = ["--run-dir", str(run_dir)]
            if name == "wavenet_audio":
                flags = [*flags, f"--data.dir={tones}"]
            run(repo, work, module, *where, *SHARED, *flags)
            arrays = load_state(run_dir)
            if sample is not None:
                drawn = Path(work) / "samples.npz"
                drawn.unlink(missing_ok=True)
                run(repo, work, module, "sample", *where, "--num=3", f"--out={drawn}", *sample)
                arrays["samples"] = np.load(drawn)["samples"]
            run(repo, work, module, "evaluate", *where)
            result = json.loads((run_dir / "evaluations.jsonl").read_text().splitlines()[-1])
            with (run_dir / "metrics.csv").open() as file:
                rows = [
                    {k: float(v) for k, v in row.items() if v and not k.endswith(NO_METRICS)}
                    for row in csv.DictReader(file)
                ]
            evaluated = {k: v for k, v in result.items() if isinstance(v, float)}
            np.savez(out / f"{name}.npz", **arrays)
            found = {"rows": rows, "evaluated": evaluated}
            (out / f"{name}.json").write_text(json.dumps(found, indent=1))
            print(f"{name}: {len(arrays)} arrays, loss {evaluated['loss']:.6f}", flush=True)


def run(repo: Path, work: str, module: str, *args: str) -> str:
    """A recipe's command in a fresh process; compiled programs are kept for the next one."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        "JAX_COMPILATION_CACHE_DIR": str(Path(work) / "cache"),
        "PYTHONPATH": str(repo),
    }
    done = subprocess.run(
        [sys.executable, "-m", module, *args],
        cwd=repo,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{module} {' '.join(args)} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def load_state(run_dir: Path) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint."""
    import jax
    import orbax.checkpoint as ocp

    newest = max((run_dir / "checkpoints").iterdir(), key=lambda p: int(p.name))
    (stored,) = [p for p in newest.iterdir() if (p / "_METADATA").exists()]
    tree = ocp.PyTreeCheckpointer().restore(stored)
    arrays = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        arrays[jax.tree_util.keystr(path, simple=True, separator="/")] = np.asarray(leaf)
    return arrays


def load(path: Path) -> dict[str, np.ndarray]:
    """A record's arrays, by the names that later revisions give them."""
    arrays = {}
    with np.load(path) as file:
        for name in file.files:
            first, _, rest = name.rstrip("/.").partition("/")
            new = f"{OLD_NAMES.get(first, first)}/{rest}"
            if new not in GONE:
                arrays[new] = file[name]
    return arrays


def make_tones(folder: Path) -> Path:
    """Twelve WAV files of two kinds."""
    from scipy.io import wavfile

    time = np.arange(500) / 2000
    for i in range(12):
        kind, hertz = (("low", 100), ("high", 400))[i % 2]
        (folder / kind).mkdir(parents=True, exist_ok=True)
        sound = 8000 * np.sin(2 * np.pi * (hertz + i) * time)
        wavfile.write(folder / kind / f"{i}.wav", 2000, sound.astype(np.int16))
    return folder


def compare(before: Path, after: Path, names: list[str]) -> int:
    """Print each recipe's largest differences; the exit code is 1 if one is above 1e-5."""
    worst = 0.0
    for name in names or list(RECIPES):
        try:
            a, b = (load(d / f"{name}.npz") for d in (before, after))
            x, y = (json.loads((d / f"{name}.json").read_text()) for d in (before, after))
        except FileNotFoundError as error:
            print(f"{name}: {error.filename} is missing")
            worst = 1.0
            continue
        found = []
        for key in sorted(set(a) | set(b)):
            if key not in a or key not in b:
                found.append((1.0, f"{key} only {'before' if key in a else 'after'}"))
            elif a[key].shape != b[key].shape:
                found.append((1.0, f"{key} {a[key].shape} -> {b[key].shape}"))
            elif not np.array_equal(a[key], b[key]):
                difference = np.abs(a[key].astype(np.float64) - b[key].astype(np.float64)).max()
                size = np.abs(a[key].astype(np.float64)).max()
                found.append((difference / max(size, 1e-6), key))
        arrays = len(found)
        for label, old, new in [
            *((f"step {i + 1}", r, s) for i, (r, s) in enumerate(zip(x["rows"], y["rows"]))),  # noqa: B905
            ("evaluate", x["evaluated"], y["evaluated"]),
        ]:
            for key in sorted(set(old) & set(new)):
                if old[key] != new[key]:
                    size = max(abs(old[key]), 1e-6)
                    found.append((abs(old[key] - new[key]) / size, f"{label} {key}"))
            for key in sorted(set(old) ^ set(new)):
                found.append((1.0, f"{label} {key} only {'before' if key in old else 'after'}"))
        found.sort(reverse=True)
        top = ", ".join(f"{key} {value:.1e}" for value, key in found[:3])
        print(f"{name}: {len(a) - arrays} of {len(a)} arrays bit-equal; {top or 'all equal'}")
        worst = max(worst, found[0][0] if found else 0.0)
    print(f"largest relative difference: {worst:.2e}")
    return int(worst > 1e-5)


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=("record", "compare"))
    parser.add_argument("paths", nargs="+", help="OUT, or BEFORE and AFTER; then recipes' names.")
    parser.add_argument("--repo", type=Path, default=Path(__file__).parents[2])
    options = parser.parse_args()
    if options.verb == "record":
        record(Path(options.paths[0]), options.repo.resolve(), options.paths[1:])
        return 0
    before, after, *names = options.paths
    return compare(Path(before), Path(after), names)


if __name__ == "__main__":
    sys.exit(main())
