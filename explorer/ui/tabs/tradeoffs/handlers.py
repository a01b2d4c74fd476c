"""Handlers of the Trade-offs tab: a sweep that fills a figure, points that are put into Compare, two configurations told apart. All of one model and text."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from html import escape
from typing import Any

import gradio as gr

from explorer.figures import difference, finite, tradeoffs
from explorer.findings import one_rate
from explorer.grid import CHANNEL, Configuration, grid, left_out
from explorer.recorded import survey
from explorer.records import Answer, InputError, Measurement, Report, key_of
from explorer.table import model_of, source
from explorer.ui.asking import configuration, data_of
from explorer.ui.frame import chart_values
from explorer.ui.panel import RUN_OPTIONS
from explorer.ui.session import ground, is_baseline, is_recorded, keys_of
from explorer.ui.status import Clock, failure, status, watched
from explorer.ui.tab import Shell, picked, settings
from explorer.ui.tabs.tradeoffs.points_table import START, points_table, report_card

OVERHEAD = 3.5  # seconds of one report of the bundled model beside quantizing it, measured by `make timings`


def ground_key(report: Report) -> str:
    """One text for the model and the evaluation text of a report."""
    return key_of(*ground(report))


@dataclass(frozen=True)
class TabState:
    """What a page holds of the tab, as JSON text: the keys of its own points, the ground whose points are shown, and the ground last seen in Compare."""

    keys: tuple[str, ...] = ()
    shown: str = ""
    seen: str = ""

    @classmethod
    def of(cls, text: str) -> TabState:
        """From a page's text; the parts that are none are passed over."""
        found = settings(text)
        keys, *grounds = found.get("keys"), found.get("shown"), found.get("seen")
        return cls(tuple(key for key in keys if isinstance(key, str)) if isinstance(keys, list) else (), *(g if isinstance(g, str) else "" for g in grounds))

    def text(self) -> str:
        """The JSON text."""
        return json.dumps({"keys": list(self.keys), "shown": self.shown, "seen": self.seen})

    def after(self, compared: Sequence[Report]) -> TabState:
        """With what Compare shows: its model's points are shown from when it comes to Compare until another model is swept. What no survey holds is a point."""
        whole = keys_of(r for r in compared if not r.missing)
        new = [key for key in whole if key not in self.keys and key not in survey()]
        now = ground_key(compared[0]) if compared else self.seen
        return TabState((*self.keys, *new), now if now != self.seen else self.shown, now)


class Points:
    """What the tab does. A page holds its points as the text of a TabState; the reports are on the shelf."""

    def __init__(self, shell: Shell) -> None:
        self.shell = shell

    def reports(self, held: str) -> list[Report]:
        """The recorded survey and a page's own reports, which take the recorded one's place: those of the model and text that are shown."""
        own = TabState.of(held)
        mine = [report for key in own.keys for report in self.shell.shelf.pick([key])]
        here = {report.experiment for report in mine}
        every = [*(r for r in survey().values() if r.experiment not in here), *mine]
        return [r for r in every if ground_key(r) == (own.shown or ground_key(every[0]))]

    def data(self, held: str, view: str, quality: str) -> dict[str, Any]:
        """The data of the trade-offs chart."""
        reports = one_rate(self.reports(held))
        points = [tradeoffs.point_of(r, k, source(r)) for k, r in zip(keys_of(reports), reports, strict=True)]
        return {"points": points, "view": view, "quality": quality, "model": reports[0].experiment.model.name if reports else "this model"}

    def drawn(self, held: str, view: str, quality: str) -> list[Any]:
        """[chart, words, heading]."""
        return chart_values(tradeoffs.CHART, self.data(held, view, quality))

    def where(self, held: str) -> str:
        """Which model's points are shown and where they come from, as HTML."""
        reports = self.reports(held)
        if all(map(is_baseline, reports)):
            return f"<p class='see'>{escape(tradeoffs.nothing(self.data(held, 'bits', 'kld_mean')))}</p>"
        recorded = sum(map(is_recorded, reports))
        counted = " and ".join(f"{count} {how}" for count, how in ((recorded, "recorded"), (len(reports) - recorded, "of this page")) if count)
        return f"<p class='see'>Points of <b>{escape(model_of(reports[0]))}</b>: {counted}, on the {escape(reports[0].experiment.evaluation.source)} text.</p>"

    def table(self, held: str) -> str:
        """The table of all points under a heading that names their model."""
        data = self.data(held, "bits", "kld_mean")
        see = "A name opens the point's report, as a click on the point in the figure does."
        return f"<h2 class='figure'>All points of {escape(data['model'])}</h2><p class='see'>{see}</p>{points_table(data['points'])}"

    def filled(self, held: str, view: str, quality: str) -> list[Any]:
        """[where, chart, words, heading, table, held]: all that shows the points."""
        return [self.where(held), *self.drawn(held, view, quality), self.table(held), held]

    def arrived(self, held: str, view: str, quality: str, compared: Sequence[Report]) -> list[Any]:
        """[*filled, card] after Compare changed; nothing new where its model and points are shown already."""
        old, new = TabState.of(held), TabState.of(held).after(compared)
        if new == old:
            return [gr.skip()] * 7
        return [*self.filled(new.text(), view, quality), START if new.shown != old.shown else gr.skip()]

    def configurations(self, methods: list[str], bits: list[int], groups: list[int]) -> list[Configuration]:
        """The grid of these choices. Raises InputError."""
        return grid(self.shell.catalogue, methods or [], [int(b) for b in bits or []], [int(g) for g in groups or []])

    def count(self, model: str, methods: list[str], bits: list[int], groups: list[int]) -> str:
        """How many configurations these choices are and about how long they take, as a status line."""
        try:
            asked = self.configurations(methods, bits, groups)
        except InputError as error:
            return status(str(error), "error")
        text = f"{len(asked) - 1} configurations of {model} and the 16-bit baseline"
        left = left_out(self.shell.catalogue, methods or [], [int(b) for b in bits or []], [int(g) for g in groups or []])
        left = f" {left[:1].upper()}{left[1:]}." if left else ""
        if model != "demo":
            return status(f"{text}; the time is told once the first are done. What is stored already takes no time.{left}")
        seconds = sum(OVERHEAD + quantizing(one.method) for one in asked)
        time = f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
        return status(f"{text}, about {time} on a quiet machine like the recorded one (estimated).{left}")

    def sweep(
        self, model: str, methods: list[str], bits: list[int], groups: list[int], held: str, view: str, quality: str, *options: Any, what: str = ""
    ) -> Iterator[list[Any]]:
        """Streams [status, *filled]; every report is drawn as it comes. options: the values of the RUN_OPTIONS. what: words before each progress line."""
        clock, own, same = Clock(), TabState.of(held), [gr.skip()] * 6
        try:
            asked = {"model": model, "methods": methods or [], "bits": [int(b) for b in bits or []], "groups": [int(g) for g in groups or []]}
            asked |= {"options": dict(zip(RUN_OPTIONS, options, strict=True))}
            self.configurations(methods, bits, groups)
            for event in watched(self.shell.runner.do("sweep", asked), clock, what):
                if isinstance(event, str):
                    yield [event, *same]
                elif isinstance(event, Report):
                    new = self.shell.shelf.add(event)
                    own = replace(own, keys=(*(key for key in own.keys if key != new), new), shown=ground_key(event))
                    yield [gr.skip(), *self.filled(own.text(), view, quality)]
                elif isinstance(event, Answer):
                    left = "".join(f" {name} could not run: {why}" for name, why in list(event.data["failed"].items())[:3])
                    sentence = f"{event.data['done']} configurations in {clock.seconds():.0f} s. Click a point to open its report.{left}"
                    yield [status(sentence, "done"), *same]
        except Exception as error:  # the outermost boundary: whoever pressed gets a sentence
            yield [failure(error), *same]

    def find(self, choice: str, held: str, keys: Sequence[str]) -> Report | None:
        """The report of a point or of the page that was clicked."""
        key = picked(choice)
        return next((r for r in [*self.reports(held), *self.shell.shelf.pick(keys), *self.shell.shelf.pick([key])] if r.key == key), None)

    def opened(self, choice: str, held: str, keys: list[str]) -> Any:
        """The report of a point that was clicked, as HTML."""
        found = self.find(choice, held, keys)
        if found is None:
            return gr.skip()
        points = [*self.shell.shelf.pick(keys), *self.reports(held)]
        alike = [r for r in points if is_baseline(r) and ground(r) == ground(found)]
        same = [r for r in alike if r.provenance.get("device") == found.provenance.get("device")] or alike
        base = next(iter(same), None)
        for report in filter(None, (base, found)):
            self.shell.shelf.add(report)  # so that its buttons are heard
        return report_card(found, base, points)

    def compared(self, choice: str, held: str, keys: list[str], layer: str | None) -> list[Any]:
        """[status, compared, layer] after a point's report was put into Compare."""
        found = self.find(choice, held, keys)
        if found is None:
            return [gr.skip()] * 3
        shelf = self.shell.shelf
        [found] = shelf.pick([shelf.add(found)])
        shown, note = shelf.arrange(shelf.pick(keys), found)
        compared, picker = self.shell.shared(shelf.with_baseline(shown), layer)
        return [status(f"{found.name} is in Compare. {note}", "done"), gr.Dropdown(**compared), gr.Dropdown(**picker)]

    def names(self, held: str, keys: list[str]) -> list[tuple[str, str]]:
        """(name, key) of the configurations that can be told apart: those of the page and its points."""
        shown = [*self.shell.shelf.pick(keys), *self.reports(held)]
        return list({key: (r.name, key) for key, r in zip(keys_of(shown), shown, strict=True)}.values())

    def apart(self, first: str, second: str, held: str, keys: list[str]) -> Iterator[list[Any]]:
        """Streams [status, chart, words] of the paired comparison of two configurations."""
        clock, looks, same = Clock(), list[dict[str, Any]](), [gr.skip()] * 2
        known = {r.key: r for r in [*self.shell.shelf.pick(keys), *self.reports(held)]}
        try:
            if first not in known or second not in known:
                raise InputError("Choose two configurations of those on the page.")
            one, two = known[first], known[second]
            if ground(one) != ground(two):
                raise InputError("The two are of different models or texts, so no token can be paired.")
            asked = {"model": one.experiment.model.name, "first": configuration(one, scored=True), "second": configuration(two, scored=True)}
            for event in watched(self.shell.runner.do("distinguish", asked), clock):
                if isinstance(event, str):
                    yield [event, *same]
                elif isinstance(event, Measurement):
                    looks.append(event.value)
                    yield [gr.skip(), *chart_values(difference.CHART, {"looks": looks, "margin": 0.5, "names": [one.name, two.name]})]
                elif isinstance(event, Answer):
                    chart = chart_values(difference.CHART, data_of(event) | {"names": [one.name, two.name]})
                    yield [status(f"Compared in {clock.seconds():.0f} s. {difference.summary(event.data | {'names': [one.name, two.name]})}", "done"), *chart]
        except Exception as error:  # the outermost boundary: whoever pressed gets a sentence
            yield [failure(error), *same]


@lru_cache(64)  # a visitor's link may name any method
def quantizing(method: str) -> float:
    """Seconds that quantizing the bundled model takes, from the survey; 0 for an unknown method."""
    values = [r.value("quantize_seconds") for r in survey().values() if r.experiment.spec.method == method]
    return statistics.median(v for v in values if finite(v)) if any(map(finite, values)) else 0.0


def group_choices() -> list[tuple[str, int]]:
    """Group sizes as the sweep offers them."""
    return [("32", 32), ("64", 64), ("128", 128), ("per channel", CHANNEL)]


def method_choices(catalogue: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Methods that a sweep offers: all but the baseline, which is always there, and the one whose rules are text."""
    return [(escape(entry["title"].split(" (")[0]), entry["name"]) for entry in catalogue if entry["name"] not in ("none", "mixed")]
