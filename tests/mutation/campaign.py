"""Counts the mutants of the package that the tests of their room notice.

    python tests/mutation/campaign.py --seed 15 --count 200 --out mutants.jsonl --work /tmp/mutants

A seed draws them, over all places that can be changed alike. Only a copy of the tree, in `--work`,
is ever changed. First the tests of each room run on the copy as it is, which must pass, and record
which functions each test calls. Then, for each mutant, the quickest tests that call the changed
function run, those of its own test file before others; if none of them notices, the files of tests
that call it, as many as take less than two minutes. Only the metrics' tests have PyTorch.

Every result is a line of JSON in `--out`; what is there is not run again, but for survivors with
`--again`: on all files of tests that call the function, as these are now. What the rooms' tests
call is kept in `--work`: after other changes take another one.
"""

import argparse
import json
import math
import os
import re
import runpy
import shutil
import signal
import sys
import time
import traceback
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from mutants import ROOMS, Mutant, draw

ROOT = Path(__file__).parents[2]
COPIED = ("jaxgen", "experiments", "tests", "pyproject.toml", "README.md")
BESIDE = {"losses": ["tests/test_checks.py"]}  # a room's tests that are not in its folder
# What every run of tests would import; what the package stands on, and starts no threads.
PRELOADED = ("flax.linen", "optax", "orbax.checkpoint", "scipy.stats", "beartype", "chex")
LIMIT = 900  # seconds for one run of tests
QUICKEST, FILES = 15, 100  # seconds of tests that are chosen: the quickest, then whole files


class Recorder:
    """A pytest plugin: which functions of the package each test calls, and how long it takes."""

    def __init__(self, root: Path, path: Path):
        self.root, self.path, self.test = f"{root}/jaxgen/", path, None
        self.calls, self.seconds, self.known = defaultdict(set), {}, {}

    def trace(self, frame, event, arg):
        code = frame.f_code
        if code.co_filename.startswith(self.root) and code.co_name != "<module>":
            if code not in self.known:
                last = max((line for *_, line in code.co_lines() if line), default=0)
                where = code.co_filename.removeprefix(self.root)
                self.known[code] = f"jaxgen/{where}:{code.co_firstlineno}:{last}"
            self.calls[self.known[code]].add(self.test)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.test, begin = item.nodeid, time.time()
        sys.settrace(self.trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            self.seconds[item.nodeid] = time.time() - begin

    def pytest_sessionfinish(self):
        calls = {name: sorted(tests) for name, tests in self.calls.items()}
        self.path.write_text(json.dumps({"seconds": self.seconds, "calls": calls}))


class WithoutTorch:
    """A finder of modules that finds no PyTorch."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError("PyTorch is left out of these tests", name=name)


def run_tests(root: Path, tests: list[str], log: Path, limit: float, recorder=None) -> int | None:
    """pytest's exit code in a forked child that sees the tree `root`; None after `limit` s."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1), os.dup2(descriptor, 2)
        os.chdir(root)
        sys.path.insert(0, str(root))
        os.environ["PYTHONPATH"] = str(root)
        if not any("tests/metrics" in test for test in tests):
            sys.meta_path.insert(0, WithoutTorch)
        options = ["-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", "--durations=0"]
        options += ["--tb=short", f"--basetemp={root}.tmp"]
        code = 3
        try:
            code = int(pytest.main([*options, *tests], plugins=[recorder] if recorder else []))
        finally:
            sys.stdout.flush()
            os._exit(code)
    end = time.time() + limit
    while time.time() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def rooms(mutant: Mutant) -> tuple[str, ...]:
    """Where its tests are: those of `core.py` are everywhere."""
    name = mutant.path.split("/")[1]
    return (name,) if name in ROOMS else ROOMS


def record(root: Path, work: Path, room: str) -> dict:
    """Runs a room's tests as they are; which functions they call, kept in `work`."""
    path, log = work / f"{room}.json", work / f"{room}.log"
    if not path.exists():
        beside = [test for test in BESIDE.get(room, []) if (root / test).exists()]
        tests = [f"tests/{room}", *beside]
        code = run_tests(root, tests, log, 3600, Recorder(root, path))
        if code != 0:
            path.unlink(missing_ok=True)
            raise SystemExit(f"tests/{room} fail as they are (exit code {code}): see {log}")
    found = json.loads(path.read_text())
    print(f"{room}: {sum(found['seconds'].values()):.0f} s of tests", flush=True)
    return found


def chosen(mutant: Mutant, recorded: dict, limit: float) -> tuple[list[str], list[str]]:
    """The quickest tests that call the mutant's function, and the files of all that do, up to a
    limit in seconds."""
    seconds: dict[str, float] = {}
    around, of_module = [], set()
    for room in rooms(mutant):
        seconds |= recorded[room]["seconds"]
        for where, tests in recorded[room]["calls"].items():
            path, first, last = where.split(":")
            if path == mutant.path:
                of_module |= set(tests)
                if int(first) <= mutant.line <= int(last):
                    around.append((int(last) - int(first), tests))
    # In no function, or in one that no test calls: the tests of the whole module, or of the room.
    tests = min(around)[1] if around else of_module or set(seconds)

    def rank(test: str) -> tuple[bool, float]:
        return Path(mutant.path).stem not in test.split("::")[0], seconds[test]

    ranked = sorted(tests, key=rank)
    quickest = within(QUICKEST, {test: seconds[test] for test in ranked if around})
    sums = dict.fromkeys((test.split("::")[0] for test in ranked), 0.0)
    for test, value in seconds.items():
        if (file := test.split("::")[0]) in sums:
            sums[file] += value
    order = list(seconds)
    return sorted(quickest, key=order.index), within(limit, sums)


def within(limit: float, seconds: dict[str, float]) -> list[str]:
    """The first of these, and of the others in turn what fits into so many seconds."""
    names, total = [], 0.0
    for name, value in seconds.items():
        if not names or total + value <= limit:
            names.append(name)
            total += value
    return names


def judge(root: Path, mutant: Mutant, recorded: dict, *, again: bool) -> dict:
    """Runs the tests on the mutant; its line of the results."""
    file, begin = root / mutant.path, time.time()
    source = file.read_bytes()
    status, by = "survived", ""
    try:
        file.write_bytes(mutant.applied(source))
        stamp(file)
        quickest, files = chosen(mutant, recorded, math.inf if again else FILES)
        for tests in [files] if again else [quickest, files]:
            code = run_tests(root, tests, Path(f"{root}.log"), LIMIT) if tests else 0
            if code != 0:
                log = Path(f"{root}.log").read_text(errors="replace")
                by = "".join(re.findall(r"^(?:FAILED|ERROR) .*", log, re.M)[:1])[:200]
                status = "timeout" if code is None else "killed"
                break
    finally:
        file.write_bytes(source)
        stamp(file)
    seconds = round(time.time() - begin, 1)
    return {"id": mutant.id, "status": status, "by": by, "seconds": seconds}


def share(mutants: list[Mutant], recorded: dict, args: argparse.Namespace) -> None:
    """Judges mutants in several processes, each with its own copy of the tree."""
    workers = []
    for number in range(args.workers):
        if pid := os.fork():
            workers.append(pid)
            continue
        try:
            tree = args.work.resolve() / f"tree{number}"
            if number:
                prepare(tree, args.root)
            for mutant in mutants[number :: args.workers]:
                result = judge(tree, mutant, recorded, again=args.again)
                with args.out.open("a") as file:
                    file.write(json.dumps(result) + "\n")
                print(result["status"], result["seconds"], result["id"], flush=True)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    codes = [os.waitpid(pid, 0)[1] for pid in workers]
    if any(codes):
        raise SystemExit("a worker failed")


def stamp(file: Path, count: list[int] = [0]) -> None:  # noqa: B006
    """Gives a file a time of its own, so that no stale byte code is taken for it."""
    count[0] += 1
    os.utime(file, (1e9 + count[0],) * 2)


def prepare(tree: Path, root: Path) -> None:
    """A fresh copy of what tests need."""
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for source in filter(Path.exists, (root / name for name in COPIED)):
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, tree / source.name, ignore=ignore)
        else:
            shutil.copy(source, tree)


def summary(results: dict[str, dict]) -> str:
    counts = Counter(result["status"] for result in results.values())
    noticed = counts["killed"] + counts["timeout"]
    share = 100 * noticed / max(len(results), 1)
    return f"{len(results)} mutants, {noticed} noticed ({share:.1f} %): {dict(counts)}"


def read(out: Path) -> dict[str, dict]:
    """The results by mutant; of one that ran again the last."""
    lines = out.read_text().splitlines() if out.exists() else []
    return {result["id"]: result for result in map(json.loads, lines)}


def main(preloaded: tuple[str, ...] = PRELOADED) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="Seed of the draw.")
    parser.add_argument("--count", type=int, default=200, help="Number of mutants.")
    parser.add_argument("--out", type=Path, required=True, help="File of the results.")
    parser.add_argument("--work", type=Path, required=True, help="Scratch directory.")
    parser.add_argument("--workers", type=int, default=1, help="Number of mutants at once.")
    parser.add_argument("--only", default="", help="Part of the path of the files to change.")
    parser.add_argument("--again", action="store_true", help="Run the survivors again.")
    parser.add_argument("--root", type=Path, default=ROOT, help="The tree to copy.")
    args = parser.parse_args()
    work = args.work.resolve()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(work / "cache"))
    runpy.run_path(str(args.root / "tests/conftest.py"))  # the tests' settings, before JAX starts
    for name in preloaded:
        __import__(name)
    tree = work / "tree0"
    prepare(tree, args.root)
    mutants = draw(tree, args.seed, args.count, args.only)
    results = read(args.out)
    if args.again:
        left = [m for m in mutants if results.get(m.id, {}).get("status") == "survived"]
    else:
        left = [m for m in mutants if m.id not in results]
    by_room = defaultdict(list)
    for mutant in left:
        by_room[rooms(mutant)].append(mutant)
    for names, some in sorted(by_room.items(), key=lambda item: len(item[1])):
        recorded = {name: record(tree, work, name) for name in names}
        share(some, recorded, args)
    print(summary({m.id: results[m.id] for results in [read(args.out)] for m in mutants}))


if __name__ == "__main__":
    main()
