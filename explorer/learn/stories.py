"""Walkthroughs as data: one TOML file a story in assets/learn/stories. A step says one thing, asks for a prediction, names what is run and which figure
answers, and holds a predicate that decides which of two conclusions is true of the numbers. Draws and runs nothing.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from explorer.learn.expression import evaluate
from explorer.learn.facts import Facts
from explorer.learn.pose import amount, distance, distance_score, trapped
from explorer.learn.runs import FOLDER
from explorer.records import Answer, Report

STORIES = FOLDER / "stories"
EXACT, MEASURED = 0.01, 0.1  # relative distances within which a number is right: of arithmetic, which has one answer, and of what a run measured
ONE_OFF = 0.6  # the score of a count that is one too many or too few


@dataclass(frozen=True)
class Predict:
    """What to predict: one of `options`, the right one given by the expression `right` as an index; or a number between low and high, by `answer`.

    tolerance: relative, within which a number is right; 0 for EXACT where nothing is measured and MEASURED elsewhere. whole: a count, right only as it is.
    traps: the misconceptions that the step is about, never right and never close.
    """

    ask: str
    options: tuple[str, ...] = ()
    right: str = ""
    low: float = 0.0
    high: float = 1.0
    unit: str = ""
    digits: int = 2
    answer: str = ""
    tolerance: float = 0.0
    whole: bool = False
    traps: tuple[float, ...] = ()


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
    predict = Predict(**{**row["predict"], **{name: tuple(row["predict"].get(name, ())) for name in ("options", "traps")}})
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
    if amount(given, predict.digits, predict.unit) == text and not fraction(step, prediction):  # the answer as it is printed is right
        return 1.0, text, ""
    if predict.whole:
        return (ONE_OFF if abs(given - round(right)) == 1 else 0.0), text, miscounted(given, round(right))
    tolerance = predict.tolerance or (MEASURED if step.runs or step.answers else EXACT)
    score = 0.0 if trapped(given, right, predict.traps, predict.digits) else distance_score(given, right, tolerance)
    return score, text, distance(given, right, False, predict.digits)


def miscounted(given: float, right: int) -> str:
    """How far a count is from the right one, in words; "" for no number."""
    if not math.isfinite(given):
        return ""
    return f"Yours, {given:,.6g}, is {abs(given - right):,.6g} too {'many' if given > right else 'few'}."


def fraction(step: Step, prediction: Any) -> bool:
    """Whether a number was given that no count can be."""
    return step.predict.whole and isinstance(prediction, int | float) and prediction != prediction // 1
