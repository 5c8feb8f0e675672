"""Start a run in a fresh child, listen to it, and say how it ended.

Children are forked from a server that has imported torch and transformers and run nothing: as clean as a new
interpreter, without its seconds of imports. Where there is no fork server, a new interpreter it is.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any

from experiments.child import Order, child_main
from experiments.peaks import Place, measure_main

# Many times what measuring takes: a machine that needs longer has no peaks to speak of.
_PEAKS_TIMEOUT_S = 60

# (requests done, requests in all, output tokens a second)
OnProgress = Callable[[int, int, float], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a run ended. `row` is what it wrote itself; None where it could not."""

    row: dict[str, Any] | None = None
    status: str = ""
    error_type: str = ""
    error_message: str = ""
    # Set when it had a row to write, and the folder did not take it.
    unwritable: str | None = None


class Children:
    """Fresh children of this process. Threads may share it, each waiting for a child of its own."""

    def __init__(self) -> None:
        # multiprocessing reaps any child whenever another starts, and of two that reap at once one reads a wrong code.
        self._lock = threading.RLock()
        self._running: set[BaseProcess] = set()
        self._closed = False
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self._context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            self._context.set_forkserver_preload(["experiments.preload"])

    def warm(self) -> None:
        """Start the fork server; it imports beside what the caller does next."""
        if self._context.get_start_method() == "forkserver":
            from multiprocessing import forkserver

            forkserver.ensure_running()

    def wait_until_warm(self) -> None:
        """Return when the server has imported all, so that no run's time has that in it."""
        process = self._context.Process(target=_nothing, daemon=True)
        process.start()
        process.join()

    def measure_peaks(self, place: Place) -> dict[str, Any] | None:
        """How fast the machine is, measured in a fresh child; None where that child could not tell."""
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=measure_main, args=(place, sender), daemon=True)
        process.start()
        sender.close()
        try:
            found: dict[str, Any] | None = receiver.recv() if receiver.poll(_PEAKS_TIMEOUT_S) else None
            return found
        except (EOFError, ConnectionResetError):
            return None
        finally:
            _kill_alone(process)
            receiver.close()

    def run(self, order: Order, *, timeout_s: float, on_progress: OnProgress) -> Ended:
        """Run to the end, or to the end of its time. The child is gone when this returns or raises."""
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=child_main, args=(order, sender), daemon=True)
        with self._lock:
            if self._closed:
                raise InterruptedError("the sweep is over")
            process.start()
            self._running.add(process)
        # With our copy closed, the pipe ends when the child does.
        sender.close()
        try:
            return self._listen(process, receiver, timeout_s, on_progress)
        finally:
            with self._lock:
                self._running.discard(process)
                _kill(process)
            receiver.close()

    def close(self) -> None:
        """End what still runs, and start nothing more."""
        with self._lock:
            self._closed = True
            for process in self._running:
                _kill(process)

    def _listen(
        self, process: BaseProcess, receiver: connection.Connection, timeout_s: float, on_progress: OnProgress
    ) -> Ended:
        deadline_s = time.monotonic() + timeout_s
        while True:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not receiver.poll(left_s):
                message = f"no result after {timeout_s:g} s (sweep.timeout_s)"
                return Ended(status="timeout", error_type="Timeout", error_message=message)
            try:
                kind, *content = receiver.recv()
            except (EOFError, ConnectionResetError):
                return _crashed(self._exit_code(process))
            if kind == "progress":
                on_progress(*content)
            elif kind == "unwritable":
                return Ended(unwritable=content[0])
            else:
                self._exit_code(process)
                return Ended(row=content[0])

    def _exit_code(self, process: BaseProcess) -> int | None:
        """Of a child that has sent its last word; None where it lingers."""
        connection.wait([process.sentinel], timeout=5)
        with self._lock:
            return process.exitcode


def _nothing() -> None:
    pass


def _crashed(code: int | None) -> Ended:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = ": most likely out of memory" if -code == signal.SIGKILL else ""
        message = f"died of signal {-code} ({name}){hint}"
        return Ended(status="crashed", error_type=name, error_message=message)
    return Ended(status="crashed", error_type="Exit", error_message=f"left with exit code {code} and no result")


def _kill_alone(process: BaseProcess) -> None:
    """End a child that shares our group."""
    process.join(timeout=1)
    process.kill()
    process.join(timeout=5)


def _kill(process: BaseProcess) -> None:
    """End the child and all that it started."""
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        # It has not made its group yet, or is gone.
        process.kill()
    process.join(timeout=5)
