"""Page: the handlers of the panel and of what all tabs share, such as Run and Compare, over a runner. They hold nothing of a session."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from explorer.findings import busy
from explorer.link import WHOLE, query
from explorer.recorded import survey
from explorer.records import Partial, QuantSpec, Report
from explorer.table import dated
from explorer.ui.controls import parameters
from explorer.ui.going import Runs
from explorer.ui.pace import Pace
from explorer.ui.panel import RUN_OPTIONS
from explorer.ui.session import disturbed, is_baseline, keys_of, spec_of
from explorer.ui.status import Clock, failure, status, watched
from explorer.ui.tab import Shell, picked
from explorer.wide import layer_names

GROUPED = re.compile(r"(.+?) \d+-bit g\d+")  # a name that says bits and group
AGAIN = "The machine was busy while it was timed: Run measures it again."


def runs_of(title: str, method: str, params: dict[str, Any], options: dict[str, Any], on: str = "") -> list[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """(what the status line says first, method, params, options) of each run that is asked for at once: the baseline, then the configuration of this
    title, unless that is the baseline. on: words after a name.
    """
    if method == "none" and options == options | WHOLE:
        return [(f"{title}{on}: ", method, params, options)]
    first = f"1 of 2: the 16-bit baseline, once on this machine; then {title}{on}: "
    return [(first, "none", {}, options | WHOLE), (f"2 of 2: {title}{on}: ", method, params, options)]


class Page:
    """Handlers of one app over its shell. `runs` knows who runs what."""

    def __init__(self, shell: Shell) -> None:
        self.shell, self.runs, self.pace = shell, Runs(), Pace()

    def asked(self, values: Sequence[Any]) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
        """(model, method, params, options) from the values of the shell's controls: model, method, the RUN_OPTIONS, then the fields."""
        model, method, *rest = values
        options = dict(zip(RUN_OPTIONS, rest, strict=False))
        return str(model or ""), str(method), parameters(method, self.shell.panel.fields, tuple(rest[len(options) :])), options

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
            with self.runs.join(active, layer, query("", "", model, spec_of(method, params, options), options, [], self.shell.catalogue)) as run:
                run.coming += [ready] if ready is not None else []
                if run.ahead():
                    yield [status(f"{title}: waits for your run before it; Cancel stops both.", "busy"), *same]
                for what, name, chosen, given in asked:
                    kind = (model, name, given["evaluation"], given["kv_bits"], given["head_bits"])
                    clock.follow(self.pace.of(kind) if (name, given) == (method, options) else {})  # of the baseline alone it would be taken for all
                    anew = {"again": True} if chosen is params and disturbed(shown, model, spec_of(name, chosen, given), given) else {}
                    for event in watched(self.shell.runner.run(model, name, chosen, **given, **anew), clock, what):
                        if isinstance(event, Report):
                            shown, note = self.placed(shown, [*run.before, event])
                            run.done(event)
                            self.pace.note(kind, clock.begun)
                            left = clock.note = note or left
                            sentence = f"{event.name}: {dated(event)}, {clock.seconds():.1f} s. {left}"
                            sentence += f" {AGAIN}" if busy(event) else ""
                        elif isinstance(event, Partial):
                            run.expect(event.report, shown)
                            self.shell.shelf.add(event.report)  # for Cancel, which may come before the next drawing
                        elif isinstance(event, str) and not run.ahead():  # the line on the page is that of the run before
                            due = run.due()
                            shown, note = self.placed(shown, due)
                            left = clock.note = note or left
                            yield [event, *(self.view(shown, run.layer, run.tab, own) if due else same)]
                shown = self.shell.shelf.stopped(shown) if run.alone() else shown
            yield [status(f"{sentence} It went on after a reload." if again else sentence, "done"), *self.view(shown, run.layer, run.tab, own)]
        except Exception as error:  # the outermost boundary: whoever pressed Run gets a sentence
            shown, _ = self.placed(shown, [r for r in run.coming if r.missing])
            yield [failure(error), *self.left(shown, run.layer, run.tab, own)]

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
