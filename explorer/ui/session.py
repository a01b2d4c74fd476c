"""What is on a page: reports kept on the server by key, each at a place that decides its colour. A page holds only keys and places, so it needs no server
state.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from explorer.figures import places
from explorer.findings import busy
from explorer.recorded import survey
from explorer.records import QuantSpec, Report, key_of
from explorer.ui.visitor import owner, session

COMPARED, FULL = 4, "four"  # configurations beside the baseline
REMEMBERED = 50  # runs of a visitor, of which a page shows COMPARED
PLACES = tuple(map(str, range(COMPARED + 1)))  # on a page, as keys say them: 0 is the baseline's
TEXTS = [("bundled", "bundled"), ("yours", "pasted"), ("WikiText-2", "wikitext2"), ("C4", "c4")]  # as the page names them
STANDING = 100  # copies of reports at another place than their position


def read_by(report: Report) -> str:
    """The login on the hub that may see a report: the one of the visitor whose request this is, "" for all where no login was needed to measure it."""
    model = report.experiment.model
    return "" if is_recorded(report) or model.name == "demo" or model.random else owner()


class Shelf:
    """Reports by login and key, the least recently used dropped beyond `size`. A key can be worked out by whoever knows the experiment, so it opens only
    what was measured with this visitor's login, or with none. Seeds stay, and what was recorded gives way only to a fuller recording: what another
    visitor measured has another key. Of the last visitors, by session, it knows in what order they ran what.
    """

    def __init__(self, seeds: Iterable[Report], size: int = 500) -> None:
        self._lock, self._size = threading.Lock(), size
        self._seeds = {r.key: r for r in seeds}
        self._reports: OrderedDict[tuple[str, str], Report] = OrderedDict()
        self._ran: OrderedDict[str, list[str]] = OrderedDict()
        self._standing = OrderedDict[tuple[int, int], tuple[Report, Report]]()  # by id and place: the report, which so keeps its id, and its copy

    def first(self) -> list[Report]:
        """The reports a new page starts with."""
        return list(self._seeds.values())[: COMPARED + 1]

    def add(self, report: Report) -> str:
        """Puts a report on the shelf and returns its key; one that is equal to what is there, or a thinner recording, leaves that object in place."""
        report = bare(report)
        key, place = report.key, (read_by(report), report.key)
        with self._lock:
            there = self._reports.get(place) or self._seeds.get(key)
            if there is None or (len(report.measurements) > len(there.measurements) if is_recorded(report) else report != there):
                self._reports[place] = report
            if place in self._reports:
                self._reports.move_to_end(place)
            while len(self._reports) > self._size:
                self._reports.popitem(last=False)
        return key

    def pick(self, keys: Iterable[str]) -> list[Report]:
        """The reports of a page's keys, at most a page full, each `at` its place, one object for each; keys that are unknown, or of another's login, are passed
        over. A key may say its place, as `seats` writes it.
        """
        mine, asked = owner(), [str(key).partition(".") for key in list(keys)[: COMPARED + 1]]
        with self._lock:
            found = [(self._reports.get((mine, key)) or self._reports.get(("", key)) or self._seeds.get(key), place) for key, _, place in asked]
            known = [(report, place) for report, place in found if report is not None]
            return [self._at(report, int(place) if place in PLACES else i, i) for i, (report, place) in enumerate(known)]

    def _at(self, report: Report, place: int, position: int) -> Report:
        """`at` with one object for a report at a place, so that visitors share what was drawn of it."""
        if place == position:
            return report
        _, copy = self._standing.setdefault((id(report), place), (report, at(report, place, position)))
        while len(self._standing) > STANDING:
            self._standing.popitem(last=False)
        return copy

    def age(self, report: Report) -> int:
        """When the visitor whose request this is ran a configuration: 1 for the first of all, more for later ones, 0 for none."""
        ran, key = self._ran.get(session(), []), key_of(report.experiment)
        return ran.index(key) + 1 if key in ran else 0

    def arrange(self, shown: Sequence[Report], new: Report) -> tuple[list[Report], str]:
        """`arrange` for the visitor whose request this is, who has just run (or opened) the new report."""
        page = arrange(shown, new, self.age)
        with self._lock:
            own = key_of(new.experiment)
            before = [other for other in self._ran.pop(session(), []) if other != own]
            self._ran[session()] = [*before[-REMEMBERED:], own]
            while len(self._ran) > self._size:
                self._ran.popitem(last=False)
        return page

    def find(self, model: str, spec: QuantSpec, options: Mapping[str, Any]) -> Report | None:
        """`known` for a link that is opened, of the bundled model alone. Another name may mean other weights by now, of a newer commit or in a folder that
        was written to: the runner knows.
        """
        return self.known(model, spec, options) if model == "demo" else None

    def known(self, model: str, spec: QuantSpec, options: Mapping[str, Any]) -> Report | None:
        """The report on the shelf of this spec, model name, texts and calibration, or None: a seed, else what this login or nobody's has measured, as the
        store gives it. Seeds count only at the options they were made with.
        """
        own = [r for r in reversed(self._readable()) if not is_recorded(r) and not r.missing]
        measured = [replace(r, provenance=r.provenance | {"from_store": True}) for r in own]
        return next((r for r in [*self._seeds.values(), *measured] if matches(r, model, spec, options)), None)

    def stopped(self, reports: Iterable[Report]) -> list[Report]:
        """Reports of a page on which nothing is measured any more: those that are not whole say so."""
        shown = list(reports)
        for i, (place, report) in enumerate(zip(places(shown), shown, strict=True)):
            if report.missing:
                [ended] = self.pick([self.add(replace(report, provenance=report.provenance | {"stopped": True}))])
                shown[i] = at(ended, place, i)
        return shown

    def recorded(self, model: str, spec: QuantSpec, options: Mapping[str, Any]) -> Report | None:
        """What ships with the project of this configuration, as `find` takes it: a seed, else a report of the survey, or None."""
        return next((r for r in [*self._seeds.values(), *survey().values()] if matches(r, model, spec, options)), None)

    def with_baseline(self, reports: Sequence[Report]) -> list[Report]:
        """The reports with the baseline of their model and text in front, where it is on the shelf: a recorded one before what was recorded, else one
        that was measured.
        """
        if not reports or any(map(is_baseline, reports)):
            return list(reports)
        known = [r for r in (*self._seeds.values(), *self._readable()) if not r.missing]
        bases = [r for r in known if is_baseline(r) and ground(r) == ground(reports[0])]
        return [*sorted(bases, key=lambda r: is_recorded(r) == all(map(is_recorded, reports)))[-1:], *reports]

    def _readable(self) -> list[Report]:
        """What this visitor may see of what was added, the newest last."""
        allowed = ("", owner())
        with self._lock:
            return [report for (login, _), report in self._reports.items() if login in allowed]


def matches(report: Report, model: str, spec: QuantSpec, options: Mapping[str, Any]) -> bool:
    """Whether a report is of this model name, spec, texts and calibration."""
    evaluation, calibration = report.experiment.evaluation, report.experiment.calibration
    if report.experiment.model.name != model or report.experiment.spec != spec:
        return False
    texts = evaluation.source == options["evaluation"] and calibration.source == options["calibration"]
    return texts and calibration.seed == options["seed"] and calibration.tokens // calibration.length == options["sequences"]


def spec_of(method: str, params: dict[str, Any], options: dict[str, Any]) -> QuantSpec:
    """What a method, its parameters and the options ask for."""
    given = {name: value for name, value in params.items() if value is not None}
    return replace(QuantSpec.of(method, **given), kv_bits=options["kv_bits"], head_bits=options["head_bits"])


def disturbed(shown: Sequence[Report], model: str, spec: QuantSpec, options: dict[str, Any]) -> bool:
    """Whether the page shows what was measured of this with times that other work disturbed: who asks for it once more wants it measured again, however
    busy the machine still is.
    """
    names = (model.strip(), model.strip().split("@")[0], str(Path(model.strip()).expanduser()))
    own = (r for r in shown if busy(r) and not is_recorded(r) and r.experiment.model.name in names)
    return any(matches(r, r.experiment.model.name, spec, options) for r in own)


def keys_of(reports: Iterable[Report]) -> list[str]:
    """The keys of reports, in order."""
    return [report.key for report in reports]


def is_recorded(report: Report) -> bool:
    """Whether it ships with the project."""
    return bool(report.provenance.get("recorded"))


def is_baseline(report: Report) -> bool:
    """Whether this is the unquantized model."""
    return report.experiment.spec.is_baseline


def usual(reports: Sequence[Report], age: Callable[[Report], int] = lambda report: 0) -> str:
    """The key of the configuration that a view of one starts with, "" when none is quantized: the newest measured here, else the newest recorded one that
    still agrees with the 16-bit model on most tokens. age: as `arrange` takes it; the last of equals.
    """
    quantized = sorted((r for r in reports if not is_baseline(r)), key=age)
    own = [r for r in quantized if not is_recorded(r)]
    sound = [r for r in quantized if isinstance(share := r.value("top1_agreement"), int | float) and share >= 50]
    return next(iter(keys_of((own or sound or quantized)[-1:])), "")


def ground(report: Report) -> tuple:
    """What two reports must share to be compared: model and evaluation text."""
    return report.experiment.model, report.experiment.evaluation


def at(report: Report, place: int, position: int) -> Report:
    """A report as a page shows it: its provenance says its place where that is not its position."""
    return report if report.provenance.get("place", position) == place else replace(report, provenance=report.provenance | {"place": place})


def bare(report: Report) -> Report:
    """A report without its place, which is one page's alone."""
    kept = {name: told for name, told in report.provenance.items() if name != "place"}
    return replace(report, provenance=kept) if "place" in report.provenance else report


def seated(reports: Sequence[Report]) -> dict[int, Report]:
    """A page by place, in order: the baseline at 0, the others where they say, else at the first free place. What finds none is left out."""
    found = dict(enumerate([r for r in reports if is_baseline(r)][-1:]))
    for report in sorted((r for r in reports if not is_baseline(r)), key=lambda r: "place" not in r.provenance):
        free, own = [place for place in range(1, COMPARED + 1) if place not in found], report.provenance.get("place")
        if free:
            found[own if own in free else free[0]] = report
    return dict(sorted(found.items()))


def seats(reports: Sequence[Report]) -> list[tuple[str, str]]:
    """(name, key) of the reports of a page; the key says the place as well, so that whoever stays when others leave keeps its colour."""
    return [(report.name, f"{report.key}.{place}") for place, report in seated(reports).items()]


def specs_by_place(reports: Sequence[Report]) -> list[QuantSpec | None]:
    """The specs of a page's configurations by place from 1 on, None for one that is free before the last."""
    page = seated(reports)
    return [page[place].experiment.spec if place in page else None for place in range(1, max(page, default=0) + 1)]


def arrange(shown: Sequence[Report], new: Report, age: Callable[[Report], int] = lambda report: 0) -> tuple[list[Report], str]:
    """(the page with the new report on it, what left the page as a sentence or "").

    One baseline, first; then at most COMPARED configurations in the order of their places, which each keeps while it is on the page. A new one takes the
    place that it says or the first that is free; on a full page that of a recorded one, if there is any, else of any: of the one that came first by `age`
    (less is earlier, the first of equals). Only reports on the same model and text can be compared, so a new model or text starts a new page.
    """
    alike = [r for r in shown if ground(r) == ground(new)]
    page = seated(alike)
    left = "The other configurations were of another model or text and left the page." if len(alike) < len(shown) else ""
    free, asked = [place for place in range(1, COMPARED + 1) if place not in page], new.provenance.get("place")
    place = 0 if is_baseline(new) else next((i for i, r in page.items() if r.experiment == new.experiment), asked if asked in free else min(free, default=None))
    if place is None:
        place = min((i for i in page if i), key=lambda i: (not is_recorded(page[i]), age(page[i])))
        gone = page[place]
        again = "Run or Reset brings it back" if is_recorded(gone) else "run it again to bring it back, it is stored"
        left = f"{gone.name} left the page: {FULL} stand beside the baseline; {again}."
    page = dict(sorted((page | {place: new}).items()))
    return [at(report, place, i) for i, (place, report) in enumerate(page.items())], left
