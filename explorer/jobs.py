"""Runs and tasks in a worker process: one queue for everyone, equal requests share one job, limits for each, and a worker that may die at any time."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from explorer import rights
from explorer.child import ENDED, Child
from explorer.job import Finished, Job
from explorer.limits import Limits, Shares
from explorer.records import Answer, Event, InputError, Progress, Report, plain
from explorer.worker import Failure, WorkerSettings, lasting

log = logging.getLogger(__name__)
TICK = 0.1  # seconds between looks at deadlines
RECENT = 64  # last events of finished jobs that are kept


class WorkerRunner:
    """`run` and `do` as LocalRunner has them, in a worker. caller: says for whom it is asked, such as the session of the request being served;
    token: with whose login on the hub; address: from where, "" for nowhere in particular. What is done with a login is shared with nobody else.

    watch: told about every job that ends. delay: seconds until the first worker is started, unless it is wanted sooner.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        limits: Limits = Limits(),
        caller: Callable[[], str] = lambda: "",
        watch: Callable[[Finished], None] = lambda finished: None,
        delay: float = 0.0,
        token: Callable[[], str] = lambda: "",
        address: Callable[[], str] = lambda: "",
    ) -> None:
        self._settings, self.limits, self._caller, self._watch, self._token, self._address = settings, limits, caller, watch, token, address
        self._lock, self._numbers = threading.RLock(), itertools.count()
        self._jobs: dict[int, Job] = {}
        self._recent: OrderedDict[str, tuple[float, Event]] = OrderedDict()
        self._shares = Shares(limits)
        self._worker: Child | None = None
        self._spare: Child | None = None
        self._usual, self._failures, self._not_before = 10.0, 0, time.monotonic() + delay
        self._closed = threading.Event()
        threading.Thread(target=self._look, daemon=True, name="jobs").start()

    def run(self, model: str, method: str, params: dict[str, Any], **options: Any) -> Iterator[Event]:
        """An experiment's events, last a Report. Raises InputError with a sentence on whatever goes wrong."""
        yield from self._ask(("run", model, method, params, options))

    def do(self, task: str, arguments: dict[str, Any]) -> Iterator[Event]:
        """A task's events, last an Answer. Raises InputError with a sentence on whatever goes wrong."""
        yield from self._ask(("do", task, arguments))

    def healthy(self) -> bool:
        """Whether a worker is there and ready."""
        worker = self._worker
        return worker is not None and worker.ready.is_set() and worker.alive()

    def waiting(self) -> int:
        """Jobs that compute nothing yet, or at the moment."""
        return sum(job.since is None for job in list(self._jobs.values()))

    def active(self) -> int:
        """Jobs that compute, those being cancelled included."""
        return sum(job.since is not None for job in list(self._jobs.values()))

    def close(self) -> None:
        """Ends the workers."""
        self._closed.set()
        with self._lock:
            for child in (self._worker, self._spare):
                if child is not None:
                    child.kill("closed")

    def _ask(self, message: tuple) -> Iterator[Event]:
        session, token = self._caller(), self._token()
        asked = json.dumps([*plain(list(message)), rights.owner(token)], sort_keys=True, default=repr)
        key = hashlib.sha256(asked.encode()).hexdigest()
        with self._lock:
            then, event = self._recent.get(key, (0.0, None))
            if event is not None and time.monotonic() - then < self.limits.remember:
                self._watch(Finished(_name(message, event), "done", 0.0, 0.0, _again(event)))
                job = None
            else:
                job, box = self._join(session, key, message, token)
        if job is None:
            yield _again(event)
            return
        try:
            while True:
                try:
                    item = box.get(timeout=1.5 if job.since is None else 0.5)  # drawing a page that only waits costs others time
                except queue.Empty:  # whoever waits must be able to leave
                    item = job.last
                if isinstance(item, Failure):
                    raise InputError(item.sentence)
                if item is None:
                    return
                yield self._placed(job, item)
        finally:
            with self._lock:
                self._shares.leave(session)
                self._leave(job, box)

    def _join(self, session: str, key: str, message: tuple, token: str) -> tuple[Job, queue.SimpleQueue]:
        self._shares.admit(session)
        job = next((j for j in self._jobs.values() if j.key == key and j.cancelled is None), None)
        if job is None:
            job = Job(next(self._numbers), key, message, session, token, self._address())
            self._shares.place([other.address for other in self._jobs.values()], job.address, self._usual)
            self._jobs[job.number] = job
            self._hand_out()
        box: queue.SimpleQueue = queue.SimpleQueue()
        for event in [*job.kept, job.last]:
            box.put(event)
        job.boxes[box] = session
        self._shares.enter(session)
        return job, box

    def _leave(self, job: Job, box: queue.SimpleQueue) -> None:
        """One who waited is gone; the last one takes the job along."""
        job.boxes.pop(box, None)
        if not job.boxes and job.number in self._jobs and job.cancelled is None:
            job.cancelled = time.monotonic()
            if job.child is None:
                self._end(job, "cancelled")
            else:
                job.child.send(("cancel", job.number))

    def _placed(self, job: Job, event: Event) -> Event:
        """Progress of one who waits, with the place in line and the time that it usually takes."""
        if not isinstance(event, Progress) or event.stage != "waiting" or event.total > 1:  # one run of several has another place than its job
            return event
        ahead = [j for j in list(self._jobs.values()) if j.number < job.number and j.message[0] == "run"]
        left = max(1, len(ahead)) * self._usual - max((j.seconds(time.monotonic()) for j in ahead), default=0.0)
        return Progress("waiting", 0, 1, f"{max(1, len(ahead))} ahead in line{f', about {left:.0f} s' if left > 1 else ''}")

    # Below here: what happens when a child speaks, dies, or time passes. Always under the lock.

    def _hand_out(self) -> None:
        """Gives the worker every job that it does not have yet."""
        if self._worker is None:
            self._not_before = min(self._not_before, time.monotonic() + (2.0 if self._failures else 0.0))
            return
        if self._worker.ready.is_set():
            for job in self._jobs.values():
                if job.child is None:
                    job.child, job.heard = self._worker, time.monotonic()
                    kind, *rest = job.message
                    job.child.send((kind, job.number, job.token, *rest))

    def _heard(self, child: Child, message: tuple) -> None:
        with self._lock:
            if message[0] == "ready":
                self._failures = 0
                self._hand_out()
                return
            number, what, item = message
            job = self._jobs.get(number)
            if job is None or job.child is not child:
                return
            job.heard = time.monotonic()
            if what == "event":
                job.hear(item)
                for box in job.boxes:
                    box.put(item)
            else:
                self._end(job, "cancelled" if job.cancelled is not None else item.kind if item else "done", item)

    def _end(self, job: Job, outcome: str, failure: Failure | None = None) -> None:
        """A job is over: those who wait hear of it, and what it was is remembered."""
        del self._jobs[job.number]
        now = time.monotonic()
        seconds = job.seconds(now)
        event = next((e for e in job.kept[-1:] if outcome == "done" and isinstance(e, Report | Answer)), None)
        if event is not None:
            if lasting(job.message, event):
                self._recent[job.key] = (now, event)
            while len(self._recent) > RECENT:
                self._recent.popitem(last=False)
            if not event.provenance.get("from_store"):
                self._usual += 0.3 * (seconds - self._usual)
        if failure is not None and failure.kind != "input":
            log.warning("a job failed: %s: %s", failure.kind, failure.sentence)
        for box in job.boxes:
            box.put(failure)
        self._shares.charge(list(job.boxes.values()) or [job.owner], seconds)
        self._watch(Finished(_name(job.message, event), outcome, now - job.asked - seconds, seconds, event))

    def _died(self, child: Child) -> None:
        """A process is gone. The job that computed in it fails; those that only waited are given to the next one."""
        with self._lock:
            if self._spare is child:
                self._spare = None
            if self._worker is not child:
                return
            self._failures += not child.ready.is_set()
            self._worker, self._spare = self._spare, None
            self._not_before = time.monotonic() + (2.0 if self._failures else 0.0)
            for job in [j for j in self._jobs.values() if j.child is child]:
                job.tries += 1
                if job.cancelled is not None:
                    self._end(job, "cancelled")
                elif job.blamed or job.tries > 1 or (child.reason == "died" and job.since is not None and job.message[0] == "run"):
                    self._end(job, child.reason, Failure(child.reason, ENDED[child.reason]))
                else:
                    job.again()
            if self._failures >= 3:
                for job in list(self._jobs.values()):
                    self._end(job, "no worker", Failure("no worker", ENDED["no worker"]))
            self._hand_out()

    def _look(self) -> None:
        """Starts workers, and ends those whose job is over its time."""
        while not self._closed.wait(TICK):
            with self._lock:
                now = time.monotonic()
                if self._worker is None and now >= self._not_before:
                    self._worker = Child(self._settings, self._heard, self._died)
                if self.limits.spare and self._spare is None and self.healthy() and not self._closed.is_set():
                    self._spare = Child(self._settings, self._heard, self._died)
                for job in list(self._jobs.values()):
                    if job.child is not None and (reason := self._overdue(job, now)):
                        job.blamed = True
                        job.child.kill(reason)

    def _overdue(self, job: Job, now: float) -> str:
        """Why its process must end, "" where it need not: not for a job that waits, whose process computes for others."""
        if job.cancelled is not None:
            needed = job.since is None and any(j.child is job.child and j.cancelled is None for j in self._jobs.values())
            return "cancelled" if now - job.cancelled > self.limits.cancel and not needed else ""
        if job.since is None:
            return ""
        if job.seconds(now) > self.limits.deadline:
            return "deadline"
        return "silence" if now - job.heard > self.limits.silence else ""


def _name(message: tuple, event: Event | None) -> str:
    """The method's or the task's name, for counting: known names only, so that nobody can make up new ones."""
    if isinstance(event, Report):
        return event.experiment.spec.method
    return event.task if isinstance(event, Answer) else message[0]


def _again(event: Event) -> Event:
    """The last event of a finished job as a stored one gives it."""
    return dataclasses.replace(event, provenance=event.provenance | {"from_store": True})
