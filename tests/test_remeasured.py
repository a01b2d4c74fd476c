"""Times that other work disturbed are not the answer for ever, and a run says how far it is."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from explorer.experiment import LocalRunner, last_report
from explorer.loader import Loader
from explorer.records import BUSY, Progress, Report
from explorer.store import Store
from explorer.worker import lasting
from tests.measuring import measuring

FEW = {"tokens": 1024, "length": 256}


@pytest.fixture(scope="module")
def loader() -> Loader:
    return Loader(torch.device("cpu"))


def test_disturbed_times_are_measured_again_once_it_is_quiet(store: Store, loader: Loader, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask() -> Report:
        return last_report(LocalRunner(store, loader).run(str(tiny_folder), "rtn", {"bits": 4, "group_size": 32}, **FEW))

    clock = itertools.count(step=1000)
    monkeypatch.setattr("explorer.metrics.speed.waited", lambda: float(next(clock)))  # threads wait for cores, and for nothing else
    monkeypatch.setattr("explorer.experiment.quiet", lambda: False)
    busy = ask()
    assert busy.value("decode_waited") > BUSY and ask().provenance["from_store"], "on a machine that is still busy it would be no better"
    monkeypatch.setattr("explorer.metrics.speed.waited", lambda: 0.0)
    monkeypatch.setattr("explorer.experiment.quiet", lambda: True)
    again = ask()
    assert again.provenance["measured_now"] == ["speed"] and again.value("decode_waited") == 0 and again.find("kld_mean") == busy.find("kld_mean")
    assert ask().provenance["from_store"]
    assert [lasting(("run", {}), report) for report in (busy, again)] == [False, True], "what the server remembers for a minute"


def test_a_run_says_which_of_its_measurements_it_takes(store: Store, loader: Loader, tiny_folder: Path) -> None:
    with measuring("quality", "size"):
        events = list(LocalRunner(store, loader).run(str(tiny_folder), "rtn", {"bits": 4, "group_size": 32}, **FEW))
    told = [e.stage for e in events if isinstance(e, Progress)]
    assert any(stage.startswith("measurement 1 of 2, ") for stage in told) and told[0] == "load model"
