"""The worker process: the same runner on the far side of a pipe, so that a fault there never takes the server down. Started by jobs.py, never by hand.

Messages in: ("run", id, token, model, method, params, options), ("do", id, token, task, arguments), ("cancel", id). Out: ("ready", pid), (id, "event", event),
(id, "end", None), (id, "failed", Failure). Each job has a thread; who may touch the model is decided by the runner's own line, so what is stored,
and quick tasks, do not wait for a long run.
"""

from __future__ import annotations

import errno
import gc
import importlib
import logging
import os
import signal
import sqlite3
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from explorer import rights
from explorer.hub import HubSettings
from explorer.records import Answer, Event, InputError, Report, disturbed
from explorer.sizes import out_of_memory
from explorer.store import LIMIT

NICENESS = 5  # below the web process, so that a page answers while every core computes


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker is made with. factory: "module:function" of these settings that makes the runner. store_bytes: what results may fill."""

    store: Path
    hub: HubSettings
    factory: str = "explorer.worker:local_runner"
    store_bytes: int = LIMIT


@dataclass(frozen=True)
class Failure:
    """Why a job ended without a result. kind: one of a few words, for counting; fatal: the process that it happened in must end."""

    kind: str
    sentence: str
    fatal: bool = False


def lasting(message: tuple, event: Event) -> bool:
    """Whether equal requests may be given the last event of a request ("run" or "do", ...): not where it asked for new times, nor where other work disturbed
    those that it got.
    """
    if message[0] == "run" and message[-1].get("again"):
        return False
    return not (disturbed(event.measurements) if isinstance(event, Report) else isinstance(event, Answer) and event.data.get("disturbed"))


def local_runner(settings: WorkerSettings) -> Any:
    """The runner of this process. Loads torch."""
    from explorer import tasks
    from explorer.experiment import LocalRunner
    from explorer.hub import Hub
    from explorer.loader import Loader
    from explorer.store import Store

    tasks.tasks()
    return LocalRunner(Store(settings.store, settings.store_bytes), Loader(hub=Hub(settings.hub)))


def explain(error: BaseException) -> Failure:
    """An exception as a sentence for the person who asked. After a fault of the device, or of memory, the process cannot be trusted.

    One that nobody expected is logged with its traceback, for whoever runs the server.
    """
    text = f"{type(error).__name__}: {error}"
    kept = "What was measured before is kept."
    if isinstance(error, InputError):
        return Failure("input", str(error))
    if out_of_memory(error):
        return Failure("memory", f"The memory was not enough. {kept} Choose a smaller model, less text, or a shorter length.", fatal=True)
    if "CUDA" in text or "AcceleratorError" in text or "Triton Error" in text:
        return Failure("device", f"The GPU reported a fault and its worker was restarted. {kept} Run again, or choose another method.", fatal=True)
    if isinstance(error, sqlite3.Error) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        what = "is locked by another program" if "locked" in text else "is full" if "full" in text or isinstance(error, OSError) else "could not be used"
        return Failure("store", f"The result store or its disk {what}. {kept} Try again in a minute, or tell whoever runs this server.")
    logging.getLogger(__name__).error("a job failed", exc_info=error)
    return Failure("failed", f"The run failed ({text[:200]}). {kept} Try other parameters or another model.")


class Worker:
    """Serves one pipe until it closes."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._sending, self._cancelled = pipe, threading.Lock(), set()

    def serve(self) -> None:
        """Reads messages until the other side is gone."""
        settings = self._pipe.recv()
        module, _, name = settings.factory.partition(":")
        gc.disable()  # what torch consists of stays: looking through it takes a fifth of the start, and a third of a second after each run
        self._runner = getattr(importlib.import_module(module), name)(settings)
        gc.freeze()
        gc.enable()
        self._send("ready", os.getpid())
        while True:
            kind, job, *rest = self._pipe.recv()
            if kind == "cancel":
                self._cancelled.add(job)
            else:
                threading.Thread(target=self._work, args=(kind, job, *rest), daemon=True).start()

    def _send(self, *message: Any) -> None:
        with self._sending:
            self._pipe.send(message)

    def _work(self, kind: str, job: int, token: str, *rest: Any) -> None:
        try:
            with rights.of(token):
                failure = self._stream(job, self._runner.run(*rest[:3], **rest[3]) if kind == "run" else self._runner.do(*rest))
        except BaseException as error:  # whatever it is, the one who asked gets a sentence
            failure = explain(error)
        # Outside of the except block: the exception, and the tensors in its frames, are gone.
        self._send(job, "failed", failure) if failure else self._send(job, "end", None)
        self._cancelled.discard(job)
        if failure and failure.fatal:
            os._exit(70)

    def _stream(self, job: int, events: Iterator[Event]) -> None:
        last = None
        try:
            for event in events:
                if job in self._cancelled:
                    return
                if event != last:  # waiting in line says the same thing again and again
                    self._send(job, "event", event)
                last = event
        finally:
            events.close()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then closes the pipe
    os.nice(NICENESS)
    try:
        Worker(Connection(int(sys.argv[1]))).serve()
    except (EOFError, ConnectionError):
        pass
    os._exit(0)  # threads may be in the middle of a product; nothing of theirs is half-stored
