"""Handlers of the Layers tab: measure a sensitivity, spend a budget by it, run the allocation. A page holds the sensitivity's key only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from typing import Any

import gradio as gr

from explorer.allocate import Point, best, frontier, options_of, rules, together, uniform
from explorer.figures import allocation, sensitivity
from explorer.findings import origin
from explorer.link import WHOLE
from explorer.low_bit_files import PACKED, in_compressed_tensors, in_gguf
from explorer.paired import windows_of
from explorer.records import Answer, InputError, Measurement, Report
from explorer.ui.frame import chart_values
from explorer.ui.kept import Kept
from explorer.ui.panel import RUN_OPTIONS
from explorer.ui.status import Clock, failure, status, watched
from explorer.ui.tab import Shell

EVERY, FILES = "all", "files"  # which widths a budget is spent on: all that were measured, or those of integers in files
RUNS = "Runs the allocation and the uniform widths next to it in size on the evaluation text, and adds the allocation to Compare."


def told_of(data: dict[str, Any]) -> str:
    """Where a sensitivity comes from, in a sentence."""
    where = data.get("provenance", {})
    how = origin({"recorded": data.get("recorded")} | where).capitalize()
    text = f"{how}: {data.get('label', data['method'])} on {data['model']}, {data.get('text', '')}; {where.get('device', '')}, {where.get('date', '')}."
    return text + (f" {len(data['kept'])} layers stay in 16 bits." if data.get("kept") else "")


def maps(data: dict[str, Any], width: int, what: str) -> list[Any]:
    """The map and the ranking of a sensitivity, each with its words."""
    shown = data | {"width": width, "what": what}
    return [*chart_values(sensitivity.MAP, shown), *chart_values(sensitivity.RANKING, shown)]


def takes_away(rules: str, catalogue: list[dict[str, Any]]) -> str:
    """Which files can hold an allocation in low bits, in sentences."""

    def able(asked: str) -> str:
        return " or as ".join(f"{title} for {reader}" for title, reader, holds in FORMATS if holds("mixed", {"rules": asked}, catalogue))

    if found := able(rules):
        return f"Once it has run, Commands writes it as {found}."
    other = able(re.sub(r"bits=\d+", "bits=4", rules))
    return "No file holds it in low bits: Commands would write it in 16." + (" With the widths 4 and 8 a file can hold it." if other else "")


FORMATS = (
    ("compressed-tensors", "vLLM", in_compressed_tensors),
    ("GGUF", "llama.cpp (4.5 bits a weight and more there)", in_gguf),
)


class Sensitivities:
    """What the tab shows of a sensitivity, by the key that the page holds; the frontier is solved once a sensitivity."""

    def __init__(self, shell: Shell, recorded: dict[str, Any]) -> None:
        """recorded: the sensitivity that ships with the project, {} when there is none."""
        self.shell, self.recorded, self.kept, self._points = shell, recorded, Kept(), dict[str, list[Point]]()

    def start(self, model: str) -> str:
        """The key of what is known of a model from the start; "" for nothing."""
        return self.kept.put(self.recorded) if self.recorded.get("model") == model else ""

    def titles(self, key: str) -> list[str]:
        """The headings of the maps and of the budget, which name the model, as HTML."""
        data = self.kept.get(key)
        of = f" of {escape(data['model'])}" if data else ""
        see = "Every layer alone, at 2, 3, 4 and 8 bits; the rest of the model stays exact."
        spend = "The best width for each layer under a budget, by the sensitivities above; then run it."
        return [
            f"<h2 class='figure'>Quantize one layer{of} at a time</h2><p class='see'>{see}</p>",
            f"<h2 class='figure'>Spend a budget of bits on the layers{of}</h2><p class='see'>{spend}</p>",
        ]

    def line(self, key: str, model: str) -> str:
        """Where the sensitivity of this key comes from, or what to press, as a status line."""
        data = self.kept.get(key)
        return status(told_of(data) if data else f"Nothing measured of {model} yet: press Measure sensitivity; what is stored already takes no time.")

    def arrived(self, model: str, seen: str, key: str, width: int, what: str) -> list[Any]:
        """[status, key, *drawn, model] after Compare changed; seen: the model it showed before. Nothing new for the same model or one shown already."""
        if model == seen:
            return [gr.skip()] * 7
        if (self.kept.get(key) or {}).get("model") == model:
            return [*[gr.skip()] * 6, model]
        new = self.start(model)
        return [self.line(new, model), new, *self.drawn(new, width, what), model]

    def points(self, key: str, widths: str = EVERY) -> list[Point]:
        """The frontier of a sensitivity; of FILES with the widths that files hold, alike in layers that vLLM runs as one. Raises InputError when there is none
        to allocate from.
        """
        data = self.kept.get(key)
        if not data or not data.get("rows"):
            raise InputError("Measure the sensitivity first; a budget is spent by it.")
        asked = f"{key} {widths}"
        if asked not in self._points:
            rows = data["rows"] if widths == EVERY else [row for row in data["rows"] if row["bits"] in PACKED]
            if not rows:
                raise InputError("No layer was measured at 4 or 8 bits, the widths that files hold.")
            options = options_of(rows) if widths == EVERY else together(options_of(rows))
            self._points = {**dict(list(self._points.items())[-20:]), asked: frontier(options)}
        return self._points[asked]

    def weights(self, key: str) -> tuple[int, int]:
        """(all weights of the layers, stored bits of those that stay in 16 bits)."""
        data = self.kept.get(key)
        one = {row["layer"]: row["weights"] for row in data["rows"]}
        left = sum(data.get("kept", {}).values())
        return sum(one.values()) + left, 16 * left

    def allocated(self, key: str, budget: float, choice: str = EVERY) -> dict[str, Any]:
        """The best assignment at a budget of bits a weight, its rules, and the data of both charts. choice: EVERY or FILES."""
        data, points = self.kept.get(key), self.points(key, choice)
        weights, fixed = self.weights(key)
        if (least := (points[0].cost + fixed) / weights) > budget:
            raise InputError(f"The smallest assignment takes {least:.3f} bits a weight, more than the budget of {budget:g}; raise it.")
        chosen = best(points, budget * weights - fixed)
        assignment = chosen.assignment()
        step = max(1, len(points) // 150)
        widths = sorted({row["bits"] for row in data["rows"]})
        marks = []
        for width in widths:
            cost, loss = uniform(data["rows"], width)
            marks.append({"kind": "uniform", "name": f"{width} bits for all", "width": width, "bits": (cost + fixed) / weights, "predicted": loss})
        bits = (chosen.cost + fixed) / weights
        marks.append({"kind": "mixed", "name": f"allocated {bits:.2f} bits", "bits": bits, "predicted": chosen.loss})
        return {
            "assignment": {layer: option.bits for layer, option in assignment.items()}, "bits": bits, "predicted": chosen.loss, "points": marks,
            "rules": rules(assignment, data["method"], data["params"]),
            "frontier": [[(p.cost + fixed) / weights, p.loss] for p in [*points[:-1:step], points[-1]] if p.loss > 0],
        }  # fmt: skip

    def drawn(self, key: str, width: int, what: str) -> list[Any]:
        """The map and the ranking, each with its words."""
        return maps(self.kept.get(key) or {}, width, what)

    def measured(self, model: str, method: str, group: int, asymmetric: bool, width: int, what: str, key: str) -> Iterator[list[Any]]:
        """Streams [status, key, *drawn]; the maps fill layer by layer."""
        clock, rows, last = Clock(), list[dict[str, Any]](), 0.0
        known = {field["name"] for one in self.shell.catalogue if one["name"] == method for field in one["fields"]}
        params = {name: value for name, value in {"group_size": group, "symmetric": not asymmetric}.items() if name in known}
        same = [gr.skip()] * 4
        try:
            for event in watched(self.shell.runner.do("sensitivity", {"model": model, "method": method, "params": params}), clock):
                if isinstance(event, str):
                    late = bool(rows) and clock.seconds() - last > 1.5
                    last = clock.seconds() if late else last
                    yield [event, gr.skip(), *(maps({"rows": rows}, width, what) if late else same)]
                elif isinstance(event, Measurement):
                    rows.append(event.value)
                elif isinstance(event, Answer):
                    data = event.data | {"provenance": event.provenance}
                    key = self.kept.put(data)
                    yield [status(f"{told_of(data)} {clock.seconds():.0f} s.", "done"), key, *self.drawn(key, width, what)]
        except Exception as error:  # the outermost boundary: whoever pressed gets a sentence
            yield [failure(error), gr.skip(), *same]

    def solved(self, key: str, budget: float, choice: str = EVERY) -> list[Any]:
        """[map, words, chart, words, rules, status] of the best assignment; all empty without a key."""
        if not key:
            said = status("Measure the sensitivity first; a budget is spent by it.")
            return [*chart_values(allocation.MAP, {}), *chart_values(allocation.CHART, {}), "", said]
        try:
            data = self.allocated(key, budget, choice)
        except InputError as error:
            return [*chart_values(allocation.MAP, {}), *chart_values(allocation.CHART, {}), "", status(str(error), "error")]
        return [*chart_values(allocation.MAP, data), *chart_values(allocation.CHART, data), data["rules"], self.offer(data)]

    def offer(self, data: dict[str, Any]) -> str:
        """What Run does, and where its result can go, as a status line. data: of `allocated`, {} for nothing."""
        return status(f"{RUNS} {takes_away(data['rules'], self.shell.catalogue)}" if data else RUNS)

    def asked(self, key: str, data: dict[str, Any]) -> list[tuple[str, str, dict[str, Any], dict | None]]:
        """(words, method, params, point of the chart) of the runs that judge an allocation: baseline, itself, the next smaller and the next
        larger uniform width, or the two nearest where one is missing.
        """
        kept = self.kept.get(key)
        uniform = sorted((p for p in data["points"] if p["kind"] == "uniform"), key=lambda p: abs(p["bits"] - data["bits"]))
        sides = [p for p in uniform if p["bits"] <= data["bits"]][:1] + [p for p in uniform if p["bits"] > data["bits"]][:1]
        near = sides if len(sides) == 2 else uniform[:2]
        uniforms = [(f"{p['name']}: ", kept["method"], kept["params"] | {"bits": p["width"]}, p) for p in near]
        return [("baseline: ", "none", {}, None), ("allocation: ", "mixed", {"rules": data["rules"]}, data["points"][-1]), *uniforms]

    def ran(self, key: str, budget: float, choice: str, keys: list[str], layer: str | None, *options: Any) -> Iterator[list[Any]]:
        """Streams [status, chart, words, compared, layer]: the allocation and uniform widths, measured on the evaluation text.

        options: the values of the RUN_OPTIONS.
        """
        same, clock, shown = [gr.skip()] * 4, Clock(), self.shell.shelf.pick(keys)
        try:
            data, given = self.allocated(key, budget, choice), dict(zip(RUN_OPTIONS, options, strict=True))
            for what, method, params, point in self.asked(key, data):
                for event in watched(self.shell.runner.run(self.kept.get(key)["model"], method, params, **(given if point else given | WHOLE)), clock, what):
                    if isinstance(event, str):
                        yield [event, *same]
                    elif isinstance(event, Report):
                        if point is None or point["kind"] == "mixed":
                            self.shell.shelf.add(event)
                            shown, _ = self.shell.shelf.arrange(shown, event)
                        if point is not None:
                            found = event.find("kld_mean")
                            point |= {"kld": found.value, "low": found.low, "high": found.high, "windows": windows_of(event, "kld_mean")}
                            point["resident"] = event.value("bits_per_weight_resident")
                        yield [gr.skip(), *chart_values(allocation.CHART, data), gr.skip(), gr.skip()]
            compared, picker = self.shell.shared(shown, layer)
            sentence = f"Done in {clock.seconds():.0f} s; the allocation is in Compare."
            yield [status(sentence, "done"), gr.skip(), gr.skip(), gr.Dropdown(**compared), gr.Dropdown(**picker)]
        except Exception as error:  # the outermost boundary: whoever pressed Run gets a sentence
            yield [failure(error), *same]
