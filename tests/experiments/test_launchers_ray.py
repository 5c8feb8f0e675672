"""Runs as Ray tasks: on real Ray where it is installed, and what is ours of it on a stand-in for three of its calls."""

from __future__ import annotations

import functools
import importlib.util
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import psutil
import pytest

from experiments import tables
from experiments.launchers import base
from experiments.launchers.base import Site, Task
from experiments.launchers.ray import RayLauncher, _make_errand_runner
from experiments.plan import Job, plan_sweep
from experiments.results import ResultsFolder

Cli = Callable[..., int]
Start = Callable[..., "subprocess.Popen[str]"]


class FakeRay:
    """`remote` holds a task; `wait` ends the last of those in flight; `get` hands out what the test said.

    Args:
        nodes: (CPUs, GPUs) of each machine; the driver is on the first.
    """

    class exceptions:  # noqa: N801
        class RayError(Exception):
            pass

    def __init__(self, *nodes: tuple[float, float]) -> None:
        self._nodes = nodes
        self.outcomes: dict[str, dict[str, Any] | Exception] = {}
        self.options: dict[str, Any] = {}
        self.sent: list[str] = []
        self.flying: list[str] = []
        self.most = 0
        self.cancelled: list[str] = []

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        dead = {"NodeID": "dead", "Alive": False, "Resources": {"CPU": 512.0, "GPU": 8.0}}
        made = [
            {"NodeID": str(place), "Alive": True, "Resources": {"CPU": cpus} | ({"GPU": gpus} if gpus else {})}
            for place, (cpus, gpus) in enumerate(self._nodes)
        ]
        return [dead, *made]

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "0")

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        self.options = options
        return lambda function: SimpleNamespace(remote=self._send)

    def _send(self, errand: bytes, *_: object) -> str:
        (task,) = pickle.loads(errand).tasks
        self.sent.append(task.job.run_id)
        self.flying.append(task.job.run_id)
        self.most = max(self.most, len(self.flying))
        return str(task.job.run_id)

    def wait(self, references: list[str]) -> tuple[list[str], list[str]]:
        assert references == self.flying
        return [self.flying.pop()], self.flying

    def get(self, reference: str) -> dict[str, dict[str, Any]]:
        outcome = self.outcomes.get(reference, {"run_id": reference, "status": "ok"})
        if isinstance(outcome, Exception):
            raise outcome
        return {reference: outcome}

    def cancel(self, reference: str, *, force: bool) -> None:
        assert force
        self.cancelled.append(reference)


class Deaf:
    """A listener."""

    def resting(self, job: Job) -> None: ...

    def point_started(self, job: Job) -> None: ...

    def within_point(self, job: Job, done: int, total: int, tokens_per_s: float) -> None: ...

    def warn(self, message: str) -> None: ...


def _make_launcher(monkeypatch: pytest.MonkeyPatch, folder: Path, ray: FakeRay, **keys: Any) -> RayLauncher:
    monkeypatch.setitem(sys.modules, "ray", ray)
    site = Site(folder=folder, timeout_s=60, cool_down_s=0, measure_peaks=False)
    return RayLauncher(site=site, listener=Deaf(), **keys)


def _make_tasks(tiny: Sequence[str], *overrides: str) -> list[Task]:
    jobs = plan_sweep(["experiment=null", *tiny, *overrides]).jobs
    types = tables.column_types(job.config for job in jobs)
    return [
        Task(job=job, row={"run_id": job.run_id, "point_id": job.point_id, "repeat": job.repeat}, column_types=types)
        for job in jobs
    ]


def test_tasks_start_in_order_and_no_more_than_allowed_are_in_flight(
    tmp_path: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = _make_tasks(tiny, "seed=range(7)")
    with ResultsFolder(tmp_path).held():
        ray = FakeRay((2, 0))
        launcher = _make_launcher(monkeypatch, tmp_path, ray, max_tasks=3)
        ended = [done.task.job.run_id for done in launcher.run(tasks)]
    assert ray.sent == [task.job.run_id for task in tasks]
    assert sorted(ended) == sorted(ray.sent) and ended != ray.sent
    assert ray.most == 3 and not ray.cancelled
    # Ray by itself would repeat a task whose worker died.
    assert ray.options["max_retries"] == 0


def test_a_lost_task_is_a_row_and_the_others_go_on(
    tmp_path: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = _make_tasks(tiny, "seed=range(3)")
    lost = tasks[1].job.run_id
    with ResultsFolder(tmp_path).held():
        ray = FakeRay((2, 0))
        ray.outcomes[lost] = type("NodeDiedError", (ray.exceptions.RayError,), {})("the machine\nis gone")
        launcher = _make_launcher(monkeypatch, tmp_path, ray)
        rows = {done.task.job.run_id: done.row for done in launcher.run(tasks)}
    assert [rows[task.job.run_id]["status"] for task in tasks] == ["ok", "crashed", "ok"]
    written = ResultsFolder(tmp_path).row(lost)
    assert written is not None
    assert (written["error_type"], written["error_message"]) == ("NodeDiedError", "the machine is gone")


def test_a_driver_that_leaves_cancels_what_is_in_flight(
    tmp_path: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ResultsFolder(tmp_path).held():
        ray = FakeRay((2, 0))
        launcher = _make_launcher(monkeypatch, tmp_path, ray, max_tasks=2)
        with closing(launcher.run(_make_tasks(tiny, "seed=range(5)"))) as running:
            next(running)
            next(running)
    assert len(ray.sent) == 3 and ray.cancelled == ray.flying == [ray.sent[0]]


@pytest.mark.parametrize(
    ("nodes", "keys", "cpus", "at_once", "disturbs"),
    [
        ([(8, 0), (8, 0)], {}, 8, 1, True),
        ([(8, 0), (64, 8)], {"num_gpus": 1}, 64, 1, False),
        ([(0, 0), (64, 8)], {"num_gpus": 1, "num_cpus": 4, "max_tasks": 32}, 4, 8, False),
        ([(8, 0), (4, 0)], {"num_cpus": 2}, 2, 4, True),
        ([(8, 0)], {"num_cpus": 0.5, "max_tasks": 3}, 0.5, 3, True),
    ],
    ids=["whole machines", "a whole machine with GPUs", "a GPU each", "two CPUs each", "no more than max_tasks"],
)
def test_it_is_known_how_many_runs_may_share_a_machine(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[tuple[float, float]],
    keys: dict[str, Any],
    cpus: float,
    at_once: int,
    disturbs: bool,
) -> None:
    ray = FakeRay(*nodes)
    with ResultsFolder(tmp_path).held():
        launcher = _make_launcher(monkeypatch, tmp_path, ray, **keys)
    assert ray.options["num_cpus"] == cpus
    assert (launcher.num_at_once, launcher.driver_disturbs) == (at_once, disturbs)
    # A worker that has had one GPU may not run a task that gets another.
    assert ray.options["max_calls"] == (1 if keys.get("num_gpus") else 0)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"num_gpus": 1}, "launcher.num_gpus=1: no machine of the cluster has them (2 CPUs and 0 GPUs)"),
        ({"num_cpus": 3}, "launcher.num_cpus=3 and launcher.num_gpus=0: no machine of the cluster has them"),
        ({"num_cpus": 0}, "launcher.num_cpus=0: must be above 0"),
        ({"num_gpus": True}, "launcher.num_gpus=True: must be 0 or more"),
        ({"max_tasks": 0}, "launcher.max_tasks=0: must be 1 or more"),
        ({"address": 6379}, "launcher.address=6379: must be null or host:port"),
    ],
)
def test_what_no_machine_can_give_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError) as caught, ResultsFolder(tmp_path).held():
        _make_launcher(monkeypatch, tmp_path, FakeRay((2, 0)), **keys)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_runs_on_a_gpu_that_ask_for_none_are_refused(
    tmp_path: Path, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ResultsFolder(tmp_path).held():
        launcher = _make_launcher(monkeypatch, tmp_path, FakeRay((2, 1)))
        with pytest.raises(ValueError, match="launcher.num_gpus=0: must be 1 with execution=cuda"):
            next(launcher.run(_make_tasks(tiny, "execution=cuda")))


def test_an_address_where_nobody_listens_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay((2, 0))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ValueError) as caught, ResultsFolder(tmp_path).held():
        # A port that nothing may listen on.
        _make_launcher(monkeypatch, tmp_path, ray, address="127.0.0.1:0")
    assert str(caught.value).startswith("launcher=ray: launcher.address='127.0.0.1:0': ")


def test_a_launcher_without_its_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"launcher=ray: ray is not installed; pip install 'minivllm\[ray\]'"):
        base.required_package("ray")


@pytest.mark.parametrize("threads", [None, "3"], ids=["unset", "3"])
def test_a_worker_runs_an_errand_with_the_threads_of_the_driver(
    monkeypatch: pytest.MonkeyPatch, threads: str | None
) -> None:
    # As Ray sets it for each task.
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setattr(sys, "path", [*sys.path, "/worker"])
    main = sys.modules["__main__"]
    errand = pickle.dumps(SimpleNamespace(run=functools.partial(os.getenv, "OMP_NUM_THREADS")))
    assert _make_errand_runner()(errand, ["/driver", *sys.path[:-1]], threads) == threads
    # Of two copies of ours on a machine, the driver's runs.
    assert sys.path[0] == "/driver" and sys.path[-1] == "/worker"
    assert sys.modules["__main__"] is main


def test_a_worker_can_read_its_function_before_it_can_import_anything_of_ours() -> None:
    cloudpickle = pytest.importorskip("cloudpickle", reason="cloudpickle comes with submitit, and Ray has its own copy")
    code = (
        "import sys, cloudpickle\n"
        "function = cloudpickle.load(sys.stdin.buffer)\n"
        "assert function.__name__ == 'run_errand'\n"
        "print(sorted({'experiments', 'minivllm'} & sys.modules.keys()))"
    )
    sent = cloudpickle.dumps(_make_errand_runner())
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, cwd="/", check=True)
    assert done.stdout.strip() == b"[]"


POLICY = '''
from components import KillsItsJob, Sloth


class Numbered(Sloth):
    """Number 5 ends the worker that it runs under."""

    def __init__(self, number: int) -> None:
        self.number = number

    def order(self, state, now_s):
        return (KillsItsJob if self.number == 5 else Sloth).order(self, state, now_s)
'''


def _complete(folder: Path) -> dict[str, object]:
    """Run id -> when it started."""
    rows = (tables.read_table(path).to_pylist()[0] for path in (folder / "runs").glob("*.parquet"))
    return {row["run_id"]: row["started_at"] for row in rows if row["status"] == "ok"}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'minivllm[ray]'")
def test_a_ray_sweep_whose_worker_and_driver_are_killed_loses_nothing(
    start: Start, tmp_path: Path, components_folder: Path
) -> None:
    # Found by the workers where the driver found it: in the current folder.
    (tmp_path / "numbered.py").write_text(POLICY, encoding="utf-8")
    (tmp_path / "components.py").write_text((components_folder / "components.py").read_text(), encoding="utf-8")
    # Two at a time on a machine of any size.
    ray = ("launcher=ray", "launcher.address=local", "launcher.num_cpus=0.5", "launcher.max_tasks=2")
    sweep = ("scheduler._target_=numbered.Numbered", "+scheduler.number=range(6)", *ray)
    folder = tmp_path / "run"
    driver = start(tmp_path, *sweep, cwd=tmp_path)
    deadline_s = time.monotonic() + 120
    while len(_complete(folder)) < 1 or not any((folder / "running").iterdir()):
        assert time.monotonic() < deadline_s and driver.poll() is None, "waited for a point to end and another to run"
        time.sleep(0.01)
    # Two agents of Ray's, which run nothing, see only after a minute that they are alone.
    agents = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
    family = [one for one in psutil.Process(driver.pid).children(recursive=True) if one.name() not in agents]
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate(timeout=60)
    # At once: what the first driver started may still be about to end.
    last = start(tmp_path, *sweep, cwd=tmp_path)
    assert not psutil.wait_procs(family, timeout=30)[1], "somebody outlived the driver"
    seen = _complete(folder)
    output, _ = last.communicate(timeout=200)
    assert last.returncode == 1, output

    final = _complete(folder)
    assert seen.items() <= final.items(), "a finished point was lost or run again"
    assert 0 < len(seen) < len(final) == 5
    runs = pd.read_parquet(folder / "runs")
    lost = runs[runs["status"] != "ok"]
    assert lost["cfg.scheduler.number"].tolist() == [5]
    assert (lost["status"] + lost["error_type"]).tolist() == ["crashedWorkerCrashedError"]
    assert len(runs) == 6 and runs["order_index"].dropna().is_unique
    assert set(runs["design.launcher"]) == {"ray"} and set(runs["design.num_at_once"]) == {2}
    assert not list(folder.rglob("*.tmp"))
