"""Compiled programs on disk: where they lie, that they are used, and that they do not pile up."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from experiments import vae_digits
from jaxgen.training import cli, compilation
from jaxgen.training.compilation import keep_programs

OPTIONS = {
    "jax_compilation_cache_dir": None,
    "jax_persistent_cache_min_compile_time_secs": 1.0,
    "jax_persistent_cache_min_entry_size_bytes": 0,
}


@pytest.fixture
def unset():
    """JAX as it is outside of the tests, which have a directory of their own."""
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    for name, value in OPTIONS.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_users_choice_stays(tmp_path):
    """A directory that JAX has already is left alone."""
    before = jax.config.jax_compilation_cache_dir
    assert str(keep_programs(tmp_path)) == before == jax.config.jax_compilation_cache_dir
    assert not list(tmp_path.iterdir())


def test_default_place(unset, tmp_path, monkeypatch):
    """In the cache directory, by the machine's features."""
    monkeypatch.delenv("JAXGEN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = keep_programs()
    assert path.parent == tmp_path / "jaxgen" / "xla"
    assert str(path) == jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(compilation.platform, "machine", lambda: "another")
    assert keep_programs() != path


def test_nothing_is_kept_where_nothing_can_be(unset, tmp_path):
    """A path that is no directory is no reason to fail."""
    file = tmp_path / "file"
    file.write_text("")
    assert keep_programs(file / "below") is None
    assert jax.config.jax_compilation_cache_dir is None


def test_oldest_programs_go(unset, tmp_path, monkeypatch):
    """Until the rest is within the limit, which leaves room for many."""
    assert compilation.LIMIT_BYTES >= 2**30
    monkeypatch.setattr(compilation, "LIMIT_BYTES", 250)
    (tmp_path / "a").mkdir()
    for i in range(5):
        file = tmp_path / "a" / f"{i}-cache"
        file.write_bytes(bytes(100))
        os.utime(file, (1000 + i, 1000 + i))
    keep_programs(tmp_path)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["3-cache", "4-cache"]


PROGRAM = """
import jax, jax.monitoring
from jaxgen.training import compilation
hits = []
jax.monitoring.register_event_listener(lambda name, **_: "cache_hits" in name and hits.append(name))
compilation._LEAST_SECONDS = 0.0
compilation.keep_programs()
jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((4, 4)))
print(len(hits))
"""


def test_programs_are_used_again(tmp_path):
    """By another process."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")}
    env["JAXGEN_CACHE"] = str(tmp_path)
    command = [sys.executable, "-c", PROGRAM]

    def hits():
        return int(subprocess.run(command, env=env, capture_output=True, check=True).stdout)

    assert hits() == 0
    assert list((tmp_path / "xla").rglob("*-cache"))
    assert hits() > 0


@pytest.mark.parametrize(
    ("flags", "kept"), [([], [None]), (["--compilation-cache=d"], ["d"]), (["none"], [])]
)
def test_the_commands_flag(flags, kept, tmp_path, monkeypatch):
    """On by default; elsewhere, or not at all, by the flag."""
    calls = []
    monkeypatch.setattr(cli, "keep_programs", calls.append)
    flags = ["--compilation-cache=none"] if flags == ["none"] else flags
    arguments = [f"--run-dir={tmp_path / 'run'}", *flags]
    invocation = cli._Invocation("experiments.vae_digits", "", vae_digits.recipe, arguments)
    invocation.parse(cli.Train, must_exist=False)
    assert calls == kept


def test_convolutions_on_a_cpu_use_all_cores():
    """The library that would take one core is left out of them, and of nothing else."""
    device = jax.devices("cpu")[0]
    options = compilation.compiler_options(device)
    x, w = jnp.ones((64, 8, 8, 32)), jnp.ones((3, 3, 32, 32))

    def program(options):
        numbers = ("NHWC", "HWIO", "NHWC")
        run = partial(lax.conv_general_dilated, window_strides=(1, 1), padding="SAME")
        jitted = jax.jit(partial(run, dimension_numbers=numbers), compiler_options=options)
        return jitted.lower(x, w).compile()

    assert "ynn" not in program(options).as_text()
    np.testing.assert_allclose(program(options)(x, w), program(None)(x, w), rtol=1e-6)


def test_nothing_is_asked_of_a_version_without_the_option(monkeypatch):
    """Its defaults stand, and no program fails."""
    monkeypatch.setattr(compilation, "_YNN", {"xla_no_such_option": "1"})
    compilation._options.cache_clear()
    assert compilation.compiler_options(jax.devices("cpu")[0]) is None
    compilation._options.cache_clear()
