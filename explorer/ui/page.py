"""What happens on the page: handlers as plain functions and generators over a runner. They hold nothing of a session."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from explorer.findings import busy
from explorer.link import WHOLE, query
from explorer.recorded import survey
from explorer.records import Event, InputError, Partial, Progress, QuantSpec, Report
from explorer.table import dated
from explorer.ui.controls import Control, parameters
from explorer.ui.going import Runs
from explorer.ui.pace import Pace
from explorer.ui.session import disturbed, is_baseline, keys_of, spec_of
from explorer.ui.tab import Shell, picked
from explorer.wide import layer_names

OPTIONS = ("evaluation", "text", "calibration", "sequences", "seed", "kv_bits", "head_bits")  # of a run, beside model, method and its parameters

STALLED = 1.5  # times what a step of a stage usually takes, from which on nothing says how long the rest takes
GROUPED = re.compile(r"(.+?) \d+-bit g\d+")  # a name that says bits and group
AGAIN = "The machine was busy while it was timed: Run measures it again."


def status(text: str, kind: str = "", share: float | None = None, chips: str = "", stage: str = "") -> str:
    """The status line; `text` is escaped here, `chips` (of explorer.chips) are HTML. stage: of work that goes on. assets/page.js has lines read aloud: what
    changes at once, work that goes on by its stages.
    """
    bar = f"<progress max='1' value='{share:.3f}' aria-label='progress'></progress>" if share is not None else ""
    return f"<div class='status {kind}' data-stage='{escape(stage, quote=True)}'>{bar}<span>{chips} {escape(text)}</span></div>"


class Clock:
    """Turns progress into status lines, at most five a second, with the time left once it can be told: to the end of the run where the last one of its
    kind says it, else in the stage, and only while that goes on: work that stalls would add to it. begun: when each stage of the run began. note: a
    sentence that every line ends with.
    """

    def __init__(self) -> None:
        self.started = self._stage_started = self._moved = time.monotonic()
        self._stage, self._shown, self._done, self.note = "", 0.0, 0, ""
        self.follow({})

    def follow(self, known: Mapping[str, float]) -> None:
        """A run begins. known: seconds from each stage to the end, as `Pace` has them."""
        self._known, self.begun = known, dict[str, float]()

    def seconds(self) -> float:
        """Since the run was pressed."""
        return time.monotonic() - self.started

    def line(self, event: Progress, what: str = "") -> str | None:
        """The status line for an event of `what`, or None when it is too soon for another."""
        now, stage = time.monotonic(), self._stage if event.stage == "waiting" and event.total > 1 else event.stage  # a sweep that waits is still one
        if stage == self._stage and now - self._shown < 0.2:
            return None
        self._stage_started = now if stage != self._stage else self._stage_started
        self._moved = now if (stage, event.done) != (self._stage, self._done) else self._moved
        self.begun.setdefault(event.stage, now)
        self._stage, self._shown, self._done = stage, now, event.done
        share, spent, stalled = event.done / max(1, event.total), now - self._stage_started, now - self._moved
        took = spent - stalled  # for what is done
        told = share > 0.1 and took > 1 and stalled < max(1.0, STALLED * took / event.done)
        left = f", about {max(0.0, took * (1 - share) / share - stalled):.0f} s left in this stage" if told else ""
        if (rest := self._known.get(event.stage, 0.0) - spent) > 0.5:
            left = f", about {rest:.0f} s left, by the last such run"
        count = f" {event.done} of {event.total}" if event.total > 1 else ""
        note = f". {self.note}" if self.note else ""
        return status(f"{what}{event.stage}{count}: {event.detail} ({now - self.started:.0f} s{left}){note}", "busy", share, stage=event.stage)


def many(number: int, thing: str) -> str:
    """A number with its noun: 1 user, 13 users."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def runs_of(title: str, method: str, params: dict[str, Any], options: dict[str, Any], on: str = "") -> list[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """(what the status line says first, method, params, options) of each run that is asked for at once: the baseline, then the configuration of this
    title, unless that is the baseline. on: words after a name.
    """
    if method == "none" and options == options | WHOLE:
        return [(f"{title}{on}: ", method, params, options)]
    first = f"1 of 2: the 16-bit baseline, once on this machine; then {title}{on}: "
    return [(first, "none", {}, options | WHOLE), (f"2 of 2: {title}{on}: ", method, params, options)]


def failure(error: Exception) -> str:
    """The status line for what went wrong: a person's own input in one sentence, anything else with what to do; the log gets the rest."""
    if isinstance(error, InputError):
        return status(str(error), "error")
    logging.getLogger(__name__).error("a run failed", exc_info=error)
    kept = "What was measured before is kept; try a smaller model or other parameters."
    return status(f"The run failed ({type(error).__name__}: {str(error)[:200]}). {kept}", "error")


def watched(events: Iterator[Event], clock: Clock, what: str = "") -> Iterator[str | Event]:
    """Events of a run or a task: Progress as status lines, thinned out, everything else as it is. Closes the events at the end."""
    try:
        for event in events:
            if not isinstance(event, Progress):
                yield event
            elif line := clock.line(event, what):
                yield line
    finally:
        events.close()


class Page:
    """Handlers of one app over its shell. `fields` are the parameters' controls, in the order of the shell's controls; `runs` knows who runs what."""

    def __init__(self, shell: Shell) -> None:
        self.shell, self.fields, self.runs, self.pace = shell, list[Control](), Runs(), Pace()

    def asked(self, values: Sequence[Any]) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
        """(model, method, params, options) from the values of the shell's controls: model, method, the OPTIONS, then the fields."""
        model, method, *rest = values
        return str(model or ""), str(method), parameters(method, self.fields, tuple(rest[len(OPTIONS) :])), dict(zip(OPTIONS, rest, strict=False))

    def view(self, reports: Sequence[Report], layer: str | None, active: str, values: Sequence[Any]) -> list[Any]:
        """Updates of compared, layer and the outputs of all tabs."""
        compared, picker = self.shell.shared(reports, layer)
        return [gr.Dropdown(**compared), gr.Dropdown(**picker), *self.shell.drawn(active, reports, picker["value"] or "", values)]

    def run(self, keys: list[str], layer: str | None, active: str, *values: Any) -> Iterator[list[Any]]:
        """Streams the status and, as it becomes whole, what is measured; shows the result at the end. Bad input and failures are a sentence, and what is on
        screen stays.

        The baseline runs first, so that the differences are to the same model, text and device. While what was recorded of the configuration is measured
        here, the recording is shown. values: the shell's controls, then its inputs.
        """
        controls = len(self.shell.controls)
        yield from self.measured(keys, layer, active, self.asked(values[:controls]), values[controls:])

    def measured(
        self, keys: list[str], layer: str | None, active: str, wanted: tuple[str, str, dict[str, Any], dict[str, Any]], own: Sequence[Any], again: bool = False
    ) -> Iterator[list[Any]]:
        """`run` of what is wanted, as `asked` gives it. own: the shell's inputs. again: whether it goes on with a run that ended with its page, and says so."""
        model, method, params, options = wanted
        same = [gr.skip()] * (2 + len(self.shell.outputs()))
        clock, shown, sentence, left = Clock(), self.shell.shelf.pick(keys), "", ""
        ready = self.ready(shown, model, method, params, options)
        title = self.title(method, spec_of(method, params, options))
        asked = runs_of(title, method, params, options, ", going on after a reload" if again else "")
        try:
            with self.runs.turn(active, layer, query("", "", model, spec_of(method, params, options), options, [], self.shell.catalogue)) as turn:
                turn.coming += [ready] if ready is not None else []
                if turn.ahead():
                    yield [status(f"{title}: waits for your run before it; Cancel stops both.", "busy"), *same]
                for what, name, chosen, given in asked:
                    kind = (model, name, given["evaluation"], given["kv_bits"], given["head_bits"])
                    clock.follow(self.pace.of(kind) if (name, given) == (method, options) else {})  # of the baseline alone it would be taken for all
                    anew = {"again": True} if chosen is params and disturbed(shown, model, spec_of(name, chosen, given), given) else {}
                    for event in watched(self.shell.runner.run(model, name, chosen, **given, **anew), clock, what):
                        if isinstance(event, Report):
                            shown, note = self.placed(shown, [*turn.before, event])
                            turn.done(event)
                            self.pace.note(kind, clock.begun)
                            left = clock.note = note or left
                            sentence = f"{event.name}: {dated(event)}, {clock.seconds():.1f} s. {left}"
                            sentence += f" {AGAIN}" if busy(event) else ""
                        elif isinstance(event, Partial):
                            turn.expect(event.report, shown)
                            self.shell.shelf.add(event.report)  # for Cancel, which may come before the next drawing
                        elif isinstance(event, str) and not turn.ahead():  # the line on the page is that of the run before
                            due = turn.due()
                            shown, note = self.placed(shown, due)
                            left = clock.note = note or left
                            yield [event, *(self.view(shown, turn.layer, turn.tab, own) if due else same)]
                shown = self.shell.shelf.stopped(shown) if turn.alone() else shown
            yield [status(f"{sentence} It went on after a reload." if again else sentence, "done"), *self.view(shown, turn.layer, turn.tab, own)]
        except Exception as error:  # the outermost boundary: whoever pressed Run gets a sentence
            shown, _ = self.placed(shown, [r for r in turn.coming if r.missing])
            yield [failure(error), *self.left(shown, turn.layer, turn.tab, own)]

    def placed(self, shown: list[Report], new: Sequence[Report]) -> tuple[list[Report], str]:
        """(the page with the new reports on it, what left it in a sentence or ""); they go onto the shelf."""
        left = ""
        for report in new:
            [kept] = self.shell.shelf.pick([self.shell.shelf.add(report)])
            shown, note = self.shell.shelf.arrange(shown, kept)
            left = note or left
        return shown, left

    def left(self, shown: Sequence[Report], layer: str | None, active: str, values: Sequence[Any], anyway: bool = False) -> list[Any]:
        """Updates of compared, layer and the outputs of all tabs for a page on which nothing is measured any more: none where all reports are whole, unless
        they are drawn anyway.
        """
        if not (anyway or any(report.missing for report in shown)):
            return [gr.skip()] * (2 + len(self.shell.outputs()))
        return self.view(self.shell.shelf.stopped(shown), layer, active, values)

    def cancelled(self, keys: list[str], layer: str | None, active: str, *values: Any) -> list[Any]:
        """What stays on the page after Cancel: what its runs have measured, drawn or not."""
        shown = self.shell.shelf.pick(keys)
        after, _ = self.placed(shown, self.shell.shelf.pick(self.runs.found()))
        return self.left(after, layer, active, values, anyway=keys_of(after) != keys_of(shown))

    def reports(self, keys: list[str]) -> list[Report]:
        """The reports of a page; those that are not whole say that they were stopped, unless its session has a run going."""
        found = self.shell.shelf.pick(keys)
        return found if self.runs.on() else self.shell.shelf.stopped(found)

    def title(self, method: str, spec: QuantSpec) -> str:
        """How the configuration of a spec is called before it is measured: as in the survey, or like one of its method there, else by its method."""
        alike = [r for r in [*self.shell.shelf.first(), *survey().values()] if r.experiment.spec.method == method]
        named, (bits, group) = next((r.name for r in alike if r.experiment.spec == spec), ""), map(spec.get, ("bits", "group_size"))
        short = next((found[1] for r in alike if (found := GROUPED.match(r.name))), "") if bits and group else ""
        title = next((m["title"] for m in self.shell.catalogue if m["name"] == method), method)
        return named or (f"{short} {bits}-bit g{group}" if short else title)

    def ready(self, shown: Sequence[Report], model: str, method: str, params: dict[str, Any], options: dict[str, Any]) -> Report | None:
        """The recording of a configuration that is about to be measured; None without one, or where the configuration is on the page already."""
        found = self.shell.shelf.recorded(model.strip(), spec_of(method, params, options), options)
        return None if found is None or any(r.experiment == found.experiment for r in shown) else found

    def choose(self, keys: list[str], layer: str | None, active: str, *values: Any) -> list[Any]:
        """Shows the configurations that are left after one was taken off; the baseline stays."""
        shelf = self.shell.shelf
        left = self.reports(keys)
        shown = shelf.with_baseline(left) or shelf.first()[:1]
        back = "Reset brings the recorded results back; what was measured here is stored, so that running it again is instant."
        stays = "The 16-bit baseline stays: what the others cost is their difference to it."
        return [status(f"Off the page. {back}" if any(map(is_baseline, left)) else f"{stays} {back}"), *self.view(shown, layer, active, values)]

    def cleared(self, mark: str, layer: str | None, active: str, *values: Any) -> list[Any]:
        """`choose` after all configurations were taken off at once; mark: what the page's script set then, "" before."""
        return self.choose([], layer, active, *values) if mark else [gr.skip()] * (3 + len(self.shell.outputs()))

    def reset(self, layer: str | None, active: str, *values: Any) -> list[Any]:
        """Back to the configurations a new page starts with."""
        return [status("Showing the recorded results of the bundled model."), *self.view(self.shell.shelf.first(), layer, active, values)]

    def whose(self, model: str | None, keys: list[str]) -> Any:
        """The line that says whose results the page shows, while the chosen model is another one."""
        reports, asked = self.shell.shelf.pick(keys), str(model or "").strip()
        shown = reports[0].experiment.model.name if reports else ""
        if not asked or not shown or shown in (asked, asked.split("@")[0], str(Path(asked).expanduser())):
            return gr.HTML("", visible=False)
        return gr.HTML(status(f"These are results of {shown}; Run measures {asked}."), visible=True)

    def picked(self, choice: str, keys: list[str], active: str, *values: Any) -> list[Any]:
        """The layer that was clicked in a figure, and the outputs of all tabs for it; nothing for a layer that the reports do not have."""
        reports, name = self.reports(keys), picked(choice)
        if name not in layer_names(reports):
            return [gr.skip()] * (1 + len(self.shell.outputs()))
        self.runs.sees(layer=name)
        return [gr.update(value=name), *self.shell.drawn(active, reports, name, values)]

    def opened(self, name: str, keys: list[str], layer: str | None, *values: Any) -> list[Any]:
        """The name of the tab that was opened, and its outputs."""
        self.runs.sees(tab=name)
        return [name, *self.shell.views[name].drawn(self.reports(keys), layer or "", *values)]
