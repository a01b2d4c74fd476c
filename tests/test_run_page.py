"""The page that `run --html` writes: which runs stand on it, and that it is the page's own report, with its table, its style and its script."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from explorer.__main__ import main
from explorer.docs import SEEDS
from explorer.link import WHOLE
from explorer.records import Event, Report, report_from

ALL = [report_from(data) for data in json.loads(SEEDS.read_text())]


def with_widths(report: Report, widths: dict[str, int]) -> Report:
    """A report of the same configuration with these bits of cache and head."""
    spec = dataclasses.replace(report.experiment.spec, **widths)
    return dataclasses.replace(report, experiment=dataclasses.replace(report.experiment, spec=spec))


class Recorded:
    """A runner that gives recorded reports and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def run(self, model: str, method: str, params: dict[str, Any], **options: Any) -> Iterator[Event]:
        self.asked.append((method, options))
        spec = {name: options[name] for name in WHOLE}
        yield with_widths(ALL[0] if method == "none" else ALL[2], spec)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    found = Recorded()
    monkeypatch.setattr("explorer.commands.run.runner_of", lambda store: found)
    return found


@pytest.mark.parametrize("widths", [{"head_bits": 8}, {"kv_bits": 4}, {"kv_bits": 8, "head_bits": 4}])
@pytest.mark.parametrize("method", ["rtn", "none"])
def test_the_baseline_beside_it_keeps_cache_and_head(runner: Recorded, method: str, widths: dict[str, int], tmp_path: Path) -> None:
    flags = [word for name, bits in widths.items() for word in (f"--{name.replace('_', '-')}", str(bits))]
    assert main(["run", "--method", method, *flags, "--html", str(tmp_path / "p.html"), "--store", str(tmp_path / "r.db")]) == 0
    (first, own), (second, whole) = runner.asked
    assert (first, second) == (method, "none") and {name: own[name] for name in widths} == widths
    assert {name: whole[name] for name in WHOLE} == WHOLE and own | WHOLE == whole
