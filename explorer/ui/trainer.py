"""The interview trainer on the page: a set of questions, one at a time, with confidence, feedback and a result sheet. State lives in the browser."""

from __future__ import annotations

import datetime
import random
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr

from explorer.chips import chip, of_metrics, reachable
from explorer.figures import figures
from explorer.learn import progress
from explorer.learn.bank import Question, areas, questions
from explorer.learn.charts import draw
from explorer.learn.pose import Posed, Verdict, grade, pose, run_of, title_of
from explorer.learn.runs import recorded
from explorer.records import InputError, Report
from explorer.ui.frame import plotted
from explorer.ui.page import Clock, failure, status, watched
from explorer.ui.tab import Shell

FIELDS = 4  # choices of a configuration at most
KINDS = {"choice": "choose", "figure": "read the figure", "numeric": "predict the number", "order": "order", "configure": "configure", "explain": "explain"}
NOTED = "<div class='feedback'><p>Noted. What was right, and why, comes at the end of the set.</p></div>"
OWN = chip("measured", "counted from your own answers, in this browser", reached=False)
State = dict[str, Any]


def today() -> int:
    """Days since 1970, UTC."""
    return (datetime.datetime.now(datetime.UTC).date() - datetime.date(1970, 1, 1)).days


def checked(state: Any) -> State:
    """The trainer's state as a browser sent it: {"progress", "set"}; fresh parts for what is none."""
    known = state if isinstance(state, dict) else {}
    running = known.get("set")
    bank = questions()
    good = (
        isinstance(running, dict) and isinstance(running.get("ids"), list) and 0 < len(running["ids"]) <= 10 and all(i in bank for i in running["ids"])
        and isinstance(running.get("at"), int) and 0 <= running["at"] <= len(running["ids"]) and isinstance(running.get("scores"), list)
        and all(isinstance(s, int | float) for s in running["scores"]) and len(running["scores"]) <= 10
        and all(isinstance(running.get(key), str) and len(running[key]) < 80 for key in ("seed", "title", "stage"))
    )  # fmt: skip
    return {"progress": progress.checked(known.get("progress")), "set": running if good else None}


def begin(state: State, kind: str, wanted: Sequence[str]) -> State:
    """The state with a new set: "five" at the person's level, or "daily"."""
    if kind == "daily":
        date = datetime.datetime.now(datetime.UTC).date()
        ids, seed, title = progress.daily(questions(), date), date.isoformat(), f"Daily challenge of {date.isoformat()}"
    else:
        seed = str(random.getrandbits(40))
        known = [name for name in wanted if name in areas()] if isinstance(wanted, list) else []
        ids, title = progress.next_set(state["progress"], questions(), today(), seed, known), "A set of five"
    return state | {"set": {"ids": ids, "at": 0, "scores": [], "seed": seed, "title": title, "stage": "ask"}}


def current(state: State) -> Posed | None:
    """The question that is open, None before a set and after its last question."""
    running = state["set"]
    return pose(questions()[running["ids"][running["at"]]], running["seed"]) if running and running["at"] < len(running["ids"]) else None


def see(target: str) -> str:
    """The link that shows it."""
    kind, _, name = target.partition(":")
    return (
        f"<a href='?tab=learn&amp;story={escape(name)}'>See it: the walkthrough</a>"
        if kind == "story"
        else f"<a href='?tab={escape(name)}'>See it: the {escape(name)} tab</a>"
    )


def picture(question: Question) -> dict[str, Any] | None:
    """The figure of a question that has one."""
    if question.figure:
        return figures()[question.figure].draw([recorded()[name] for name in question.runs], question.layer)
    return draw(question.chart, question.runs, recorded(), {}) if question.chart else None


def asked(state: State) -> list[Any]:
    """Updates of heading, plot, choice, number, order, text, checklist, the fields, confidence, answer and next buttons, feedback."""
    posed = current(state)
    hidden = [gr.update(visible=False)] * FIELDS
    if posed is None:
        heading = finished(state) if state["set"] else "<p class='see'>Start a set of five at your level, or today's challenge.</p>"
        return [heading, *[gr.update(visible=False)] * 6, *hidden, *[gr.update(visible=False)] * 3, ""]
    question, running = posed.question, state["set"]
    area = areas()[question.area].title
    heading = (
        f"<div class='question'><p class='where'>{escape(running['title'])} · {running['at'] + 1} of {len(running['ids'])} · {escape(area)} · "
        f"{escape(question.level)} · {KINDS[question.kind]}</p><p class='ask'>{escape(posed.ask)}</p></div>"
    )
    plot = picture(question)
    choices = [(text, i) for i, text in enumerate(posed.shown())] if question.options else []
    ordered = [(title_of(name, recorded()), i) for i, name in enumerate(posed.shown())] if question.kind == "order" else []
    fields = [gr.update(visible=True, label=name.replace("_", " "), choices=list(values), value=values[0]) for name, values in question.fields.items()][:FIELDS]
    return [
        heading,
        gr.update(value=plotted("question", plot), visible=True) if plot else gr.update(visible=False),
        gr.update(choices=choices, value=None, visible=bool(choices)),
        gr.update(value=None, label=f"Your number, {question.unit or 'no unit'}", visible=question.kind == "numeric"),
        gr.update(choices=ordered, value=[], visible=bool(ordered)),
        gr.update(value="", visible=question.kind == "explain"),
        gr.update(visible=False),
        *fields, *hidden[len(fields):],
        gr.update(value=50, visible=question.kind != "explain"),
        gr.update(value="Show the model answer" if question.kind == "explain" else "Run and grade" if question.runs_model else "Answer", visible=True),
        gr.update(visible=False), "",
    ]  # fmt: skip


def chips(question: Question) -> str:
    """The chip of a question's numbers: recorded runs, or arithmetic; none where the answer is no number."""
    if question.runs:
        return of_metrics([recorded()[name] for name in question.runs if name in recorded()], (question.metric or "kld_mean", "bits_per_weight"))
    return chip("estimated", "arithmetic with the numbers of the question") if question.kind == "numeric" else ""


def feedback(posed: Posed, verdict: Verdict) -> str:
    """What is said after an answer."""
    word = "Right" if verdict.score == 1 else "Wrong" if verdict.score == 0 else f"{100 * verdict.score:.0f}%"
    kind = "good" if verdict.score >= progress.RIGHT else "poor"
    return (
        f"<div class='feedback {kind}'><p><b>{word}.</b> {escape(verdict.right)} {chips(posed.question)}</p><p>{escape(verdict.why)}</p>"
        f"<p class='hint'>Concept: {escape(posed.question.concept)}. Source: {escape(posed.question.source)}. {see(posed.question.see)}</p></div>"
    )


def finished(state: State) -> str:
    """The end of a set: its score, and every question with its right answer and why."""
    running = state["set"]
    rows = []
    for name, score in zip(running["ids"], running["scores"], strict=False):
        posed = pose(questions()[name], running["seed"])
        verdict = grade(posed, None, recorded())
        rows.append(
            f"<tr><td>{100 * score:.0f}% {OWN}</td><td><b>{escape(posed.ask)}</b> {escape(verdict.right)} {chips(posed.question)}<br>"
            f"<span class='hint'>{escape(verdict.why)} "
            f"{see(posed.question.see)}</span></td></tr>"
        )
    return f"<h2>{escape(running['title'])}: {sum(running['scores']):.1f} of {len(rows)}</h2><table class='sheet'>{reachable(''.join(rows))}</table>"


def sheet(state: State) -> str:
    """The result sheet: strengths and gaps by area, and the calibration of confidence."""
    own = state["progress"]
    rows = []
    for row in progress.sheet(own, areas()):
        if row["answers"]:
            bar = f"<progress max='1' value='{row['score']:.2f}' aria-label='score'></progress>"
            stated = f"{row['brier']:.2f}" if row["brier"] is not None else ""
            rows.append(
                f"<tr><th scope='row'>{escape(row['title'])}</th><td>{row['answers']}</td><td>{bar} {100 * row['score']:.0f}%</td><td>{stated}</td></tr>"
            )
        else:
            rows.append(f"<tr><th scope='row'>{escape(row['title'])}</th><td>0</td><td>not asked yet</td><td></td></tr>")
    counted = "".join(f"<th scope='col'>{name} {OWN}</th>" for name in ("answers", "score", "Brier"))
    head = f"<tr><th scope='col'>area</th>{counted}</tr>"
    waiting = len(progress.due(own, today()))
    return (
        f"<table class='sheet'>{reachable(head)}{''.join(rows)}</table>"
        f"<p class='hint'>Rating {own['rating']:.0f} (junior questions 1000, mid 1200, senior 1400), "
        f"{own['answers']} answers, {waiting} question{'s' if waiting != 1 else ''} due again. "
        "Brier: squared distance of your stated confidence from the outcome; 0 is best, always saying 50% gives 0.25. Kept in this browser only.</p>"
    )


class Trainer:
    """Handlers of the Trainer tab over the shell's runner."""

    def __init__(self, shell: Shell) -> None:
        self.shell = shell

    def start(self, state: Any, wanted: Any, kind: str) -> list[Any]:
        """A new set: state, then what `asked` gives, then the sheet."""
        new = begin(checked(state), kind, wanted)
        return [new, *asked(new), sheet(new)]

    def show(self, state: Any) -> list[Any]:
        """What a reloaded page shows: what `asked` gives, then the sheet."""
        known = checked(state)
        return [*asked(known), sheet(known)]

    def following(self, state: Any) -> list[Any]:
        """The next question: state, then what `asked` gives, then the sheet."""
        known = checked(state)
        if known["set"] and known["set"]["stage"] == "done":
            known = known | {"set": known["set"] | {"at": known["set"]["at"] + 1, "stage": "ask"}}
        return [known, *asked(known), sheet(known)]

    def answer(
        self, state: Any, choice: Any, number: Any, order: Any, text: Any, ticked: Any, confidence: Any, quiet: Any, *fields: Any
    ) -> Iterator[list[Any]]:
        """Grades the answer to the open question: state, checklist, answer button, next button, feedback, sheet. Runs a configuration first.

        quiet: explanations wait for the end of the set.
        """
        known, same = checked(state), [gr.skip()] * 6
        posed = current(known)
        if posed is None or known["set"]["stage"] == "done":
            yield same
            return
        question = posed.question
        if question.kind == "explain" and known["set"]["stage"] == "ask":
            opened = known | {"set": known["set"] | {"stage": "grade"}}
            points = [(point, i) for i, point in enumerate(question.checklist)]
            model = f"<div class='feedback'><p><b>A model answer.</b> {escape(question.model)}</p><p>Tick what yours covered.</p></div>"
            yield [opened, gr.update(choices=points, value=[], visible=True), gr.update(value="Grade myself"), gr.skip(), model, gr.skip()]
            return
        given = {"choice": choice, "figure": choice, "numeric": number, "order": order, "explain": ticked}.get(question.kind)
        if question.kind == "configure":
            given = dict(zip(question.fields, fields, strict=False))
        if given is None or (question.kind == "order" and len(given) < len(question.runs)):
            say = "Put all of them in order first." if question.kind == "order" else "Give an answer first; a guess with low confidence costs nothing."
            yield [*same[:4], status(say, "error"), gr.skip()]
            return
        reports: Mapping[str, Report] = recorded()
        try:
            if question.runs_model:
                for event in self._run(question, given):
                    if isinstance(event, str):
                        yield [*same[:4], event, gr.skip()]
                    elif isinstance(event, Report):
                        reports = {**recorded(), "run": event}
            verdict = grade(posed, given, reports)
        except (InputError, RuntimeError, ValueError) as error:
            yield [*same[:4], failure(error), gr.skip()]
            return
        graded = self._graded(known, posed, verdict, confidence, reports.get("run"))
        yield [*graded[:4], NOTED, graded[5]] if quiet is True else graded

    def _run(self, question: Question, given: Mapping[str, Any]) -> Iterator[Any]:
        method, params, options = run_of(question, given)
        yield from watched(self.shell.runner.run("demo", method, params, **options), Clock())

    def _graded(self, known: State, posed: Posed, verdict: Verdict, confidence: Any, run: Report | None) -> list[Any]:
        sure = min(1.0, max(0.0, float(confidence) / 100)) if isinstance(confidence, int | float) and confidence == confidence else 0.5
        stated = verdict.score if posed.question.kind == "explain" else sure  # a graded self is not asked how sure it is
        own = progress.answered(known["progress"], posed.question, verdict.score, stated, today())
        new = known | {"progress": own, "set": known["set"] | {"stage": "done", "scores": [*known["set"]["scores"], round(verdict.score, 3)]}}
        said = feedback(posed, verdict)
        if run is not None:
            self.shell.shelf.add(run)
            numbers = f"{run.name}: {run.value('bits_per_weight'):.3f} bits a weight, {run.value('kld_mean'):.4f} nats"
            said += f"<p class='hint'>Graded by running it: {escape(numbers)} {of_metrics([run], ('kld_mean', 'bits_per_weight'))}.</p>"
        last = known["set"]["at"] + 1 == len(known["set"]["ids"])
        return [new, gr.skip(), gr.update(visible=False), gr.update(value="Result" if last else "Next question", visible=True), said, sheet(new)]
