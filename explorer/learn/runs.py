"""The named runs that walkthroughs and questions refer to, and their recorded reports. Runs nothing itself: a runner is passed in."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from explorer.records import Report, report_from

FOLDER = Path(__file__).parent.parent.parent / "assets" / "learn"
RECORDED = FOLDER / "recorded.json"


@dataclass(frozen=True)
class Ask:
    """What is asked of a runner on the bundled model: a method, its parameters, and options of the run."""

    method: str
    params: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> tuple[tuple[str, str, dict[str, Any]], dict[str, Any]]:
        """(positional, keyword) arguments of `runner.run`, with texts written out."""
        options = self.options | ({"text": text_named(self.options["text"])} if "text" in self.options else {})
        return ("demo", self.method, self.params), options


def text_named(name: str) -> str:
    """A text for calibrating badly on purpose: "@repeat", one sentence over and over; "@sums", lines of additions. Other texts are themselves."""
    if name == "@repeat":
        return "The server stores the table. " * 1600
    if name == "@sums":
        return "\n".join(f"{a} + {b} = {a + b}" for a in range(17, 1700, 41) for b in range(3, 4000, 97))
    return name


@cache
def named_runs() -> dict[str, Ask]:
    """Name -> Ask, from runs.toml."""
    rows = tomllib.loads((FOLDER / "runs.toml").read_text())
    return {name: Ask(row["method"], row.get("params", {}), row.get("options", {})) for name, row in rows.items()}


@cache
def recorded() -> dict[str, Report]:
    """Name -> Report as measured by `python -m assets.record_learn`, marked as recorded; empty when the file is missing."""
    if not RECORDED.exists():
        return {}
    reports = {name: report_from(data) for name, data in json.loads(RECORDED.read_text()).items()}
    for report in reports.values():
        report.provenance["recorded"] = True
    return reports
