"""Short forms of the proofs in tests/soak.py; the long ones are `python -m tests.soak long`. Bounds on time are loose here: the machine may be busy."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.classes import classes
from tests.endurance import kills, soak
from tests.soak import cancel_cycles, class_start, single_flight


def apart(proof: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """A proof in a thread of its own, because the browser of other tests leaves an event loop running in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(proof, *args).result()


def test_many_submits_of_ten_configurations_are_ten_runs() -> None:
    found = apart(single_flight, 40)
    assert found["result"] == 40 and found["runs"] == 10 and found["most_runs_of_one"] == 1, found


def test_a_class_arrives_and_nobody_hangs() -> None:
    found = apart(class_start, 20, 2.0)
    assert found["errors"] == 0 and found["result"]["requests"] == 20 and found["result"]["max_ms"] < 45_000, found


def test_a_class_on_its_phones_votes_and_sees_the_answer() -> None:
    found = apart(classes, 30, 14)
    assert found["errors"] == 0 and found["votes_taken"] == found["votes_counted"] >= 30 and found["answers_seen"] >= 30, found


def test_cancel_frees_the_device_and_two_never_compute() -> None:
    found = apart(cancel_cycles, 6)
    assert found["most_at_once"] == 1 and found["busy_after_cancel"]["max_ms"] < 2000, found


def test_killed_writers_lose_nothing_that_was_acknowledged() -> None:
    found = apart(kills, 3, 150)
    assert found["kills"] == 3 and found["read_back_whole"] == found["acknowledged"] == 150 and found["integrity"] == "ok", found


def test_visitors_leave_no_memory_or_descriptors_behind() -> None:
    found = apart(soak, 20, 10)
    assert found["errors"] == 0 and found["growth_percent"] < 25 and found["descriptors"][1] <= found["descriptors"][0] + 15, found
