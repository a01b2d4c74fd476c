"""The reports that ship with the project, each file read once and all of them marked as recorded; () or {} where a file is not made yet. No torch."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from explorer.records import Report, report_from

ASSETS = Path(__file__).parent.parent / "assets"
SEEDS, SURVEY, LADDER = ASSETS / "seed_results.json", ASSETS / "survey.json", ASSETS / "ladder.json"


def marked(data: dict[str, Any]) -> Report:
    """The report of its plain data, marked as recorded: whatever shows it then says so."""
    report = report_from(data)
    report.provenance["recorded"] = True
    return report


@cache
def seeds() -> tuple[Report, ...]:
    """The reports that the page shows first, the baseline before the others."""
    return _read(SEEDS)


@cache
def survey() -> dict[str, Report]:
    """The survey of all methods on the bundled model, by key: few numbers of many configurations."""
    return {report.key: report for report in _read(SURVEY)}


@cache
def ladder() -> tuple[Report, ...]:
    """Plain rounding of the bundled model at 8 to 2 bits, on which every metric is placed."""
    return _read(LADDER)


def on_record() -> dict[str, Report]:
    """What is recorded of the bundled model at many widths, by key: the survey of all methods, and the ladder."""
    return survey() | {rung.key: rung for rung in ladder()}


def _read(path: Path) -> tuple[Report, ...]:
    return tuple(map(marked, json.loads(path.read_text()))) if path.exists() else ()
