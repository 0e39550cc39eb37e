"""The files for clusters, docs/clusters: what they say fits together, and their commands run."""

import contextlib
import os
import random
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from quick import xla_flags

ROOT = Path(__file__).parents[1]
CLUSTERS = ROOT / "docs" / "clusters"
RECIPE = "vae_digits"
TINY = "--batch-size 8 --log-every 1 --sample-every 0 --checkpoint-every 1000000".split()
COMMAND = f"""#!/bin/sh
exec {sys.executable} -m experiments "$@"
"""
# As Slurm's: two tasks on one node, with the variables that JAX looks for. Their ids are written
# for signals, which Slurm sends to the tasks of a job; the highest exit code is srun's.
SRUN = """#!/bin/bash
while [ "${1#--}" != "$1" ]; do echo "$1" >> "$PLACE/srun"; shift; done
for task in 0 1; do
    SLURM_NTASKS=2 SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_STEP_NODELIST=localhost \\
        "$@" > "$PLACE/task$task" 2>&1 &
    ids+=($!)
    echo $! >> "$PLACE/ids"
done
code=0
for id in "${ids[@]}"; do
    wait "$id"
    ended=$?
    [ $ended -gt $code ] && code=$ended
done
exit $code
"""
SCONTROL = """#!/bin/sh
echo "$@" >> "$PLACE/scontrol"
"""


@pytest.fixture
def place(tmp_path):
    """A directory with the commands that the files call."""
    for name, content in (("jaxgen", COMMAND), ("srun", SRUN), ("scontrol", SCONTROL)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def environment(place, **more):
    return {
        **os.environ,
        "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": xla_flags(1),
        "PLACE": str(place),
        "RUNS": str(place / "runs"),
        **more,
    }


def free_port(low=20_000, high=30_000):
    for port in random.sample(range(low, high), 100):
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


def jobs():
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all((CLUSTERS / "kubernetes.yaml").read_text()))


def steps_of(run_dir):
    table = run_dir / "metrics.csv"
    rows = table.read_text().splitlines()[1:] if table.exists() else []
    return [int(row.partition(",")[0]) for row in rows if row.partition(",")[0].isdigit()]


def test_the_script_is_one():
    subprocess.run(["bash", "-n", CLUSTERS / "slurm.sh"], check=True)
    lines = (CLUSTERS / "slurm.sh").read_text().splitlines()
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", "\n".join(lines), re.MULTILINE))
    assert options["ntasks-per-node"] == options["gpus-per-node"]  # JAX gives each task one GPU
    assert options["signal"].startswith("TERM@")
    # Slurm reads these up to the first command.
    command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not [line for line in lines[command:] if line.startswith("#SBATCH")]
    result = subprocess.run(["bash", CLUSTERS / "slurm.sh"], capture_output=True, text=True)
    assert result.returncode
    assert "name a recipe" in result.stderr


def test_the_service_and_the_job_fit_together():
    service, job = jobs()
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    name, spec = job["metadata"]["name"], job["spec"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert service["spec"]["clusterIP"] == "None"
    assert spec["completionMode"] == "Indexed"
    pod = spec["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    (container,) = pod["containers"]
    variables = {each["name"]: each["value"] for each in container["env"]}
    assert all(isinstance(value, str) for value in variables.values())
    assert spec["completions"] == spec["parallelism"] == int(variables["JAX_NUM_PROCESSES"])
    host = variables["JAX_COORDINATOR_ADDRESS"].partition(":")[0]
    assert host == f"{name}-0.{pod['subdomain']}"
    mounted = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert {volume["name"] for volume in pod["volumes"]} == set(mounted)
    assert variables["RUNS"].startswith(mounted["shared"])


@pytest.mark.slow
def test_slurm_stops_and_goes_on(place):
    """Two tasks; SIGTERM, as before the time is over; the queue; and the same script again."""
    first = 2**16 - 2**12  # JAX adds the job's number to it
    job_id = free_port(first, 2**16) - first
    given = environment(place, SLURM_JOB_ID=str(job_id), SLURM_CPUS_PER_TASK="3")
    script = ["bash", str(CLUSTERS / "slurm.sh"), RECIPE, *TINY]
    running = subprocess.Popen([*script, "--steps", "1000000"], env=given)
    run_dir = place / "runs" / RECIPE
    begun = time.monotonic()
    while not steps_of(run_dir):
        assert running.poll() is None, (place / "task0").read_text()
        assert time.monotonic() - begun < 900, (place / "task0").read_text()
        time.sleep(0.5)
    for task in (place / "ids").read_text().split():
        os.kill(int(task), signal.SIGTERM)
    assert running.wait(timeout=300) == 143, (place / "task0").read_text()
    assert (place / "scontrol").read_text() == f"requeue {job_id}\n"
    assert (place / "srun").read_text().split() == ["--cpus-per-task=3", "--kill-on-bad-exit=1"]
    stopped = steps_of(run_dir)[-1]
    output = (place / "task0").read_text()
    assert f"stopped at step {stopped}" in output.replace(",", "")

    again = subprocess.run([*script, "--steps", str(stopped + 3)], env=given, timeout=900)
    assert again.returncode == 0, (place / "task0").read_text()
    assert "resuming" in (place / "task0").read_text()
    assert steps_of(run_dir) == list(range(1, stopped + 4))
    assert len((place / "scontrol").read_text().splitlines()) == 1  # it is done, not queued again
    sessions = (run_dir / "sessions.jsonl").read_text().splitlines()
    assert all('"processes": 2' in line for line in sessions)


@pytest.mark.slow
def test_kubernetes_runs_its_command(place):
    """As two processes, each with its number, in an environment that looks like a pod's."""
    _, job = jobs()
    (container,) = job["spec"]["template"]["spec"]["containers"]
    variables = {each["name"]: each["value"] for each in container["env"]}
    changed = {
        "RECIPE": RECIPE,
        "FLAGS": " ".join([*TINY, "--steps", "3"]),
        "RUNS": str(place / "runs"),
        "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
        "JAX_NUM_PROCESSES": "2",
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    }
    assert changed.keys() - {"KUBERNETES_SERVICE_HOST"} == variables.keys()
    started = [
        subprocess.Popen(
            [*container["command"], *container["args"]],
            env=environment(place, **changed, JOB_COMPLETION_INDEX=str(index)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=900)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(outputs)
    assert steps_of(place / "runs" / RECIPE) == [1, 2, 3]
    assert not [output for output in outputs if "Warning" in output], outputs
