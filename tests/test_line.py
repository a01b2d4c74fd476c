"""Waiting is not computing: neither a limit nor a session's share counts it, and no process that computes for others ends for a job that waits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from explorer.limits import Limits
from explorer.records import Answer, Progress
from explorer.ui.status import Clock
from tests.test_worker import Service, until


def test_what_waits_in_line_again_is_neither_silent_nor_over_its_time_and_pays_for_what_it_computes(tmp_path: Path) -> None:
    """A sweep behind the long run of another visitor."""
    service = Service(tmp_path / "log", Limits(silence=0.7, deadline=2.4, remember=0))
    service.answer()
    service.finished.clear()
    service.session = "a"
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(service.answer, "good", seconds=1.8)
        until(lambda: service.runner.active() == 1)
        service.session = "b"
        events = service.runner.do("several", {"seconds": 0.4})
        while next(events).stage != "waiting":
            pass
        until(lambda: service.runner.active() == 1 == service.runner.waiting())
        rest = list(events)
        assert first.result() and isinstance(rest[-1], Answer), "nothing was stopped"
    waits = [event for event in rest if isinstance(event, Progress) and event.stage == "waiting"]
    assert all((event.total, event.detail) == (2, "run 0, waiting") for event in waits), "it says which of its runs waits"
    run, sweep = service.finished
    assert sweep.waited > 0.9 and 0.7 < sweep.seconds < 1.7 < run.seconds and sweep.waited + sweep.seconds > run.seconds
    assert service.runner._shares._last_hour("b") == sweep.seconds
    service.runner.close()


def test_who_leaves_a_download_takes_no_run_of_another_along(tmp_path: Path) -> None:
    service = Service(tmp_path / "log")
    service.answer()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(service.answer, "good", seconds=1.2)
        until(lambda: service.runner.active() == 1)
        process = service.runner._worker
        download = service.runner.do("downloads", {"seconds": 30.0})
        while next(download).stage != "download":
            pass
        download.close()
        assert first.result() and service.runner._worker is process and len(service.finished) == 2
    assert until(lambda: service.runner._worker is not process) < 2, "its process ends once nobody else needs it"
    service.runner.close()


def test_a_sweep_that_waits_is_still_the_same_stage_on_the_page() -> None:
    clock = Clock()
    assert "sweep 3 of 10" in clock.line(Progress("sweep", 3, 10, "rtn"))
    begun = clock._stage_started
    clock._shown = 0.0
    assert "waiting 3 of 10: rtn, 1 experiment ahead" in clock.line(Progress("waiting", 3, 10, "rtn, 1 experiment ahead in line"))
    clock._shown = 0.0
    assert clock.line(Progress("sweep", 3, 10, "rtn")) and clock._stage_started == begun, "the time left is told from where the sweep began"
