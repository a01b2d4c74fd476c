"""What a class sees: the question in large type, who is here, the votes and the measured answer once it is out. Updates and HTML; keeps nothing."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from typing import Any

import gradio as gr
import segno

from explorer.learn.expression import evaluate
from explorer.learn.facts import Facts
from explorer.learn.room import Asked
from explorer.learn.runs import recorded, recorded_answers
from explorer.learn.stories import Predict, Step, conclude, judge, stories
from explorer.ui.frame import plotted
from explorer.ui.status import many, status
from explorer.ui.tabs.learn.handlers import chips, concluded, drawn, place

CLOSED = "<b>The votes are in.</b> No run answers this one: it is your teacher's."
BELOW = 600  # pixels that a presented plot has below its question, of the 900 that the stage is laid out for
BINS = 5  # choices that a number to be predicted is offered as
ALONE = (
    "Phones cannot reach this address, which is this machine's own: start the app with python app.py --host 0.0.0.0 (or GRADIO_SERVER_NAME=0.0.0.0) "
    "and open the page by this machine's address in your network."
)
LOOPBACK = re.compile(r"https?://(127\.[0-9.]+|localhost|\[::1\]|0\.0\.0\.0)[:/?]", re.IGNORECASE)
ADDRESS = re.compile(r"https?://[A-Za-z0-9.:\[\]-]{1,120}(/[\w./-]{0,120})?", re.ASCII)


def edges(predict: Predict) -> list[float]:
    """Bounds of the bins of a number: even on a log scale when the range spans a factor of 8."""
    low, high = predict.low, predict.high
    if low > 0 and high / low >= 8:
        return [low * (high / low) ** (i / BINS) for i in range(BINS + 1)]
    return [low + (high - low) * i / BINS for i in range(BINS + 1)]


def choices(predict: Predict) -> tuple[str, ...]:
    """What a class votes on: the options, or ranges of the number."""
    if predict.options:
        return predict.options
    bounds = [f"{edge:,.{predict.digits}f}" for edge in edges(predict)]
    return tuple(f"{a} to {b} {predict.unit}".strip() for a, b in pairwise(bounds))


def right_choice(step: Step) -> int:
    """Which of `choices` the recorded numbers make right."""
    functions = Facts(recorded(), recorded_answers()).functions()
    if step.predict.options:
        return int(evaluate(step.predict.right, {}, functions))
    value = float(evaluate(step.predict.answer, {}, functions))
    return min(BINS - 1, sum(value >= edge for edge in edges(step.predict)[1:-1]))


def bars(names: Sequence[str], counts: Sequence[int], right: int | None = None) -> str:
    """The votes as horizontal bars; the right one is marked."""
    most = max([1, *counts])
    rows = []
    for i, (name, count) in enumerate(zip(names, counts, strict=True)):
        mark = " class='right'" if i == right else ""
        width = 100 * count / most
        label = f"{'✓ ' if i == right else ''}{escape(name)}"
        rows.append(f"<tr{mark}><th scope='row'>{label}</th><td><span style='width:{width:.0f}%'></span></td><td>{count}</td></tr>")
    return f"<table class='votes' aria-label='votes'>{''.join(rows)}</table><p class='hint'>{many(sum(counts), 'vote')}</p>"


def enlarged(plot: dict[str, Any]) -> dict[str, Any]:
    """The plot for the back row: larger type and markers."""
    shape = plot["layout"] | {"font": plot["layout"].get("font", {}) | {"size": 18}, "height": max(520, plot["layout"].get("height", 0))}
    traces = [t | ({"marker": t["marker"] | {"size": 12}} if isinstance(t.get("marker", {}).get("size"), int) else {}) for t in plot["data"]]
    return plot | {"layout": shape, "data": traces}


def tall(plot: dict[str, Any]) -> list[str]:
    """The class of a plot that does not fit below its question: the presenter's view then has it beside it."""
    return ["tall"] if enlarged(plot)["layout"]["height"] > BELOW else []


def joined(address: str, code: str) -> str:
    """The link that opens the room, "" for an address that is none."""
    base = str(address).split("?")[0].split("#")[0]
    return f"{base}?tab=classroom&room={code}" if ADDRESS.fullmatch(base) else ""


def square(link: str) -> str:
    """The link as a QR code, SVG."""
    out = io.BytesIO()
    segno.make(link, error="m").save(out, kind="svg", scale=5, border=2, dark="#000", light="#fff", xmldecl=False, svgclass="qr", omitsize=True)
    return out.getvalue().decode()


def invitation(address: str, code: str) -> str:
    """The code of a room, its link and its QR."""
    link = joined(address, code)
    text = f"<a href='{escape(link)}' target='_blank' rel='noopener'>{escape(link)}</a>" if link else ""
    image = square(link) if link else ""
    alone = status(ALONE, "error") if LOOPBACK.match(link) else ""
    room = f"<div class='room'>{image}<div><p>Open the Class tab and enter</p><p class='code'>{escape(code)}</p><p class='hint'>{text}</p></div></div>"
    return alone + room


def question(story: Any, step: Any) -> str:
    """A step as a class sees it: one question in large type."""
    found, at = place(story, step)
    own = found.steps[at]
    return (
        f"<div class='question'><p class='where'>{escape(found.title)} · {at + 1} of {len(found.steps)}</p><h2>{escape(own.title)}</h2>"
        f"<p>{escape(own.text)}</p><p class='ask'>{escape(own.predict.ask)}</p></div>"
    )


def shown(asked: Asked) -> str:
    """What a class is asked: a step, a question of the trainer's bank, or the teacher's own."""
    if not asked.text:
        return question(asked.story, asked.step)
    where = "A question of your teacher's" if not asked.lent else "A question of the trainer's"
    return f"<div class='question'><p class='where'>{where}</p><p class='ask'>{escape(asked.text)}</p></div>"


def named(asked: Asked, choice: int) -> str:
    """A choice as a page sends it: with its question, so that a tap on an old one is known for what it is."""
    return f"{asked.story}:{asked.step}:{choice}"


def own_step(asked: Asked) -> Step:
    """The step that a class is asked."""
    return stories()[asked.story].steps[asked.step]


def right_of(asked: Asked) -> int | None:
    """Its right choice, None for one of the teacher's own without it."""
    return asked.right if asked.text else right_choice(own_step(asked))


def right_answer(asked: Asked, before: str = "") -> str:
    """The right choice, of a number with its value, HTML; `before`, HTML, says what somebody chose."""
    own, reports, answers = own_step(asked), recorded(), recorded_answers()
    exact = "" if own.predict.options else f": {judge(own, None, reports, answers)[1]}"
    return f"<p class='said'>{before}<b>The answer:</b> ✓ {escape(asked.choices[right_choice(own)])}{escape(exact)} {chips(own, reports, answers)}</p>"


def answer(asked: Asked, chosen: int | None = None) -> str:
    """What is read once the answer is out: the right choice, then the conclusion of a step or the reason of a question. chosen: by whoever reads it."""
    right = right_of(asked)
    mark = "" if right is None else ": right" if chosen == right else ": not right"
    mine = "" if chosen is None else f"<b>You chose {escape(asked.choices[chosen])}{mark}.</b> "
    if not asked.text:
        found = conclude(own_step(asked), recorded(), recorded_answers())
        return f"<div class='conclusion {'holds' if found.holds else 'fails'}'>{right_answer(asked, mine)}<p>{escape(found.text)}</p></div>"
    said = CLOSED if right is None else f"<b>The answer:</b> ✓ {escape(asked.choices[right])}"
    return f"<div class='conclusion'><p class='said'>{mine}{said}</p>{f'<p>{escape(asked.why)}</p>' if asked.why else ''}</div>"


def counted(asked: Asked, counts: Sequence[int], phones: int = 0) -> str:
    """How many voted, and how many phones are here; for what only once the answer is out, as bars that others see would sway a vote."""
    if asked.revealed:
        return bars(asked.choices, counts, right_of(asked))
    rows = "".join(f"<tr><th scope='row'>{escape(name)}</th></tr>" for name in asked.choices)
    here = f", {many(phones, 'phone')} in the room" if phones else ""
    return f"<table class='votes' aria-label='choices'>{rows}</table><p class='hint'>{many(sum(counts), 'vote')}{here}</p>"


def staged(asked: Asked, counts: Sequence[int], phones: int = 0) -> list[Any]:
    """The teacher's screen: story, step, question, votes, plot, conclusion; the last two once the answer is out."""
    if asked.text:
        said = answer(asked) if asked.revealed else ""
        return [gr.skip(), gr.skip(), shown(asked), counted(asked, counts, phones), gr.Plot(visible=False), said]
    found, own = stories()[asked.story], own_step(asked)
    steps = [(str(i + 1), i) for i in range(len(found.steps))]
    plot = drawn(own, recorded(), recorded_answers())[0] if asked.revealed else None
    picture = gr.Plot(plotted("class", enlarged(plot)), visible=True, elem_classes=tall(plot)) if plot else gr.Plot(visible=False)
    conclusion = concluded(own, right_answer(asked), recorded(), recorded_answers())[2] if asked.revealed else ""
    return [found.name, gr.Radio(choices=steps, value=asked.step), shown(asked), counted(asked, counts, phones), picture, conclusion]


def first_asked(story: Any, step: Any) -> tuple[Asked, list[int]]:
    """(a step as it is first asked, no votes) of whatever a page names."""
    found, at = place(story, step)
    names = choices(found.steps[at].predict)
    return Asked(found.name, at, names), [0] * len(names)
