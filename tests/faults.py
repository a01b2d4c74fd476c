"""A runner that fails on order, for the worker's tests: the method's or task's name says how. Runs in a real worker process."""

from __future__ import annotations

import ctypes
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from typing import Any

from explorer import rights
from explorer.records import Answer, Event, Experiment, InputError, Measurement, ModelRef, Partial, Progress, QuantSpec, Report, TextRef
from explorer.worker import WorkerSettings


class Faulty:
    """Notes every job that computes as a line "start name pid" and "end name pid" in the file that settings.store names."""

    def __init__(self, settings: WorkerSettings) -> None:
        from explorer.turns import Line

        self.log, self.line = settings.store, Line()

    def note(self, text: str) -> None:
        with self.log.open("a") as file:
            file.write(f"{time.monotonic():.3f} {text} {os.getpid()}\n")

    def run(self, model: str, method: str, params: dict[str, Any], **options: Any) -> Iterator[Event]:
        with self.line.place() as ahead:
            while ahead():
                yield Progress("waiting", 0, 1, "in line")
                time.sleep(0.02)
            self.note(f"start {method}")
            try:
                yield Progress("load model", 0, 1, model)
                yield from getattr(self, f"_{method}")(**params)
                yield Answer(method, {"params": params, "pid": os.getpid()})
            finally:
                self.note(f"end {method}")

    def do(self, task: str, arguments: dict[str, Any]) -> Iterator[Event]:
        yield from getattr(self, f"_{task}")(**arguments)
        if task not in ("whose", "noisy"):
            yield Answer(task, {"pid": os.getpid()})

    def _good(self, seconds: float = 0.0, number: int = 0) -> Iterator[Event]:
        for i in range(int(seconds / 0.05)):
            time.sleep(0.05)
            yield Progress("work", i, 100)

    def _parts(self, died: bool = False, seconds: float = 0.5) -> Iterator[Event]:
        """A run that tells what it has so far, twice; died: then its process ends."""
        experiment = Experiment(ModelRef("demo", "r"), QuantSpec("none"), *[TextRef("bundled", "d", 1, 1)] * 2)
        for step in ("size", "quality"):
            yield Partial(Report(experiment, (Measurement(step, 1.0),), {"missing": ["speed"]}))
            yield from self._good(seconds)
        if died:
            os.kill(os.getpid(), signal.SIGKILL)

    def _several(self, seconds: float) -> Iterator[Event]:
        """Two runs, each in its turn, as a sweep tells them: announced before the turn."""
        for i in range(2):
            yield Progress("sweep", i, 2, "announced")
            for event in self.run("demo", "good", {"seconds": seconds, "number": i}):
                if isinstance(event, Progress):
                    yield Progress("waiting" if event.stage == "waiting" else "sweep", i, 2, f"run {i}, {event.stage}")

    def _downloads(self, seconds: float) -> Iterator[Event]:
        """A download of which nothing comes, and which nothing stops."""
        yield Progress("download", 0, 2)
        time.sleep(seconds)

    def _whose(self) -> Iterator[Event]:
        yield Answer("whose", {"owner": rights.owner(rights.token())})

    def _noisy(self) -> Iterator[Event]:
        yield Answer("noisy", {"disturbed": True})

    def _deaf(self, seconds: float = 60.0) -> Iterator[Event]:
        time.sleep(seconds)
        yield Progress("work", 1, 2)

    def _raises(self, error: BaseException) -> Iterator[Event]:
        yield Progress("work", 0, 2)
        raise error

    def _input(self) -> Iterator[Event]:
        yield from self._raises(InputError("The text is too short."))

    def _bug(self) -> Iterator[Event]:
        yield from self._raises(KeyError("odd"))

    def _memory(self) -> Iterator[Event]:
        yield from self._raises(MemoryError())

    def _gpu_memory(self) -> Iterator[Event]:
        yield from self._raises(RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB."))

    def _gpu_fault(self) -> Iterator[Event]:
        yield from self._raises(RuntimeError("CUDA error: an illegal memory access was encountered"))

    def _disk(self) -> Iterator[Event]:
        yield from self._raises(OSError(28, "No space left on device"))

    def _store_full(self) -> Iterator[Event]:
        yield from self._raises(sqlite3.OperationalError("database or disk is full"))

    def _locked(self) -> Iterator[Event]:
        yield from self._raises(sqlite3.OperationalError("database is locked"))

    def _exits(self) -> Iterator[Event]:
        yield from self._raises(SystemExit(3))

    def _unpicklable(self) -> Iterator[Event]:
        yield Answer("odd", {"value": lambda: None})

    def _segfault(self) -> Iterator[Event]:
        yield Progress("work", 0, 2)
        ctypes.string_at(0)

    def _killed(self) -> Iterator[Event]:
        yield Progress("work", 0, 2)
        os.kill(os.getpid(), signal.SIGKILL)

    def _aborts(self) -> Iterator[Event]:
        yield Progress("work", 0, 2)
        os.abort()

    def _stopped(self) -> Iterator[Event]:
        yield Progress("work", 0, 2)
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(60)  # a moment may pass until all threads have stopped


def runner(settings: WorkerSettings) -> Faulty:
    """What WorkerSettings.factory names."""
    return Faulty(settings)


def fails_to_start(settings: WorkerSettings) -> Faulty:
    """A worker that cannot be made."""
    raise RuntimeError("no driver")
