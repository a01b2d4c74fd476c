"""Posing one question and grading its answer: draws values, shuffles options, computes what is right. Keeps nothing and runs nothing."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from explorer.learn.bank import Question
from explorer.learn.expression import evaluate
from explorer.learn.facts import Facts
from explorer.learn.runs import named_runs
from explorer.records import Measurement, Report, significant

SPREAD = 2.0  # a number that is off by this factor scores nothing


@dataclass(frozen=True)
class Posed:
    """A question with this asking's values. order: positions of the options, or of the runs of an ordering, as they are shown; of a measured number
    the position of the one run that is asked about.
    """

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

    def titles(self, reports: Mapping[str, Report]) -> list[str]:
        """Names for people of the runs to be ordered, as shown: the question's own, where their reports' would not tell them apart."""
        names = self.question.names
        return [names[i] if names else title_of(self.question.runs[i], reports) for i in self.order]

    @property
    def graded_by(self) -> tuple[str, ...]:
        """Names of the runs whose values decide what is right: of an ordering and of a measured number."""
        measured = self.question.kind == "order" or (self.question.kind == "numeric" and self.question.metric)
        return tuple(self.question.runs[i] for i in self.order) if measured else ()


@dataclass(frozen=True)
class Verdict:
    """score in [0, 1]; right: the right answer in words, a measured one with its interval; why: what is to be said about this one; off: how far the
    answer was, "" where there is no distance.
    """

    score: float
    right: str
    why: str
    off: str = ""


def pose(question: Question, seed: str) -> Posed:
    """The question as this seed asks it; the same seed asks the same."""
    draw = random.Random(f"{question.id}:{seed}")
    values = {name: draw.choice(choices) for name, choices in question.draw.items()}
    places = list(range(len(question.options) or len(question.runs)))
    draw.shuffle(places)
    if question.kind == "numeric" and question.metric:
        places = places[:1]
        values["run"] = question.names[places[0]]
    return Posed(question, values, tuple(places))


def number_asked(posed: Posed, reports: Mapping[str, Report]) -> float:
    """The right answer of a numeric question. Raises ValueError when it is not a finite number."""
    if posed.graded_by:
        found = Facts(reports).value(posed.graded_by[0], posed.question.metric)
    else:
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


def amount(value: float, digits: int, unit: str) -> str:
    """A number with its unit as one writes it: $4.25, 1 user, 13 users, 570 tokens/s."""
    number = f"{value:,.{digits}f}"
    if unit == "$":
        return f"${number}"
    one = number == "1" and unit.endswith("s") and "/" not in unit
    return f"{number} {unit.removesuffix('s') if one else unit}".strip()


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


def trapped(given: float, right: float, traps: Iterable[float], digits: int) -> bool:
    """Whether a number, as it is printed, is one of the misconceptions that a question is about: wrong, however near it is to the right one."""
    shown = round(given, digits) if math.isfinite(given) else given
    return shown != round(right, digits) and any(shown == round(trap, digits) for trap in traps)


def _numeric(posed: Posed, answer: Any, reports: Mapping[str, Report]) -> Verdict:
    question, right = posed.question, number_asked(posed, reports)
    given = float(answer) if isinstance(answer, int | float) and not isinstance(answer, bool) else math.nan
    text, low, high = amount(right, question.digits, question.unit), right, right
    measured = reports[posed.graded_by[0]].find(question.metric) if posed.graded_by else None
    if measured is not None and has_interval(measured):
        low, high = measured.low, measured.high
        text += f" (95% interval {low:,.{question.digits}f} to {high:,.{question.digits}f})."
    inside, shown = low < high and low <= given <= high, round(right, question.digits)
    nearest = min(max(given, min(low, shown)), max(high, shown)) if math.isfinite(given) else right  # the answer as it is printed is right as well
    traps = [evaluate(trap, posed.values, {}) for trap in question.traps]
    score = 0.0 if trapped(given, right, traps, question.digits) else distance_score(given, nearest, question.tolerance)
    return Verdict(score, text, question.why.format(**posed.values), distance(given, right, inside, question.digits))


def has_interval(found: Measurement) -> bool:
    """Whether both ends of its interval are known and finite."""
    return found.low is not None and found.high is not None and math.isfinite(found.low) and math.isfinite(found.high)


def distance(given: float, right: float, inside: bool, digits: int) -> str:
    """How far a number is from the right one as it is printed, so that a reader finds the same; "" for no number or the right one itself."""
    right = round(right, digits)
    if not math.isfinite(given) or given == right:
        return ""
    if inside:
        return f"Yours, {given:,.6g}, is inside the interval."
    if right == 0 or given / right <= 0:
        return f"Yours, {given:,.6g}, is off by {abs(given - right):,.3g}."
    ratio, side = max(given / right, right / given), "large" if given / right > 1 else "small"
    far = f"{ratio:.3g} times" if ratio >= 1.5 else f"{100 * abs(given / right - 1):.2g}%"
    return f"Yours, {given:,.6g}, is {far} too {side}."


def _order(posed: Posed, answer: Any, reports: Mapping[str, Report]) -> Verdict:
    names, titles, metric, facts = posed.shown(), posed.titles(reports), posed.question.metric, Facts(reports)
    ranked = sorted(range(len(names)), key=lambda i: facts.value(names[i], metric))
    given = [i for i in answer if isinstance(i, int) and 0 <= i < len(names)] if isinstance(answer, list | tuple) else []
    pairs = [(a, b) for at, a in enumerate(given) for b in given[at + 1 :]] if len(set(given)) == len(given) else []
    # Of two runs that this text cannot tell apart, either order is right.
    wrong = sum(facts.below(names[b], names[a], metric) for a, b in pairs)
    whole = len(names) * (len(names) - 1) // 2
    off = f"{wrong} of {whole} pairs {'is' if wrong == 1 else 'are'} the wrong way round." if pairs and wrong else ""
    right = "; ".join(f"{titles[i]}: {_with_interval(reports[names[i]].find(metric))}" for i in ranked) + "."
    if any(facts.below(names[a], names[b], metric) and _overlap(*(reports[names[i]].find(metric) for i in (a, b))) for a, b in pairwise(ranked)):
        right += " Where these intervals overlap, the difference in each window tells runs apart."
    return Verdict((len(pairs) - wrong) / whole, right, posed.question.why, off)


def _overlap(less: Measurement, more: Measurement) -> bool:
    return has_interval(less) and has_interval(more) and less.high >= more.low


def _with_interval(found: Measurement | None) -> str:
    if found is None:
        return ""
    interval = f" ({significant(found.low, found.value)} to {significant(found.high, found.value)})" if has_interval(found) else ""
    return f"{significant(found.value)} {found.unit}{interval}"


def title_of(run: str, reports: Mapping[str, Report]) -> str:
    """A run's name for people: its report's, or its method's when it has none."""
    return reports[run].name if run in reports else named_runs()[run].method


def _configure(posed: Posed, answer: Any, reports: Mapping[str, Report]) -> Verdict:
    question = posed.question
    fits = isinstance(answer, dict) and all(answer.get(name) in choices for name, choices in question.fields.items())
    met = fits and bool(evaluate(question.constraint, {**posed.values, **answer}, Facts(reports).functions()))
    example = ", ".join(f"{name} {value}" for name, value in question.example.items())
    return Verdict(float(met), f"for example {example}", question.why)


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
