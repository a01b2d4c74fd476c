"""Walkthroughs as data: one TOML file a story in assets/learn/stories. A step says one thing, asks for a prediction, names what is run and which figure
answers, and holds a predicate that decides which of two conclusions is true of the numbers. Draws and runs nothing.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from explorer.learn.expression import evaluate
from explorer.learn.facts import Facts
from explorer.learn.pose import amount, distance, distance_score
from explorer.learn.runs import FOLDER
from explorer.records import Answer, Report

STORIES = FOLDER / "stories"


@dataclass(frozen=True)
class Predict:
    """What to predict: one of `options`, the right one given by the expression `right` as an index; or a number between low and high, by `answer`."""

    ask: str
    options: tuple[str, ...] = ()
    right: str = ""
    low: float = 0.0
    high: float = 1.0
    unit: str = ""
    digits: int = 2
    answer: str = ""


@dataclass(frozen=True)
class Step:
    """One step. runs and answers: names in runs.toml; figure: a name in explorer.figures, or chart: a drawing of explorer.learn.charts.

    values: name -> expression, for the texts. holds: the predicate; yes and no: what to conclude when it is true and when not, where `no` names a
    model on which it is. beware: a caution that is
    true whichever of the two is.
    """

    title: str
    text: str
    predict: Predict
    holds: str
    yes: str
    no: str
    beware: str
    runs: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    figure: str = ""
    layer: str = ""
    chart: dict[str, Any] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Story:
    """A walkthrough. stars: difficulty from 1 to 4. see: the tab in which to go on."""

    name: str
    title: str
    stars: int
    summary: str
    source: str
    see: str
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Conclusion:
    """holds: whether the predicate is true; text: the conclusion with its numbers; numbers: the step's values."""

    holds: bool
    text: str
    numbers: dict[str, Any]


def read(path: Path) -> Story:
    """One story. Raises ValueError that names the file on a field that no step has."""
    data = tomllib.loads(path.read_text())
    try:
        steps = tuple(_step(row) for row in data.pop("step"))
        return Story(path.stem.split("_", 1)[1], steps=steps, **data)
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path.name}: {error}") from error


def _step(row: dict[str, Any]) -> Step:
    predict = Predict(**{**row["predict"], "options": tuple(row["predict"].get("options", ()))})
    return Step(**{**row, "predict": predict, "runs": tuple(row.get("runs", ())), "answers": tuple(row.get("answers", ()))})


@cache
def stories() -> dict[str, Story]:
    """Name -> Story, in the order of the files' numbers."""
    return {story.name: story for story in map(read, sorted(STORIES.glob("*.toml")))}


def conclude(step: Step, reports: Mapping[str, Report], answers: Mapping[str, Answer]) -> Conclusion:
    """What is true of these numbers. Raises ValueError when a number that the step needs is missing."""
    functions = Facts(reports, answers).functions()
    numbers = {name: evaluate(text, {}, functions) for name, text in step.values.items()}
    holds = bool(evaluate(step.holds, numbers, functions))
    return Conclusion(holds, (step.yes if holds else step.no).format(**numbers), numbers)


def judge(step: Step, prediction: Any, reports: Mapping[str, Report], answers: Mapping[str, Answer]) -> tuple[float, str, str]:
    """(score in [0, 1], what was right in words, how far off it was in words) of a prediction: the position of an option, or a number."""
    functions, predict = Facts(reports, answers).functions(), step.predict
    if predict.options:
        right = int(evaluate(predict.right, {}, functions))
        return float(prediction == right), predict.options[right], ""
    right = float(evaluate(predict.answer, {}, functions))
    given = float(prediction) if isinstance(prediction, int | float) else float("nan")
    text = amount(right, predict.digits, predict.unit)
    if amount(given, predict.digits, predict.unit) == text:  # the answer as it is printed is right
        return 1.0, text, ""
    return distance_score(given, right, 0.1), text, distance(given, right, False)
