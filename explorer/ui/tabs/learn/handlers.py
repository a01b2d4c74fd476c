"""Walkthroughs on the page: what a step shows before and after its prediction, and how its runs are measured here. Handlers hold no session's state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

import gradio as gr

from explorer import link
from explorer.chips import chip, of_metrics
from explorer.figures import figures
from explorer.learn.charts import draw, words
from explorer.learn.runs import named_runs, named_tasks, recorded, recorded_answers
from explorer.learn.stories import Predict, Step, Story, conclude, fraction, judge, stories
from explorer.records import Answer, Report
from explorer.table import source
from explorer.ui.frame import plotted, told
from explorer.ui.measuring import run_named
from explorer.ui.panel import RUN_OPTIONS
from explorer.ui.session import COMPARED
from explorer.ui.status import Clock, failure, status, watched
from explorer.ui.tab import Runner, Shell, tabs
from explorer.ui.tabs.learn.closing import closing

Done = dict[str, list[int]]
CLOSE = 0.5  # a score: a number within a factor of about 1.5, a count within one
NO_COUNT = "This is a count: set a whole number."


def checked(done: Any) -> Done:
    """Which steps a browser says are done: {story: [step]}; {} for anything else."""
    if not isinstance(done, dict):
        return {}
    known = stories()
    return {name: [i for i in found if isinstance(i, int)][:20] for name, found in done.items() if name in known and isinstance(found, list)}


def listed(done: Done) -> list[tuple[str, str]]:
    """(label, name) of every story, with how much of it is done."""
    rows = []
    for number, (name, story) in enumerate(stories().items(), 1):
        count, total = len(set(done.get(name, []))), len(story.steps)
        mark = "✓ " if count >= total else f"{count}/{total} " if count else ""
        rows.append((f"{number}. {mark}{story.title} {'★' * story.stars}", name))
    return rows


def place(story: Any, step: Any) -> tuple[Story, int]:
    """The story and step that a page or a link names; the first ones for anything unknown."""
    found = stories().get(story) if isinstance(story, str) else None
    found = found or next(iter(stories().values()))
    at = int(step) if isinstance(step, int | float) and step == step and 0 <= step < len(found.steps) else 0
    return found, at


def ended(story: Any, step: Any) -> bool:
    """Whether a page is at the closing card, which comes after the last step."""
    return step == len(place(story, 0)[0].steps)


def address(story: Story, at: int) -> str:
    """The address of a step, relative to the page."""
    return f"?tab=learn&story={story.name}&step={at + 1}"


def place_of(story: Any, step: Any) -> str:
    """A step as the page names the one whose number was set."""
    return f"{story}:{step}"


def titled(tab: str) -> str:
    """The title of a tab."""
    return next((found.title for found in tabs() if found.name == tab), tab)


def heading(story: Story, at: int) -> str:
    """What a step says, before its prediction."""
    step = story.steps[at]
    links = f"<a href='{escape(address(story, at))}'>link to this step</a> · go on in <a href='?tab={escape(story.see)}'>{escape(titled(story.see))}</a>"
    where = f"<p class='where'>{escape(story.title)} · step {at + 1} of {len(story.steps)} · {links}</p>"
    return f"<div class='story'>{where}<h2>{escape(step.title)}</h2><p>{escape(step.text)}</p></div>"


def widgets(predict: Predict) -> tuple[dict[str, Any], dict[str, Any]]:
    """(properties of the choice, of the slider): one of the two is shown."""
    choices = [(text, i) for i, text in enumerate(predict.options)]
    unit = f" ({predict.unit})" if predict.unit else ""
    middle = round((predict.low * predict.high) ** 0.5 if predict.low > 0 else (predict.low + predict.high) / 2, predict.digits)
    amount = {"minimum": predict.low, "maximum": predict.high, "value": middle, "step": 10.0**-predict.digits, "label": predict.ask + unit}
    return {"choices": choices, "value": None, "label": predict.ask, "visible": bool(choices)}, amount | {"visible": not choices}


def asked(story: Story, at: int) -> list[Any]:
    """Updates of heading, choice and slider."""
    choice, amount = widgets(story.steps[at].predict)
    return [heading(story, at), gr.update(**choice), gr.update(**amount)]


def drawn(step: Step, reports: Mapping[str, Report], answers: Mapping[str, Answer]) -> tuple[dict[str, Any] | None, str]:
    """(plot, the same in words) of a step; None for a step without a figure."""
    if step.figure:
        figure, shown = figures()[step.figure], [reports[name] for name in step.runs]
        return figure.draw(shown, step.layer), figure.summary(shown, step.layer)
    if step.chart:
        return draw(step.chart, step.runs, reports, answers), words(step.chart, step.runs, reports, answers)
    return None, ""


def chips(step: Step, reports: Mapping[str, Report], answers: Mapping[str, Answer]) -> str:
    """The chips of a step's numbers."""
    if step.runs:
        metrics = figures()[step.figure].needs if step.figure else ("kld_mean", "bits_per_weight")
        return of_metrics([reports[name] for name in step.runs], metrics)
    if not step.answers:
        return chip("estimated")
    kept = all(answers[name] is recorded_answers().get(name) for name in step.answers)
    devices = ", ".join({str(answers[name].provenance.get("device") or "weights alone") for name in step.answers})
    return chip("recorded" if kept else "measured", f"the bundled model; {devices}")


def provenance(step: Step, reports: Mapping[str, Report], answers: Mapping[str, Answer]) -> str:
    """Where the numbers of a step come from."""
    if step.answers and not step.runs:
        found = answers[step.answers[0]]
        return f"Task {found.task!r} on the bundled model, {found.provenance.get('device') or 'weights alone'}."
    if not step.runs:
        return "Arithmetic; what is called a limit is estimated, not measured."
    report = reports[step.runs[0]]
    where = f"{source(report)}, {report.provenance.get('device', '')}, {report.provenance.get('date', '')}; {report.provenance.get('text', '')}"
    return f"{configurations(step, reports)}. {where[:1].upper()}{where[1:]}"


def configurations(step: Step, reports: Mapping[str, Report]) -> str:
    """The configurations of a step's runs, short; where the chart has names of its own, each with those that it stands for."""
    shown = (step.chart.get("names") or step.runs) if step.chart.get("kind") == "dots" else step.runs
    named = dict[str, list[str]]()
    for run, name in zip(step.runs, shown, strict=True):
        named.setdefault(reports[run].name, []).append(name)
    return "; ".join(report if shown is step.runs else f"{', '.join(names)}: {report}" for report, names in named.items())


def predicted(step: Step, choice: Any, amount: Any, moved: bool) -> Any:
    """What was predicted: the chosen option, or the number once it was set; None before, as where the slider starts is nobody's prediction."""
    if step.predict.options:
        return choice if isinstance(choice, int) else None
    return amount if moved else None


def revealed(step: Step, prediction: Any, reports: Mapping[str, Report], answers: Mapping[str, Answer]) -> list[Any]:
    """Updates of plot, words and conclusion after a prediction (None: none was made, and none is graded)."""
    score, right, off = judge(step, prediction, reports, answers)
    verdict = "You made no prediction" if prediction is None else "Right" if score == 1 else "Close" if score > CLOSE else "Not so"
    said = f"<p class='said'><b>{verdict}.</b> The answer: {escape(right)} {chips(step, reports, answers)} {escape(off)}</p>"
    return concluded(step, said, reports, answers)


def concluded(step: Step, said: str, reports: Mapping[str, Report], answers: Mapping[str, Answer]) -> list[Any]:
    """Updates of plot, words and conclusion below `said`, HTML."""
    found = conclude(step, reports, answers)
    mark = "also here:" if found.holds else "does not hold on this model"
    body = (
        f"<div class='conclusion {'holds' if found.holds else 'fails'}'>{said}<p><span class='chip'>{mark}</span> {escape(found.text)}</p>"
        f"<p class='beware'><b>Keep in mind.</b> {escape(step.beware)}</p>"
        f"<p class='hint'>{chips(step, reports, answers)} {escape(provenance(step, reports, answers))}</p></div>"
    )
    plot, said_in_words = drawn(step, reports, answers)
    if plot is None:
        return [gr.Plot(visible=False), "", body]
    return [gr.Plot(plotted("step", plot), visible=True), told(said_in_words, chips(step, reports, answers)), body]


def noted(found: Story, at: int, score: float | None, done: Any, right: Any, seen: Any) -> list[Any]:
    """Updates of done, story, right and seen once a step is revealed. score: of the prediction, None for none. The first prediction counts; as right only
    where nothing was revealed before it.
    """
    state, hits, shown = checked(done), checked(right), checked(seen)
    new, blind = at not in state.get(found.name, []), at not in shown.get(found.name, [])
    if new and score is None:
        shown = _with(shown, found.name, at)
    elif new:
        state = _with(state, found.name, at)
        hits = _with(hits, found.name, at) if score == 1 and blind else hits
    return [state, gr.Dropdown(choices=listed(state), value=found.name), hits, shown]


def _with(known: Done, name: str, at: int) -> Done:
    return known | {name: sorted({*known.get(name, []), at})}


class Walk:
    """Handlers of the Learn tab over a runner and the shell."""

    def __init__(self, shell: Shell) -> None:
        self.shell = shell
        self.runner: Runner = shell.runner

    def show(self, story: Any, step: Any, done: Any, right: Any = None, seen: Any = None) -> list[Any]:
        """A step before its prediction: story, step, heading, choice, amount, plot, words, conclusion, status, the buttons of a step (the one for Compare
        where it has runs), no number set. After the last step its closing card. As `done`: right, the steps that were first predicted right; seen, those
        that were revealed before any prediction.
        """
        (found, at), end = place(story, step), ended(story, step)
        steps = [(str(i + 1), i) for i in range(len(found.steps))]
        heads, runs = asked(found, at), found.steps[at].runs
        if end:
            steps, at = [*steps, ("End", len(steps))], len(steps)
            known = [checked(notes).get(found.name, []) for notes in (done, right, seen)]
            heads = [closing(found, *known, self.shell.catalogue, {tab.name: tab.title for tab in tabs()}), *[gr.update(visible=False)] * 2]
        picker, buttons = (
            gr.Dropdown(choices=listed(checked(done)), value=found.name),
            [gr.Button(visible=not end and shown) for shown in (True, True, bool(runs))],
        )
        return [picker, gr.Radio(choices=steps, value=at), *heads, gr.Plot(visible=False), "", "", gr.HTML("", visible=False), *buttons, ""]

    def turn(self, story: Any, step: Any, done: Any, right: Any = None, seen: Any = None, *, by: int) -> list[Any]:
        """What comes after or before a step: another one, the closing card after the last, then the next story."""
        found, at = place(story, step)
        at, names = len(found.steps) if ended(story, step) else at, list(stories())
        if 0 <= at + by <= len(found.steps):
            return self.show(found.name, at + by, done, right, seen)
        other = names[(names.index(found.name) + by) % len(names)]
        return self.show(other, 0 if by > 0 else len(stories()[other].steps) - 1, done, right, seen)

    def reveal(self, story: Any, step: Any, choice: Any, amount: Any, moved: Any, done: Any, right: Any = None, seen: Any = None) -> list[Any]:
        """What was recorded, at once: plot, words, conclusion, done, story, right, seen. moved: the `place_of` the step whose number was set last."""
        found, at = place(story, step)
        own = found.steps[at]
        prediction = predicted(own, choice, amount, moved == place_of(found.name, at))
        if fraction(own, prediction):
            return [gr.skip(), gr.skip(), status(NO_COUNT, "error"), *[gr.skip()] * 4]
        return self._told(found, at, prediction, recorded(), recorded_answers(), done, right, seen)

    def _told(
        self, found: Story, at: int, prediction: Any, reports: Mapping[str, Report], answers: Mapping[str, Answer], done: Any, right: Any, seen: Any
    ) -> list[Any]:
        """What `reveal` gives, of these numbers."""
        own = found.steps[at]
        score = None if prediction is None else judge(own, prediction, reports, answers)[0]
        return [*revealed(own, prediction, reports, answers), *noted(found, at, score, done, right, seen)]

    def measure(
        self, story: Any, step: Any, choice: Any, amount: Any, moved: Any, done: Any = None, right: Any = None, seen: Any = None
    ) -> Iterator[list[Any]]:
        """Runs the step's experiments and tasks here, from the store where it has them: status, then what `reveal` gives."""
        found, at = place(story, step)
        own, clock, kept = found.steps[at], Clock(), [gr.skip()] * 7
        reports, answers = dict[str, Report](), dict[str, Answer]()
        prediction = predicted(own, choice, amount, moved == place_of(found.name, at))
        if fraction(own, prediction):
            yield [gr.HTML(status(NO_COUNT, "error"), visible=True), *kept]
            return
        try:
            for name in own.runs:
                for event in run_named(self.shell, name, clock):
                    if isinstance(event, Report):
                        reports[name] = event
                    else:
                        yield [gr.HTML(event, visible=True), *kept]
            for name in own.answers:
                for event in watched(self.runner.do(*named_tasks()[name]), clock, f"{name}: "):
                    if isinstance(event, Answer):
                        answers[name] = event
                    elif isinstance(event, str):
                        yield [gr.HTML(event, visible=True), *kept]
            # What a predicate compares with, but this step does not run, stays as it was recorded.
            shown = self._told(found, at, prediction, recorded() | reports, recorded_answers() | answers, done, right, seen)
            count = len(reports) + len(answers)
            said = status(f"{count} run{'s' if count != 1 else ''} measured here in {clock.seconds():.1f} s.", "done")
            yield [gr.HTML(said, visible=True), *shown]
        except Exception as error:  # the outermost boundary: whoever pressed the button gets a sentence
            yield [gr.HTML(failure(error), visible=True), *kept]

    def compare(self, story: Any, step: Any, keys: list[str]) -> list[Any]:
        """Puts the step's runs on the page and the last of them into the controls: bar, compared, status, then the controls."""
        (found, at), shelf = place(story, step), self.shell.shelf
        runs = found.steps[at].runs
        if not runs:
            return [gr.skip(), gr.skip(), status("This step runs nothing that could be compared.", "error"), *[gr.skip()] * len(self.shell.controls)]
        reports = shelf.with_baseline(shelf.pick([shelf.add(recorded()[name]) for name in runs]))[: COMPARED + 1]
        compared, _ = self.shell.shared(reports, None)
        here = {r.experiment for r in reports}
        gone = [r.name for r in shelf.pick(keys) if r.experiment not in here]
        left = f" {', '.join(gone)} left the page; Reset shows the recorded results of a new page again." if gone else ""
        said = status(f"In Compare as recorded: {', '.join(r.name for r in reports)}.{left}", "done")
        asked = named_runs()[runs[-1]]
        return [gr.Tabs(selected="compare"), gr.Dropdown(**compared), said, *controls_for(self.shell, asked.method, asked.params, asked.arguments()[1])]


def controls_for(shell: Shell, method: str, params: Mapping[str, Any], options: Mapping[str, Any]) -> list[Any]:
    """Values of the shell's controls for a run of the bundled model: model, method, options, then the fields of every method in the catalogue's order."""
    defaults = {"text": "", **link.OPTIONS}
    values: list[Any] = ["demo", method, *(options.get(name, defaults.get(name, 16)) for name in RUN_OPTIONS)]
    for known in shell.catalogue:
        for field in known["fields"]:
            values.append(params.get(field["name"], field["default"]) if known["name"] == method else gr.skip())
    return values
