"""The named runs that walkthroughs and questions refer to, and what was recorded of them. Runs nothing itself."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from explorer.recorded import marked
from explorer.records import Answer, Report

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
def _rows() -> dict[str, dict[str, Any]]:
    return tomllib.loads((FOLDER / "runs.toml").read_text())


@cache
def named_runs() -> dict[str, Ask]:
    """Name -> Ask, from runs.toml."""
    return {name: Ask(row["method"], row.get("params", {}), row.get("options", {})) for name, row in _rows().items() if "method" in row}


@cache
def named_tasks() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> (task, arguments), from runs.toml."""
    return {name: (row["task"], row["arguments"]) for name, row in _rows().items() if "task" in row}


@cache
def _recorded() -> dict[str, Any]:
    return json.loads(RECORDED.read_text()) if RECORDED.exists() else {"reports": {}, "answers": {}}


@cache
def recorded() -> dict[str, Report]:
    """Name -> Report as measured by `python -m assets.record_learn`, marked as recorded; empty when the file is missing."""
    return {name: marked(data) for name, data in _recorded()["reports"].items()}


@cache
def recorded_answers() -> dict[str, Answer]:
    """Name -> Answer of a task, recorded with the reports."""
    return {name: Answer(**data) for name, data in _recorded()["answers"].items()}
