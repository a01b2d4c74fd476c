"""The question bank: one TOML file an area in assets/learn/questions, read into frozen records and checked. Asks and grades nothing."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from explorer.learn.runs import FOLDER

QUESTIONS = FOLDER / "questions"
LEVELS = ("junior", "mid", "senior")
KINDS = ("choice", "numeric", "configure", "order", "figure", "explain")


@dataclass(frozen=True)
class Option:
    """One answer of a choice; `why` says what is right or wrong about it."""

    text: str
    why: str
    right: bool = False


@dataclass(frozen=True)
class Question:
    """One question. kind decides which of the later fields are used:

    choice, figure: options, exactly one right; a figure also has `runs` and `figure` (a name in explorer.figures) or `chart`, or a `table`.
    numeric: draw (name -> values to draw from), answer (an expression), unit, tolerance (relative, for full marks), digits, traps (expressions over what is
    drawn: the misconceptions that it is about); or, measured, runs with their names for people and metric: one run is drawn, {run} in the text, and its
    value is asked for.
    configure: fields (name -> values to choose from), constraint (an expression over the fields and, with `runs_model`, over "run"), example, wrong.
    order: runs and metric; the right order is ascending by the measured value. names: of the runs, where their configurations' would be the same.
    explain: model (the model answer) and checklist.
    concept, level, source and see ("story:...", "tab:...") are never empty. why: said after the answer.
    """

    id: str
    area: str
    kind: str
    level: str
    concept: str
    source: str
    see: str
    ask: str
    why: str = ""
    options: tuple[Option, ...] = ()
    runs: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    figure: str = ""
    layer: str = ""
    chart: dict[str, Any] = field(default_factory=dict)
    table: tuple[tuple[str, ...], ...] = ()
    draw: dict[str, list[Any]] = field(default_factory=dict)
    answer: str = ""
    unit: str = ""
    tolerance: float = 0.02
    digits: int = 2
    traps: tuple[str, ...] = ()
    fields: dict[str, list[Any]] = field(default_factory=dict)
    constraint: str = ""
    runs_model: bool = False
    example: dict[str, Any] = field(default_factory=dict)
    wrong: dict[str, Any] = field(default_factory=dict)
    metric: str = ""
    model: str = ""
    checklist: tuple[str, ...] = ()


@dataclass(frozen=True)
class Area:
    """A file of the bank."""

    name: str
    title: str
    questions: tuple[Question, ...]


def read(path: Path) -> Area:
    """One file of the bank. Raises ValueError that names the question on a field it does not know or a kind that is none."""
    data = tomllib.loads(path.read_text())
    questions = []
    for row in data["question"]:
        tuples = {name: tuple(row[name]) for name in ("runs", "names", "checklist", "traps") if name in row}
        options = tuple(Option(**option) for option in row.get("options", ()))
        table = tuple(tuple(map(str, line)) for line in row.get("table", ()))
        try:
            question = Question(**{**row, **tuples, "area": path.stem, "options": options, "table": table})
        except TypeError as error:
            raise ValueError(f"{path.name}: {row.get('id')}: {error}") from error
        if question.kind not in KINDS or question.level not in LEVELS:
            raise ValueError(f"{path.name}: {question.id}: kind {question.kind!r} or level {question.level!r} is unknown")
        questions.append(question)
    return Area(path.stem, data["title"], tuple(questions))


@cache
def areas() -> dict[str, Area]:
    """Name -> Area, in the order of the files' names."""
    return {path.stem: read(path) for path in sorted(QUESTIONS.glob("*.toml"))}


@cache
def questions() -> dict[str, Question]:
    """Id -> Question of all areas."""
    return {question.id: question for area in areas().values() for question in area.questions}
