"""Failure lab: plant a known bug in a copy of a run, see how each dashboard shows it, and whether the guard names it; or guess it yourself."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from explorer.bugs import BUGS, impossible
from explorer.chips import reachable
from explorer.detectors import BUGS as BUG_DETECTORS
from explorer.detectors import named
from explorer.figures import charts, figures
from explorer.records import Answer, InputError, Report, report_from
from explorer.table import cell
from explorer.ui.asking import with_options
from explorer.ui.cancel import Cancel
from explorer.ui.frame import chart, chart_values, figure_values, frame, heading
from explorer.ui.frame import told as in_words
from explorer.ui.session import is_baseline, keys_of
from explorer.ui.status import Clock, failure, status, watched
from explorer.ui.tab import QUIET, Shell, Tab, View
from explorer.ui.written import samples
from explorer.verdict import findings, verdict
from explorer.vocabulary import terms

GUESS = "?"
USUAL = "bundled"  # text of the task, which is stored under what it is asked: of that one nothing is said
CHOICES = [(bug.title, bug.name) for bug in BUGS.values()]
SEE = {
    "layers": "See whether all layers lose alike, one stands out, or some lose nothing: that alone tells most bugs apart.",
    "weights": "See whether the dequantized weights still lie where the healthy run's do; bugs in scales and zero-points move them, swapped codes do not.",
}
PLOTS = [dataclasses.replace(figures()[name], name=f"lab-{name}", see=see) for name, see in SEE.items()]  # of the healthy run and the one with the bug
RESULTS = 4 + 2 * len(PLOTS) + 2 + 1  # status, guess, report and column; plots with their words, the chart of groups alike; state
ROWS = terms(
    "kld_mean", "kld_p99", "perplexity_delta", "top1_agreement", "clear_flips", "bits_per_weight", "bits_per_weight_resident", "calibration_perplexity"
)
START = "Choose a configuration and a bug, then press Plant: a copy of the run gets the bug, the run itself stays as it is. Or plant a hidden one, and name it."

POSSIBLE = "<details class='possible'><summary>What it may be</summary>{}</details>"


def build(shell: Shell) -> View:
    heading(
        "Failure lab",
        "See how a real bug looks from outside: nothing crashes, and some bugs leave most numbers plausible. The copy with the bug is measured like any run, "
        "on 2,048 tokens of its text, beside the healthy one. Plant one that you know, to learn its marks; then a hidden one, to tell it by them.",
    )
    with gr.Row(elem_id="lab-row"):
        which = gr.Dropdown(**offered(shell.shelf.first()), label="Configuration", elem_id="lab-run", filterable=False, min_width=200, scale=2)
        bug = gr.Dropdown(**possible(shell.shelf.first(), "zero"), label="Bug", elem_id="lab-bug", filterable=False, min_width=200, scale=2)
    shell.linked["failures"] = {"bug": bug}
    with gr.Row():
        plant = gr.Button("Plant", variant="primary", elem_id="plant", min_width=100)
        hide = gr.Button("Plant a hidden one", elem_id="plant-hidden", min_width=210)
        stop = gr.Button("Cancel", variant="stop", min_width=100)
    line = gr.HTML(status(START), padding=False, elem_id="lab-status")
    with gr.Row(visible=False, elem_id="lab-guess") as guessing:
        guess = gr.Radio(CHOICES, label="Which bug is it?", scale=4)
        reveal = gr.Button("Reveal", elem_id="reveal", min_width=100, scale=1)
    shown = gr.HTML(catalogue(), elem_id="lab")
    with gr.Column(visible=False) as below:
        plots = [below, *(item for figure in PLOTS for item in frame(figure, figure.draw([], ""), in_words(figure.summary([], ""))))]
        plots += chart(charts()["group_error"])
    state = gr.Textbox("", visible="hidden", elem_id="lab-state")
    results = [line, guessing, shown, *plots, state]
    stopping = Cancel(status("Cancelled. What was measured is kept."))
    stopping.stops(plant.click, partial(planted, shell), [which, bug, shell.layer], results, concurrency_limit=16)
    stopping.stops(hide.click, lambda key, layer: (yield from planted(shell, key, GUESS, layer)), [which, shell.layer], results, concurrency_limit=16)
    stopping.by(stop, line)
    shell.stops.append((stopping, line))
    hide.click(lambda: None, None, guess, queue=False, **QUIET)
    reveal.click(partial(revealed, shell), [state, guess, shell.layer], results, **QUIET)

    def chosen(key: str, name: str) -> Any:
        return gr.Dropdown(**possible(shell.shelf.pick([key] if key else []), name))

    which.input(chosen, [which, bug], bug, queue=False, **QUIET)

    def render(reports: Sequence[Report], layer: str, told: str, name: str) -> list[Any]:
        drawn = redrawn(shell, told, layer)
        return [gr.Dropdown(**offered(reports)), gr.Dropdown(**possible(reports, name)), *(drawn or [gr.skip()] * len(plots))]

    return View([which, bug, *plots], render, [state, bug])


def offered(reports: Sequence[Report]) -> dict[str, Any]:
    """What the choice of a configuration shows: the quantized ones on the page; a 4-bit one first, where most bugs can happen."""
    quantized = [r for r in reports if not is_baseline(r)]
    choices = [(r.name, key) for r, key in zip(quantized, keys_of(quantized), strict=True)]
    first = next((key for (_, key), r in zip(choices, quantized, strict=True) if r.experiment.spec.get("bits") == 4), choices[0][1] if choices else None)
    return {"choices": choices, "value": first}


def possible(reports: Sequence[Report], chosen: str) -> dict[str, Any]:
    """What the choice of a bug shows for the configuration that `offered` of these reports starts with: the bugs that it can have, and why not the others."""
    first = offered(reports)["value"]
    report = next((r for r, key in zip(reports, keys_of(reports), strict=True) if key == first), None)
    without = impossible(report) if report else {}
    names = [name for name in BUGS if name not in without]
    reasons = {why: ", ".join(BUGS[name].title.lower() for name in without if without[name] == why) for why in without.values()}
    info = "; ".join(f"not {titles}: {why}" for why, titles in reasons.items())
    choices = [(BUGS[name].title, name) for name in names]
    return {"choices": choices, "value": chosen if chosen in names else names[0], "info": f"{report.name} can have these; {info}." if info and report else ""}


def catalogue() -> str:
    """All bugs in words: what the page shows before one is planted. Its marks are folded, for whoever looks for them first."""
    cards = (
        f"<article><h3>{escape(b.title)}</h3><p>{escape(b.story)}</p><details><summary>What gives it away</summary><p>{escape(b.seen)}</p></details></article>"
        for b in BUGS.values()
    )
    return f"<div class='bugs'>{''.join(cards)}</div>"


# Of the results, all but the status: what is left when nothing was planted, so that no earlier result stands below a refusal.
NOTHING = [gr.Row(visible=False), catalogue(), gr.Column(visible=False), *[gr.skip()] * (RESULTS - 5), ""]


def planted(shell: Shell, key: str, bug: str, layer: str) -> Iterator[list[Any]]:
    """Streams the status of the healthy run and of the one with the bug, then shows both. With GUESS a bug is drawn that the method can have."""
    kept = [gr.skip()] * RESULTS
    found = shell.shelf.pick([key] if key else [])
    if not found:
        yield [status("No quantized configuration is on the page; run one first.", "error"), *NOTHING]
        return
    clock, hidden = Clock(), bug == GUESS
    names = random.sample(list(BUGS), len(BUGS)) if hidden else [bug]
    try:
        for name in names:
            reports: list[Report] = []
            try:
                for event in both(shell, arguments(found[0]), name, clock):
                    if isinstance(event, Report):
                        reports.append(event)
                    else:
                        yield [event, *kept[1:]]
            except InputError:
                if name == names[-1]:
                    raise
                continue  # this bug cannot happen to this method: the next one drawn
            told = "a bug is in the second column. Which one?" if hidden else f"{BUGS[name].title.lower()} planted, {clock.seconds():.1f} s."
            state = shell.sealed.put({"asked": arguments(found[0]), "bug": name})
            shown = POSSIBLE.format(catalogue()) + report(reports, "") if hidden else report(reports, name)
            yield [status(f"{found[0].name}: {told}", "done"), gr.Row(visible=hidden), shown, *drawn(reports, layer), state]
            return
    except Exception as error:  # the outermost boundary: whoever pressed Plant gets a sentence
        yield [failure(error), *NOTHING]


def arguments(found: Report) -> dict[str, Any]:
    """What the task is asked about a configuration, without the bug: on the text that it was scored on."""
    return {"model": found.experiment.model.name, **with_options(found, scored=found.experiment.evaluation.source != USUAL)}


def both(shell: Shell, asked: dict[str, Any], bug: str, clock: Clock) -> Iterator[str | Report]:
    """Status lines and two reports: the healthy run of a configuration and the one with a bug."""
    for what, fault in (("healthy run: ", ""), ("with the bug: ", bug)):
        for event in watched(shell.runner.do("failure", asked | {"fault": fault}), clock, what):
            if isinstance(event, Answer):
                yield report_from(event.data["report"])
            elif isinstance(event, str):
                yield event


def stored(shell: Shell, state: dict[str, Any]) -> list[Report]:
    """The healthy report and the one with the bug, from the store; [] when they would have to be measured again."""
    reports = []
    for fault in ("", state["bug"]):
        events = shell.runner.do("failure", state["asked"] | {"fault": fault})
        first = next(events)
        events.close()
        if isinstance(first, Answer):
            reports.append(report_from(first.data["report"]))
    return reports if len(reports) == 2 else []


def revealed(shell: Shell, told: str, guess: str | None, layer: str) -> list[Any]:
    """The bug's name, its story, what the guard says, and whether the guess was right."""
    state = shell.sealed.open(told)
    reports = stored(shell, state) if state else []
    if not reports:
        gone = "What was planted is kept here no longer; plant it again." if told else "Plant a bug first."
        return [status(gone, "error"), *[gr.skip()] * (RESULTS - 1)]
    right = "Right" if guess == state["bug"] else "No guess" if not guess else f"Not {BUGS[guess].title.lower()}"
    words = f"{right}: it is {BUGS[state['bug']].title.lower()}."
    return [status(words, "done" if guess == state["bug"] else "error"), gr.Row(visible=False), report(reports, state["bug"]), *drawn(reports, layer), told]


def redrawn(shell: Shell, told: str, layer: str) -> list[Any]:
    """The plots for another layer, [] when nothing is planted."""
    state = shell.sealed.open(told)
    reports = stored(shell, state) if state else []
    return drawn(reports, layer) if reports else []


def drawn(reports: Sequence[Report], layer: str) -> list[Any]:
    """New values of all plots and their words."""
    values = [
        gr.Column(visible=True),
        *(value for figure in PLOTS for value in figure_values(figure, reports, layer)),
    ]
    runs = [{"label": r.name, "errors": (r.value("integrity", layer) or {}).get("group_error", [])} for r in reports]
    return values + chart_values(charts()["group_error"], {"layer": layer, "runs": runs})


def report(reports: Sequence[Report], bug: str) -> str:
    """Both runs side by side in numbers and text, and what the guard says of the second; the bug's own detectors only once it is named."""
    healthy, broken = reports
    found = [verdict(r, None) for r in reports]
    heads = "".join(f"<th scope='col'><span class='swatch s{i}'></span>{escape(r.name)}</th>" for i, r in enumerate(reports))
    present = [row for row in ROWS if any(r.find(row.metric) for r in reports)]
    lines = (f"<tr><th scope='row'>{row.title} <small>{row.shown}</small></th>{''.join(cell(row, r, None, False) for r in reports)}</tr>" for row in present)
    body = f"<thead><tr><th scope='col'>2,048 tokens</th>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>"
    table = f"<div class='scroll' tabindex='0'><table class='compare'>{reachable(body)}</table></div>"
    table += f"<p class='hint'>Scored on: {escape(str(healthy.provenance.get('text', '')))}.</p>"
    told = ""
    if bug:
        says = named(found[1])
        hit = "The guard names it." if says == bug else f"The guard takes it for {escape(says)}." if says else "The guard does not name it here."
        told = f"<div class='told'><h3>{escape(BUGS[bug].title)}</h3><p>{escape(BUGS[bug].story)}</p><p><b>{hit}</b> {escape(BUGS[bug].seen)}</p></div>"
    own = {detector.__name__ for detector in BUG_DETECTORS}
    seen = found[1] if bug else [f for f in found[1] if f.name not in own]
    note = "" if bug else f"<p class='hint'>{len(found[1]) - len(seen)} more checks look for bugs by name; they are shown once it is named.</p>"
    lists = f"<h3>What the guard finds with the bug</h3>{findings(seen)}{note}"
    clean = named(found[0])
    lists += f"<p class='hint'>On the healthy run it {'names no bug' if not clean else f'names {escape(clean)}: a false alarm'}.</p>"
    return f"{told}{table}{lists}{samples([healthy, broken], healthy)}"


TAB = Tab("failures", "Failure lab", build, order=55)
