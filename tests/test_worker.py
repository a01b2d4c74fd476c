"""The worker: events pass unchanged, equal requests share one job, whatever dies is a sentence, and the next job works at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from explorer import rights
from explorer.hub import HubSettings
from explorer.job import Finished
from explorer.jobs import WorkerRunner
from explorer.limits import Limits
from explorer.records import Answer, Event, InputError, Progress
from explorer.worker import WorkerSettings, explain
from explorer.zerogpu import ZeroGpuRunner

ROOT = Path(__file__).parent.parent
LIMITS = Limits(deadline=2.0, silence=1.0, cancel=0.4, jobs=12, remember=0.0)


class Service:
    """A WorkerRunner over the faulty runner, for one session that a test sets."""

    def __init__(self, log: Path, limits: Limits = LIMITS, factory: str = "tests.faults:runner") -> None:
        self.session, self.finished, self.log = "", list[Finished](), log
        self.runner = WorkerRunner(WorkerSettings(log, HubSettings(offline=True), factory), limits, lambda: self.session, self.finished.append)

    def answer(self, method: str = "good", **params: object) -> Answer:
        return list(self.runner.run("demo", method, params))[-1]

    def failure(self, method: str, **params: object) -> str:
        with pytest.raises(InputError) as caught:
            self.answer(method, **params)
        return str(caught.value)

    def notes(self) -> list[list[str]]:
        return [line.split() for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def most_at_once(self) -> int:
        """How many jobs computed at the same time in processes that lived."""
        now, most = 0, 0
        for _, what, *_ in self.notes():
            now += 1 if what == "start" else -1
            most = max(most, now)
        return most


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path / "log")
    yield made
    made.runner.close()


def until(condition: object, seconds: float = 5.0) -> float:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "did not happen in time"
        time.sleep(0.01)
    return time.monotonic() - start


def test_events_pass_and_the_process_is_another(service: Service) -> None:
    events = list(service.runner.run("demo", "good", {"seconds": 0.1}))
    stages = [e.stage for e in events if isinstance(e, Progress) and e.stage not in ("starting", "waiting")]
    assert stages == ["load model", "work", "work"] and events[-1].data["pid"] != os.getpid()
    assert list(service.runner.do("good", {}))[-1].data["pid"] == events[-1].data["pid"]
    assert [f.outcome for f in service.finished] == ["done", "done"] and service.runner.healthy()


FAULTS = {
    "input": "too short", "bug": "KeyError", "memory": "memory was not enough", "gpu_memory": "memory was not enough", "gpu_fault": "GPU reported a fault",
    "disk": "is full", "store_full": "is full", "locked": "locked by another", "exits": "SystemExit", "unpicklable": "run failed", "segfault": "process died",
    "killed": "process died", "aborts": "process died", "stopped": "no sign of life", "deaf": "no sign of life",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_a_sentence_and_the_next_job_works(service: Service, fault: str) -> None:
    service.answer()
    sentence = service.failure(fault)
    assert FAULTS[fault] in sentence and sentence.endswith(".") and "\n" not in sentence
    start = time.monotonic()
    assert service.answer(number=1).data["params"] == {"number": 1}
    assert time.monotonic() - start < 5


def test_a_login_goes_with_its_job_and_what_it_finds_is_shared_with_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    token = ["hf_one"]
    settings = WorkerSettings(tmp_path / "log", HubSettings(offline=True), "tests.faults:runner")
    runner = WorkerRunner(settings, Limits(remember=60.0, spare=False), token=lambda: token[0])
    try:
        found = []
        for whose in ("hf_one", "hf_two", "", "hf_one"):
            token[0] = whose
            found.append(list(runner.do("whose", {}))[-1])
        assert [answer.data["owner"] for answer in found] == [rights.owner(t) for t in ("hf_one", "hf_two", "", "hf_one")]
        assert found[3].provenance == {"from_store": True} and len(runner._recent) == 3  # one's own is remembered
        slow = runner.do("good", {"seconds": 0.2})
        next(slow)
        assert "hf_one" not in repr(runner._jobs) + repr(runner._recent) + caplog.text and runner._jobs
        slow.close()
    finally:
        runner.close()


def test_deadline(service: Service) -> None:
    assert "longer than this server allows" in service.failure("good", seconds=10)


def test_a_task_does_not_wait_for_a_run_and_survives_its_death(service: Service) -> None:
    service.answer()
    run = service.runner.run("demo", "deaf", {})
    while next(run).stage != "load model":
        pass
    start = time.monotonic()
    assert list(service.runner.do("good", {}))[-1].data
    assert time.monotonic() - start < 0.3
    slow = list(service.runner.do("good", {"seconds": 0.8}))  # its process is killed for the deaf run's silence
    assert slow[-1].data["pid"] != 0
    with pytest.raises(InputError, match="no sign of life"):
        list(run)


def test_equal_requests_share_one_run(service: Service) -> None:
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: service.answer(seconds=0.3), range(10)))
    assert len(answers) == 10 and sum(what == "start" for _, what, *_ in service.notes()) == 1


def test_a_finished_job_answers_for_a_while(tmp_path: Path) -> None:
    service = Service(tmp_path / "log", Limits(remember=30))
    first, second = service.answer(number=1), service.answer(number=1)
    assert not first.provenance and second.provenance["from_store"] and service.answer(number=2).data != first.data
    assert len(service.notes()) == 4
    service.runner.close()


def test_disturbed_times_and_those_asked_for_anew_are_not_remembered(tmp_path: Path) -> None:
    service = Service(tmp_path / "log", Limits(remember=30))
    assert [list(service.runner.do("noisy", {}))[-1].provenance for _ in range(2)] == [{}, {}]
    assert [list(service.runner.run("demo", "good", {}, again=True))[-1].provenance for _ in range(2)] == [{}, {}]
    service.runner.close()


@pytest.mark.parametrize("method", ["good", "deaf"])
def test_cancel_frees_the_device_and_never_two_compute(service: Service, method: str) -> None:
    service.answer()
    for _ in range(4):
        run = service.runner.run("demo", method, {"seconds": 30})
        while next(run).stage != "load model":
            pass
        run.close()
        assert until(lambda: service.runner.active() == 0) < 2
    service.answer(number=1)
    if method == "good":
        assert service.most_at_once() == 1


def test_one_of_two_who_leaves_does_not_take_the_run_along(service: Service) -> None:
    one, two = (service.runner.run("demo", "good", {"seconds": 0.4}) for _ in range(2))
    next(one), next(two)
    one.close()
    assert isinstance(list(two)[-1], Answer)


def test_limits_are_sentences(service: Service) -> None:
    service.session = "a"
    open_ = [service.runner.run("demo", "good", {"seconds": 1, "number": i}) for i in range(12)]
    for run in open_[:4]:
        next(run)
    with pytest.raises(InputError, match="You have 4 runs"):
        next(open_[4])
    for i, run in enumerate(open_[5:]):
        service.session = f"b{i}"
        next(run)
    service.session = ""
    open_.append(service.runner.run("demo", "good", {"number": 100}))
    next(open_[-1])
    with pytest.raises(InputError, match=r"12 runs in line.*try again in \d+ s"):
        next(service.runner.run("demo", "good", {"number": 101}))
    waiting = next(e for e in open_[-1] if e.stage == "waiting")
    assert "ahead in line, about" in waiting.detail
    for run in open_:
        run.close()
    until(lambda: not service.runner.waiting() and not service.runner.active())


def test_share_of_computing(tmp_path: Path) -> None:
    service = Service(tmp_path / "log", Limits(seconds_of_session=0.2, remember=0))
    service.session = "a"
    service.answer(seconds=0.5)
    assert "which is your share" in service.failure("good", number=1)
    service.session = "b"
    assert service.answer(number=1)
    service.runner.close()


def test_waiting_jobs_survive_the_death_of_the_worker(service: Service) -> None:
    service.answer()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(service.failure, "good", seconds=1.5, number=99)
        until(lambda: service.runner.active() == 1)
        others = [pool.submit(service.answer, number=i) for i in range(3)]
        until(lambda: service.runner.waiting() == 3)
        os.kill(service.runner._worker.process.pid, signal.SIGKILL)
        assert "process died" in first.result() and [o.result().data["params"]["number"] for o in others] == [0, 1, 2]


def test_health_tells_the_truth(service: Service) -> None:
    assert not service.runner.healthy()
    service.answer()
    assert service.runner.healthy()
    until(lambda: service.runner._spare is not None and service.runner._spare.ready.is_set())
    os.kill(service.runner._worker.process.pid, signal.SIGKILL)
    until(lambda: service.runner.healthy())  # the spare took over


def test_a_worker_that_cannot_start_is_a_sentence(tmp_path: Path) -> None:
    service = Service(tmp_path / "log", LIMITS, "tests.faults:fails_to_start")
    assert "cannot be started" in service.failure("good")
    service.runner.close()


def test_workers_end_with_the_server() -> None:
    code = (
        "import sys, time; from pathlib import Path; from tests.test_worker import Service\n"
        "s = Service(Path(sys.argv[1])); print(s.answer().data['pid'], flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, "/dev/null"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])


def test_the_web_process_does_not_import_torch() -> None:
    code = "import sys, explorer.jobs, explorer.child, explorer.worker, explorer.hub; assert not {'torch', 'gradio', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


def test_real_experiments_run_in_a_worker(tmp_path: Path, tiny_folder: Path) -> None:
    """A model, whole, through the pipe; a second request is answered from the store; a hub id offline is a sentence."""
    runner = WorkerRunner(WorkerSettings(tmp_path / "r.db", HubSettings(cache=tmp_path, shared=None, offline=True)), Limits(remember=0, spare=False))
    events: list[Event] = list(runner.run(str(tiny_folder), "rtn", {"bits": 4}, tokens=256, length=128))
    report = events[-1]
    assert report.value("bits_per_weight") > 4 and not report.provenance["from_store"]
    assert list(runner.run(str(tiny_folder), "rtn", {"bits": 4}, tokens=256, length=128))[-1].provenance["from_store"]
    with pytest.raises(InputError, match="works offline"):
        list(runner.run("someone/model", "rtn", {}))
    with pytest.raises(InputError, match="no task"):
        list(runner.do("magic", {}))
    assert threading.active_count() < 20
    runner.close()


def test_what_nobody_expected_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    for error, logged in ((KeyError("planted"), True), (InputError("a sentence"), False)):
        caplog.clear()
        try:
            raise error
        except Exception as caught:
            explain(caught)
        assert ("Traceback" in caplog.text and "planted" in caplog.text) == logged


def test_explanations_name_no_path_and_fit_a_line() -> None:
    for error in (KeyError("x" * 5000), ValueError("CUDA error: device-side assert"), OSError(28, "No space left")):
        assert len(explain(error).sentence) < 400


def test_zero_gpu_runs_in_the_decorated_call(tmp_path: Path, tiny_folder: Path) -> None:
    """With a stand-in for `spaces.GPU`: what is asked for, events as they are, an error as its sentence."""
    asked: list[int] = []

    def gpu(duration: int) -> object:
        asked.append(duration)
        return lambda function: function

    runner = ZeroGpuRunner(WorkerSettings(tmp_path / "r.db", HubSettings(cache=tmp_path, shared=None, offline=True)), gpu)
    assert asked == [60] and runner.healthy()
    with pytest.raises(InputError, match="no method"):
        list(runner.run(str(tiny_folder), "magic", {}))
    events = runner.run(str(tiny_folder), "rtn", {"bits": 4}, tokens=256, length=128)
    assert isinstance(next(events), Progress)
    events.close()
