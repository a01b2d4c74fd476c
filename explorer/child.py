"""Child: one worker process seen from the server: its pipe, whether it is ready, and its end. Knows nothing of jobs."""

from __future__ import annotations

import logging
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from explorer.worker import WorkerSettings

ROOT = Path(__file__).parent.parent
ENDED = {
    "died": "The worker process died during this run and was started again. What was measured before is kept; run again, or choose a smaller model.",
    "deadline": "The run took longer than this server allows and was stopped. What was measured before is kept; choose a smaller model or less text.",
    "silence": "The run gave no sign of life and was stopped. What was measured before is kept; run again, or choose another method.",
    "cancelled": "Another run had to be stopped by force and took this one along; run again.",
    "no worker": "The worker cannot be started; whoever runs this server finds the reason in its log. Stored results on the page stay usable.",
    "closed": "The server is shutting down; try again in a minute.",
}  # what is said to whoever waited, by the reason
START = "from explorer.worker import main; main()"  # imported, not run by -m: its records must have the same module on both sides


class Child:
    """Starts a process that speaks as worker.py says. heard(child, message) and died(child) are called from a thread of this object.

    reason: why it ended, "died" unless it was killed for another. A program of its own, not a fork of this one: the server's main module,
    and with it gradio, is not imported again.
    """

    def __init__(self, settings: WorkerSettings, heard: Callable[[Child, tuple], None], died: Callable[[Child], None]) -> None:
        self.ready, self.reason, self._out = threading.Event(), "died", queue.SimpleQueue()
        self._heard, self._died = heard, died
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen([sys.executable, "-c", START, str(theirs.fileno())], pass_fds=[theirs.fileno()], cwd=ROOT, stdin=subprocess.DEVNULL)
        self._pipe = Connection(ours.detach())
        self.send(settings)
        threading.Thread(target=self._read, daemon=True, name="worker reader").start()
        threading.Thread(target=self._write, daemon=True, name="worker writer").start()

    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def send(self, message: Any) -> None:
        """Sends when the process takes it; does not wait."""
        self._out.put(message)

    def kill(self, reason: str) -> None:
        """Ends it at once. Its reader then calls `died`."""
        if self.alive():
            self.reason = reason
            self.process.kill()

    def _write(self) -> None:
        while (message := self._out.get()) is not None:
            try:
                self._pipe.send(message)
            except OSError:  # gone; the reader notices
                return

    def _read(self) -> None:
        try:
            while True:
                message = self._pipe.recv()
                if message[0] == "ready":
                    self.ready.set()
                self._heard(self, message)
        except (OSError, EOFError):
            pass
        except Exception:
            logging.getLogger(__name__).exception("a worker said what cannot be understood")
        self.process.kill()
        self.process.wait()
        self.send(None)
        self._pipe.close()
        self._died(self)
