"""The interview trainer on the page: a set of questions, one at a time, with confidence, feedback and a result sheet. State lives in the browser."""

from __future__ import annotations

import datetime
import random
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import gradio as gr

from explorer.figures import figures
from explorer.learn import progress
from explorer.learn.bank import Question, areas, questions
from explorer.learn.charts import draw
from explorer.learn.pose import Posed, Verdict, grade, has_interval, pose, run_of
from explorer.learn.runs import recorded
from explorer.records import InputError, Report, change, significant
from explorer.table import source
from explorer.ui.frame import plotted
from explorer.ui.measuring import NOT_WAITED, Graded, by_record, measured
from explorer.ui.status import Clock, failure, status, watched
from explorer.ui.tab import Shell
from explorer.ui.tabs.trainer.results import chips, finished, see, sheet, today

FIELDS = 4  # choices of a configuration at most
KINDS = {"choice": "choose", "figure": "read the figure", "numeric": "predict the number", "order": "order", "configure": "configure", "explain": "explain"}
NOTED = "<div class='feedback'><p>Noted. What was right, and why, comes at the end of the set.</p></div>"
OUTPUTS = 8  # of an answer
TOLD = 600  # characters of a right answer that a set remembers
State = dict[str, Any]


def checked(state: Any) -> State:
    """The trainer's state as a browser sent it: {"progress", "set"}; fresh parts for what is none."""
    known = state if isinstance(state, dict) else {}
    running = known.get("set")
    bank = questions()
    good = (
        isinstance(running, dict) and isinstance(running.get("ids"), list) and 0 < len(running["ids"]) <= 10 and all(i in bank for i in running["ids"])
        and isinstance(running.get("at"), int) and 0 <= running["at"] <= len(running["ids"]) and isinstance(running.get("scores"), list)
        and all(s is None or isinstance(s, int | float) for s in running["scores"]) and len(running["scores"]) <= 10
        and all(isinstance(running.get(key), str) and len(running[key]) < 80 for key in ("seed", "title", "stage"))
        and isinstance(told := running.get("told", []), list) and len(told) <= 10 and all(isinstance(t, str) and len(t) <= TOLD for t in told)
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
    return state | {"set": {"ids": ids, "at": 0, "scores": [], "told": [], "seed": seed, "title": title, "stage": "ask"}}


def current(state: State) -> Posed | None:
    """The question that is open, None before a set and after its last question."""
    running = state["set"]
    return pose(questions()[running["ids"][running["at"]]], running["seed"]) if running and running["at"] < len(running["ids"]) else None


def picture(question: Question) -> dict[str, Any] | None:
    """The figure of a question that has one."""
    if question.figure:
        return figures()[question.figure].draw([recorded()[name] for name in question.runs], question.layer)
    return draw(question.chart, question.runs, recorded(), {}) if question.chart else None


def asked(state: State) -> list[Any]:
    """Updates of heading, plot, choice, number, order, text, checklist, the fields, confidence, the buttons (answer, do not wait, next, skip), feedback."""
    posed = current(state)
    hidden = [gr.update(visible=False)] * FIELDS
    if posed is None:
        heading = finished(state) if state["set"] else "<p class='see'>Start a set of five at your level, or today's challenge.</p>"
        return [heading, *[gr.update(visible=False)] * 6, *hidden, *[gr.update(visible=False)] * 5, ""]
    question, running = posed.question, state["set"]
    ordered = [(name, i) for i, name in enumerate(posed.titles(recorded()))] if question.kind == "order" else []
    items = "".join(f"<li>{escape(name)}</li>" for name, _ in ordered)  # to be read before the list of choices is opened
    area = areas()[question.area].title
    heading = (
        f"<div class='question'><p class='where'>{escape(running['title'])} · {running['at'] + 1} of {len(running['ids'])} · {escape(area)} · "
        f"{escape(question.level)} · {KINDS[question.kind]}</p><p class='ask'>{escape(posed.ask)}</p>{f'<ul>{items}</ul>' if items else ''}</div>"
    )
    plot = picture(question)
    choices = [(text, i) for i, text in enumerate(posed.shown())] if question.options else []
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
        gr.update(value=pressed(posed), visible=True),
        gr.update(visible=False), gr.update(visible=False), gr.update(visible=True), "",
    ]  # fmt: skip


def pressed(posed: Posed) -> str:
    """What the button says."""
    if posed.question.kind == "explain":
        return "Show the model answer"
    return "Run and grade" if posed.question.runs_model or posed.graded_by else "Answer"


def chosen(posed: Posed, answer: Any) -> str:
    """What was answered, in words; "" for a number, whose distance is told, an order and what one grades oneself."""
    if isinstance(answer, dict):
        return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in answer.items())
    known = isinstance(answer, int) and posed.question.options and 0 <= answer < len(posed.shown())
    return posed.shown()[answer] if known else ""


def feedback(posed: Posed, verdict: Verdict, answer: Any, measured: str = "", chips: str = "") -> str:
    """What is said after an answer. measured: where the numbers that it was graded by come from; chips: theirs, as HTML."""
    word = "Right" if verdict.score == 1 else "Wrong" if verdict.score == 0 else f"{100 * verdict.score:.0f}%"
    if points := len(posed.question.checklist):  # it grades nobody who ticks for himself
        word = f"You ticked {verdict.score * points:.0f} of {points}"
    kind = "good" if verdict.score >= progress.RIGHT else "poor"
    own = chosen(posed, answer).rstrip(".") if verdict.score < 1 else ""
    mine = f"Yours: {escape(own)}." if own else ""
    label = "A model answer" if posed.question.kind == "explain" else "The answer"
    said = [
        f"<b>{word}.</b> {mine} <b>{label}:</b> {escape(verdict.right)} {chips} <b>{escape(verdict.off)}</b>",
        escape(verdict.why),
        f"<small>{escape(measured)}</small>" if measured else "",
    ]
    lines = "".join(f"<p>{line}</p>" for line in said if line)
    source = f"Concept: {escape(posed.question.concept)}. Source: {escape(posed.question.source)}. {see(posed.question.see)}"
    return f"<div class='feedback {kind}'>{lines}<p class='hint'>{source}</p></div>"


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

    def skip(self, state: Any) -> list[Any]:
        """The next question without an answer to this one: state, then what `asked` gives, then the sheet."""
        known = checked(state)
        posed = current(known)
        if posed is not None and known["set"]["stage"] != "done":
            running = known["set"]
            passed = {"at": running["at"] + 1, "stage": "ask", "scores": [*running["scores"], None], "told": [*running.get("told", []), ""]}
            known = {"progress": progress.skipped(known["progress"], posed.question, today()), "set": running | passed}
        return [known, *asked(known), sheet(known)]

    def answer(self, state: Any, *given: Any) -> Iterator[list[Any]]:
        """Grades the answer to the open question: state, checklist, answer button, next button, feedback, sheet, the buttons that do not wait and
        that skip.

        given: choice, number, order, ticked, confidence, quiet, then the fields. quiet: explanations wait for the end of the set. What must be
        run to be graded is run first, while the status streams into the feedback.
        """
        known, same = checked(state), [gr.skip()] * OUTPUTS
        posed = current(known)
        if posed is None or known["set"]["stage"] == "done":
            yield same
            return
        if posed.question.kind == "explain" and known["set"]["stage"] == "ask":
            yield opened(known, posed.question)
            return
        answer = answer_of(posed.question, *given)
        if answer is None:
            yield [*same[:4], status(missing(posed.question), "error"), *same[5:]]
            return
        try:
            for event in self._graded_by(posed, answer):
                if isinstance(event, Graded):
                    yield self._graded(known, posed, answer, event, given)
                else:
                    yield [*same[:4], event, same[5], gr.update(visible=bool(posed.graded_by)), same[7]]
        except (InputError, RuntimeError, ValueError) as error:
            yield [*same[:4], failure(error), *same[5:]]

    def recorded(self, state: Any, *given: Any) -> list[Any]:
        """The same for whoever does not wait for the runs: graded by what was recorded."""
        known = checked(state)
        posed = current(known)
        answer = answer_of(posed.question, *given) if posed is not None and posed.graded_by and known["set"]["stage"] == "ask" else None
        if answer is None:
            return [gr.skip()] * OUTPUTS
        graded = by_record(posed.graded_by, NOT_WAITED)
        return self._graded(known, posed, answer, graded, given)

    def _graded_by(self, posed: Posed, answer: Any) -> Iterator[str | Graded]:
        """Status lines, last the reports that decide what is right: measured ones where the question asks about runs."""
        if posed.graded_by:
            yield from measured(self.shell, posed.graded_by)
            return
        if not posed.question.runs_model:
            yield Graded(recorded(), "")
            return
        method, params, options = run_of(posed.question, answer)
        for event in watched(self.shell.runner.run("demo", method, params, **options), Clock()):
            if isinstance(event, Report):
                self.shell.shelf.add(event)
                yield Graded({**recorded(), "run": event}, ran(event))
            elif isinstance(event, str):
                yield event

    def _graded(self, known: State, posed: Posed, answer: Any, graded: Graded, given: Sequence[Any]) -> list[Any]:
        confidence, quiet = given[4:6]
        verdict = grade(posed, answer, graded.reports)
        sure = min(1.0, max(0.0, float(confidence) / 100)) if isinstance(confidence, int | float) and confidence == confidence else 0.5
        stated = None if posed.question.kind == "explain" else sure  # who grades himself is not asked how sure he is
        own, running = progress.answered(known["progress"], posed.question, verdict.score, stated, today()), known["set"]
        told = [*running.get("told", []), f"{verdict.right} {graded.said}"[:TOLD] if posed.graded_by else ""]
        done = {"stage": "done", "scores": [*running["scores"], round(verdict.score, 3)], "told": told}
        new = known | {"progress": own, "set": running | done}
        last = running["at"] + 1 == len(running["ids"])
        following = gr.update(value="Result" if last else "Next question", visible=True)
        said = NOTED if quiet is True else feedback(posed, verdict, answer, graded.said, chips(posed, graded.reports))
        return [new, gr.skip(), gr.update(visible=False), following, said, sheet(new), *[gr.update(visible=False)] * 2]


def answer_of(question: Question, choice: Any, number: Any, order: Any, ticked: Any, confidence: Any, quiet: Any, *fields: Any) -> Any:
    """What was answered, from the widgets; None when it is not complete."""
    given = {"choice": choice, "figure": choice, "numeric": number, "order": order, "explain": ticked}.get(question.kind)
    if question.kind == "configure":
        return dict(zip(question.fields, fields, strict=False))
    return None if question.kind == "order" and (not isinstance(given, list) or len(given) < len(question.runs)) else given


def missing(question: Question) -> str:
    """What is said to whoever answers nothing."""
    return "Put all of them in order first." if question.kind == "order" else "Give an answer first; a guess with low confidence costs nothing."


def opened(known: State, question: Question) -> list[Any]:
    """The model answer of a question to be explained, with the list by which to grade oneself."""
    new = known | {"set": known["set"] | {"stage": "grade"}}
    points = [(point, i) for i, point in enumerate(question.checklist)]
    model = f"<div class='feedback'><p><b>A model answer.</b> {escape(question.model)}</p><p>Tick what yours covered.</p></div>"
    return [new, gr.update(choices=points, value=[], visible=True), gr.update(value="Grade myself"), gr.skip(), model, *[gr.skip()] * 3]


def ran(run: Report) -> str:
    """What a configuration measured, and where the numbers come from."""
    numbers = f"{run.value('bits_per_weight'):.3f} bits a weight"
    kl, delta = run.find("kld_mean"), run.find("perplexity_delta")
    if kl is not None and has_interval(kl):
        numbers += f", {significant(kl.value)} nats ({significant(kl.low, kl.value)} to {significant(kl.high, kl.value)})"
    if delta is not None and has_interval(delta):
        words, interval = change(delta.value, delta.low, delta.high)
        numbers += f", perplexity {words} ({interval})"
    return f"Graded by running it: {run.name}, {numbers}; {source(run)}, {run.provenance.get('device', '')}."
