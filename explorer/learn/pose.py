"""Posing one question and grading its answer: draws values, shuffles options, computes what is right. Keeps nothing and runs nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from explorer.learn.bank import Question
from explorer.learn.expression import evaluate
from explorer.learn.facts import Facts
from explorer.learn.runs import named_runs
from explorer.records import Report

SPREAD = 2.0  # a number that is off by this factor scores nothing


@dataclass(frozen=True)
class Posed:
    """A question with this asking's values. order: positions of the options, or of the runs of an ordering, as they are shown."""

    question: Question
    values: dict[str, Any]
    order: tuple[int, ...]

    @property
    def ask(self) -> str:
        """The text, with its values filled in."""
        return self.question.ask.format(**self.values)

    def shown(self) -> list[str]:
        """Options as shown, or names of runs to be ordered."""
        if self.question.options:
            return [self.question.options[i].text.format(**self.values) for i in self.order]
        return [self.question.runs[i] for i in self.order]


@dataclass(frozen=True)
class Verdict:
    """score in [0, 1]; right: the right answer in words; why: what is to be said about this one."""

    score: float
    right: str
    why: str


def pose(question: Question, seed: str) -> Posed:
    """The question as this seed asks it; the same seed asks the same."""
    draw = random.Random(f"{question.id}:{seed}")
    values = {name: draw.choice(choices) for name, choices in question.draw.items()}
    places = list(range(len(question.options) or len(question.runs)))
    draw.shuffle(places)
    return Posed(question, values, tuple(places))


def number_asked(posed: Posed, reports: Mapping[str, Report]) -> float:
    """The right answer of a numeric question. Raises ValueError when it is not a finite number."""
    found = evaluate(posed.question.answer, posed.values, Facts(reports).functions())
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        raise ValueError(f"{posed.question.id}: the answer is {found!r}")
    return float(found)


def grade(posed: Posed, answer: Any, reports: Mapping[str, Report]) -> Verdict:
    """Grades an answer: the shown position of an option, a number, the shown positions in order, the chosen fields, or the ticked checklist.

    reports: by name; for a configuration that is graded by running it, "run" is the report of the answer. Anything else scores nothing.
    """
    kinds = {"choice": _choice, "figure": _choice, "numeric": _numeric, "order": _order, "configure": _configure, "explain": _explain}
    return kinds[posed.question.kind](posed, answer, reports)


def _choice(posed: Posed, answer: Any, reports: Mapping[str, Report]) -> Verdict:
    options = [posed.question.options[i] for i in posed.order]
    right = next(option for option in options if option.right)
    picked = options[answer] if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options) else None
    if picked is right:
        return Verdict(1.0, right.text, " ".join(filter(None, (right.why, posed.question.why))))
    why = (picked.why + " " if picked else "") + right.why + (f" {posed.question.why}" if posed.question.why else "")
    return Verdict(0.0, right.text, why)


def distance_score(given: float, right: float, tolerance: float) -> float:
    """1 within the relative tolerance, then falling with the logarithm of the ratio to 0 at SPREAD; differences count when right is 0 or signs differ."""
    if not math.isfinite(given):
        return 0.0
    if abs(given - right) <= tolerance * abs(right) + 1e-12:
        return 1.0
    if given * right <= 0:
        return 0.0
    off, free = abs(math.log(given / right)), math.log1p(tolerance)
    return max(0.0, 1 - max(0.0, off - free) / (math.log(SPREAD) - free))


def _numeric(posed: Posed, answer: Any, reports: Mapping[str, Report]) -> Verdict:
    question, right = posed.question, number_asked(posed, reports)
    given = float(answer) if isinstance(answer, int | float) and not isinstance(answer, bool) else math.nan
    text = f"{right:,.{question.digits}f} {question.unit}".strip()
    return Verdict(distance_score(given, right, question.tolerance), text, question.why.format(**posed.values))


def _order(posed: Posed, answer: Any, reports: Mapping[str, Report]) -> Verdict:
    names = posed.shown()
    facts = Facts(reports)
    ranked = sorted(range(len(names)), key=lambda i: facts.value(names[i], posed.question.metric))
    place = {shown: rank for rank, shown in enumerate(ranked)}
    given = [place[i] for i in answer if i in place] if isinstance(answer, list | tuple) else []
    pairs = [(a, b) for i, a in enumerate(given) for b in given[i + 1 :]]
    whole = len(names) * (len(names) - 1) / 2
    right = ", ".join(f"{title_of(names[i], reports)} ({facts.value(names[i], posed.question.metric):.4g})" for i in ranked)
    score = sum(a < b for a, b in pairs) / whole if len(set(given)) == len(given) else 0.0
    return Verdict(score, right, posed.question.why)


def title_of(run: str, reports: Mapping[str, Report]) -> str:
    """A run's name for people: its report's, or its method's when it has none."""
    return reports[run].name if run in reports else named_runs()[run].method


def _configure(posed: Posed, answer: Any, reports: Mapping[str, Report]) -> Verdict:
    question = posed.question
    fits = isinstance(answer, dict) and all(answer.get(name) in choices for name, choices in question.fields.items())
    met = fits and bool(evaluate(question.constraint, {**posed.values, **answer}, Facts(reports).functions()))
    example = ", ".join(f"{name} {value}" for name, value in question.example.items())
    return Verdict(float(met), f"one that meets it: {example}", question.why)


def _explain(posed: Posed, answer: Any, reports: Mapping[str, Report]) -> Verdict:
    points = len(posed.question.checklist)
    ticked = len({i for i in answer if isinstance(i, int) and 0 <= i < points}) if isinstance(answer, list | tuple) else 0
    return Verdict(ticked / points, posed.question.model, posed.question.why)


def run_of(question: Question, answer: Mapping[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(method, parameters, options) of a configuration that is graded by running it; parameters that the method does not take are left out."""
    affine = ("bits", "group_size", "symmetric")
    taken = {"rtn": affine, "gptq": affine, "awq": affine[:2], "hqq": affine[:2], "nf4": ("group_size",)}
    method = str(answer.get("method", "rtn"))
    params = {name: value for name, value in answer.items() if name in taken.get(method, ())}
    return method, params, {name: value for name, value in answer.items() if name == "kv_bits"}
