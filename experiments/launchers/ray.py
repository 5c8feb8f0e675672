"""Runs as tasks of a Ray cluster, or of this machine where none runs.

Ray finds a machine that has the CPUs and GPUs of a run to spare, and a worker there starts the fresh child that runs
the point. A task whose worker or machine dies is not done again by Ray: it is a row that says so, unless the run had
left its own. Tasks end with their driver; should one linger, as on a machine that was out of touch, the next launch
waits for it at the run's lock.

CPUs and GPUs choose a machine and reserve it, and change nothing in a run: Ray's own OMP_NUM_THREADS is taken back,
since threads are `execution.num_threads`.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from experiments.errors import one_line
from experiments.launchers.base import Done, Listener, Site, Task, require_count, required_package
from experiments.launchers.elsewhere import Sender, at_most
from minivllm.config import require

_ANSWER_WITHIN_S = 5


class RayLauncher:
    """Args:
    address: of a running cluster; None joins the one that runs on this machine or that RAY_ADDRESS names, and starts
        one that ends with the sweep where there is none.
    num_cpus: of each run; None takes all of the largest machine's, so that no other run shares it.
    num_gpus: of each run.
    max_tasks: handed to Ray and not yet ended, at one time.
    """

    name = "ray"

    def __init__(
        self,
        *,
        site: Site,
        listener: Listener,
        address: str | None = None,
        num_cpus: float | None = None,
        num_gpus: float = 0,
        max_tasks: int = 8,
    ) -> None:
        require(address is None or isinstance(address, str), "launcher.address", address, "null or host:port")
        require(num_cpus is None or (_is_number(num_cpus) and num_cpus > 0), "launcher.num_cpus", num_cpus, "above 0")
        require(_is_number(num_gpus) and num_gpus >= 0, "launcher.num_gpus", num_gpus, "0 or more")
        require_count("max_tasks", max_tasks)
        self._ray = required_package("ray")
        self._listener, self._max_tasks, self._num_gpus = listener, max_tasks, num_gpus
        self._sender = Sender(site)
        self._is_ours = not self._ray.is_initialized()
        if self._is_ours:
            self._join(address)
        machines: dict[str, Mapping[str, float]] = {
            node["NodeID"]: node["Resources"] for node in self._ray.nodes() if node["Alive"]
        }
        with_gpus = [has.get("CPU", 0) for has in machines.values() if has.get("GPU", 0) >= num_gpus]
        self._num_cpus = num_cpus if num_cpus is not None else max(with_gpus, default=0)
        room = {node: self._room(has) for node, has in machines.items()}
        if not any(room.values()):
            self.close()
            there = "; ".join(f"{has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs" for has in machines.values())
            asked = f"launcher.num_cpus={num_cpus!r} and launcher.num_gpus={num_gpus!r}"
            raise ValueError(f"launcher=ray: {asked}: no machine of the cluster has them ({there})")
        self.num_at_once = min(max_tasks, max(room.values()))
        self.driver_disturbs = room.get(self._ray.get_runtime_context().get_node_id(), 0) > 0
        self._task = self._ray.remote(
            num_cpus=self._num_cpus,
            num_gpus=num_gpus,
            # By default Ray does a task whose worker died thrice more.
            max_retries=0,
            # A worker's fork server keeps the CUDA_VISIBLE_DEVICES that it began with; the next task has other GPUs.
            max_calls=1 if num_gpus else 0,
            # On many machines, rather than many on one.
            scheduling_strategy="SPREAD",
        )(_make_errand_runner())
        # Read once: what a later launch finds running is what ran when it began.
        self._found = self._sender.running()
        if not self._found:
            self._sender.forget_places()

    def running(self) -> frozenset[str]:
        return self._found

    def run(self, tasks: Sequence[Task]) -> Iterator[Done]:
        devices = {task.job.config["execution"]["device"] for task in tasks}
        # Ray hides the GPUs that a task did not ask for.
        require(devices <= {"cpu"} or self._num_gpus > 0, "launcher.num_gpus", self._num_gpus, "1 with execution=cuda")
        flying: dict[Any, Task] = {}

        def submitted() -> Iterator[Any]:
            for task in tasks:
                errand = self._sender.errand([task])
                reference = self._task.remote(pickle.dumps(errand), errand.paths, os.environ.get("OMP_NUM_THREADS"))
                flying[reference] = task
                self._listener.point_started(task.job)
                yield reference

        def ended(references: Sequence[Any]) -> Sequence[Any]:
            found: Sequence[Any] = self._ray.wait(list(references))[0]
            return found

        try:
            for reference in at_most(self._max_tasks, submitted(), ended):
                task = flying.pop(reference)
                yield Done(task=task, row=self._row(task, reference))
        finally:
            for reference in flying:
                self._ray.cancel(reference, force=True)

    def close(self) -> None:
        if self._is_ours:
            self._ray.shutdown()

    def _join(self, address: str | None) -> None:
        named = address or os.environ.get("RAY_ADDRESS") or ""
        host, _, port = named.rpartition(":")
        try:
            # Ray itself asks an address where nobody listens for five minutes.
            if port.isdigit() and "://" not in host:
                socket.create_connection((host, int(port)), timeout=_ANSWER_WITHIN_S).close()
            self._ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        # Somebody else may listen there, or want a token, or have another version of Ray or Python.
        except (OSError, RuntimeError, ValueError) as error:
            hint = "; a cluster with tokens needs RAY_AUTH_MODE=token" if named else ""
            raise ValueError(f"launcher=ray: launcher.address={address!r}: {one_line(error)}{hint}") from error

    def _room(self, has: Mapping[str, float]) -> int:
        """Runs that a machine can take at a time."""
        rooms = [
            has.get(kind, 0) / of_each
            for kind, of_each in (("CPU", self._num_cpus), ("GPU", self._num_gpus))
            if of_each
        ]
        return int(min(rooms, default=0))

    def _row(self, task: Task, reference: Any) -> dict[str, Any]:
        try:
            row: dict[str, Any] = self._ray.get(reference)[task.job.run_id]
            return row
        except self._ray.exceptions.RayError as error:
            # What the errand raised comes wrapped, its traceback for a message.
            cause = getattr(error, "cause", None) or error
            return self._sender.row_without_word(task, error_type=type(cause).__name__, why=one_line(cause, 300))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _make_errand_runner() -> Callable[..., dict[str, dict[str, Any]]]:
    """The function that a worker calls. Made here, so that Ray sends it as code: a worker has not heard of our path yet
    and could import neither it nor what the errand is made of."""

    def run_errand(errand: bytes, paths: Sequence[str], num_threads: str | None) -> dict[str, dict[str, Any]]:
        import os
        import pickle
        import sys
        import types

        sys.path[:] = [*paths, *(path for path in sys.path if path not in paths)]
        os.environ.pop("OMP_NUM_THREADS", None)
        if num_threads is not None:
            os.environ["OMP_NUM_THREADS"] = num_threads
        # A child imports the main module of its parent, which here is Ray's: 0.3 s for nothing.
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            rows: dict[str, dict[str, Any]] = pickle.loads(errand).run()
            return rows
        finally:
            sys.modules["__main__"] = main

    return run_errand
