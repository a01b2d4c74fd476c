"""Speed: what limits a configuration here, how long its tokens take, how it fares with many sequences, and the kernels' own timings by device."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache, partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from explorer.chips import chip, reachable
from explorer.figures import charts
from explorer.findings import origin
from explorer.recorded import survey
from explorer.records import Answer, InputError, Report
from explorer.ui.asking import configuration, data_of
from explorer.ui.cancel import Cancel
from explorer.ui.frame import chart, chart_values, fold, heading
from explorer.ui.session import keys_of, usual
from explorer.ui.status import Clock, failure, status, watched
from explorer.ui.swept import BATCH, keeping
from explorer.ui.tab import QUIET, Shell, Tab, View, picked

TIMED = ("us", "80th percentile, us", "GB/s", "of a copy, %", "times as fast as")  # columns of the kernels' table that were measured
ASSETS = Path(__file__).parents[3] / "assets"
ABOUT = (
    "Choose a configuration and measure it on this machine; what was measured before comes back at once. Each button times a loop of its own. How many times "
    "as fast as 16 bits one sequence decodes stands in Compare: a machine's pace changes, and only there both loops ran in turn."
)
CUT = "{} while the batch was swept, which stopped it. Its loops run in turn, so a part of it is not kept: press Sweep the batch to start over."
SIZES = (8, 32, 128)  # sequences at most
BENCH, RECORDED = ASSETS / "bench", ASSETS / "speed.json"


@cache
def recorded() -> dict[str, Any]:
    """The answers of the tasks roofline and batch that ship with the project, under one read rate a device, the best; {} when there are none."""
    found = {task: data | {"recorded": True} for task, data in json.loads(RECORDED.read_text()).items()} if RECORDED.exists() else {}
    best: dict[str, float] = {}
    for data in found.values():
        device = data["provenance"]["device"]
        best[device] = max(best.get(device, 0.0), data["roof"]["read"])
    return {task: data | {"roof": data["roof"] | {"read": best[data["provenance"]["device"]]}} for task, data in found.items()}


def asked(report: Report) -> dict[str, Any]:
    """The arguments of the tasks that measure the configuration of a report."""
    every = configuration(report)
    return {"model": report.experiment.model.name, **{name: every[name] for name in ("method", "params", "kv_bits", "head_bits")}}


def swept(data: dict[str, Any] | None) -> int:
    """Up to how many sequences the sweep went that is shown; the fewest that are offered where there is none."""
    most = max((point["batch"] for arm in (data or {}).get("arms", []) for point in arm["points"]), default=0)
    return most if most in SIZES else SIZES[0]


def kernel_tables(folder: Path = BENCH) -> str:
    """The timings that `python -m kernels --write` left, one table a device; a sentence where there are none. Files that cannot be read are named."""
    parts = []
    for path in sorted(folder.glob("*.json")):
        try:
            data = json.loads(path.read_text())
            products_first = sorted(data["timings"], key=lambda row: "matmul" not in row["op"])
            parts.append(_table(str(data.get("device", path.stem)), list(map(shown_row, products_first)), data))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            parts.append(f"<p>{escape(path.name)} cannot be read as kernel timings; write it again with <code>python -m kernels --write</code>.</p>")
    return "".join(parts) or "<p class='empty'>No kernel timings are here yet: <code>python -m kernels --write</code> measures them.</p>"


def shown_row(row: dict[str, Any]) -> dict[str, Any]:
    """One timing as the table shows it: what ran, on which shape, how long, how close to a copy, how many times as fast as 16 bits."""
    case = row["case"]
    if case.get("k"):
        shape = f"{case['n']} x {case['k']}" if case.get("n") else f"{case['k']}"
    elif case.get("p"):
        shape = f"{case['p'] * case['q'] * case['runs']}"
    else:
        shape = ", ".join(f"{k} {v}" for k, v in case.items() if k in ("batch", "heads", "tokens"))
    return {
        "operation": row["op"], "format": row["format"], "N x K": shape, "rows": case.get("m") or "", "us": row["us"],
        "times as fast as": row["ratio"], "baseline": row["baseline"], "kernel": row["form"],
        "of a copy, %": 100 * row["of_copy"], "GB/s": row["gb_per_s"], "80th percentile, us": row["p80"],
    }  # fmt: skip


def _table(device: str, rows: list[dict[str, Any]], data: dict[str, Any]) -> str:
    """One table an operation, in a fold; the first is open."""
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key != "operation"]
    how = chip("recorded", f"{device}; {', '.join(f'{key} {data[key]}' for key in ('triton', 'date', 'command') if data.get(key))}", reached=False)
    head = "".join(f"<th scope='col'>{escape(column)} {how if column in TIMED else ''}</th>" for column in columns)
    made = ", ".join(f"{key} {data[key]}" for key in ("torch", "triton", "date", "command") if data.get(key))
    parts = [f"<p class='hint'>{escape(device)}: {escape(made)}</p>"]
    for name in dict.fromkeys(row["operation"] for row in rows):
        chosen = [row for row in rows if row["operation"] == name]
        body = "".join("<tr>" + "".join(_cell(column, row.get(column, "")) for column in columns) + "</tr>" for row in chosen)
        whole = reachable(f"<table class='kernels'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
        title = f"<summary>{escape(name)}, {len(chosen)} timings</summary>"
        scroll = f"<div class='scroll tall' tabindex='0' role='region' aria-label='timings of {escape(name, quote=True)}'>{whole}</div>"
        parts.append(f"<details{' open' if len(parts) == 1 else ''}>{title}{scroll}</details>")
    return "".join(parts)


def _cell(column: str, value: Any) -> str:
    """A timed number as a cell; what names the row as its heading."""
    text = escape((f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}") if isinstance(value, float) else str(value))
    return f"<td>{text}</td>" if column in TIMED else f"<th scope='row'>{text}</th>"


def build(shell: Shell) -> View:
    first = shell.shelf.first()
    gr.HTML(f"<p class='see'>{ABOUT}</p>")
    fold("Measure: configuration, batches")
    with gr.Row(equal_height=False, elem_classes=["to-bar", "folded"]):
        which = gr.Dropdown(**choices(shell, first, None), label="Configuration", elem_id="speed-which", filterable=False, scale=3, min_width=200)
        stop = gr.Button("Cancel", variant="stop", elem_id="speed-cancel", min_width=100)
    line = gr.HTML(status(at_first()), elem_id="speed-status", padding=False)
    with gr.Row(equal_height=False, elem_classes=["to-bar", "folded"]):
        sweep = gr.Button("Sweep the batch", variant="primary", elem_id="speed-sweep", min_width=140)
        largest = gr.Radio(SIZES, value=swept(recorded().get("batch")), label="Sequences at most", elem_id="speed-largest", min_width=200)
    shell.linked["speed"] = {"sequences": largest}
    batch = chart(charts()["batch"], recorded().get("batch"))
    with gr.Row(elem_classes=["to-bar"]):
        limit = gr.Button("What limits it", variant="primary", elem_id="speed-limit", min_width=140)
    with gr.Row():
        with gr.Column(min_width=320):
            roof = chart(charts()["roofline"], recorded().get("roofline"))
        with gr.Column(min_width=320):
            times = chart(charts()["token_times"], recorded().get("roofline"))
    heading("Kernels by shape and device", "See how close each kernel comes to the copy bandwidth that was measured in the same run.")
    gr.HTML(kernel_tables(), elem_id="speed-kernels")

    def limits(key: str) -> Iterator[list[Any]]:
        yield from measured(shell, "roofline", ("roofline", "token_times"), key)

    mark, told = keeping(BATCH)

    def sweeps(key: str, most: int) -> Iterator[list[Any]]:
        for update in measured(shell, "batch", ("batch",), picked(key), largest=int(most)):
            yield [*update, "on" if "busy" in str(update[0])[:40] else ""]

    stopping = Cancel(status("Cancelled. Nothing half-measured is kept."))
    stopping.stops(limit.click, limits, which, [line, *roof, *times], concurrency_limit=8)
    stopping.stops(sweep.click, sweeps, [which, largest], [line, *batch, mark], concurrency_limit=8)
    elsewhere = shell.picks["batch"]
    arrived = elsewhere.change(
        partial(brought, shell), [elsewhere, shell.compared, shell.layer], [shell.bar, shell.compared, shell.layer, which, line], **QUIET
    )
    stopping.stops(arrived.then, sweeps, [elsewhere, largest], [line, *batch, mark], concurrency_limit=8)
    stopping.by(stop, line)
    told.change(lambda told: status(CUT.format("The server was restarted" if told.startswith("restart") else "The page was loaded anew")), told, line, **QUIET)

    def render(reports: Sequence[Report], layer: str, chosen: str | None) -> list[Any]:
        return [gr.Dropdown(**choices(shell, reports, chosen))]

    return View([which], render, [which], pure=True)


def at_first() -> str:
    """What the status line says before anything was measured here."""
    shipped = recorded().get("roofline")
    if not shipped:
        return "Nothing is being measured."
    where = ", ".join(str(shipped["provenance"][name]) for name in ("device", "date"))
    return f"Recorded: {shipped['label']} on {shipped['model']}; {where}. Press a button to measure here."


def measured(shell: Shell, task: str, names: tuple[str, ...], key: str, **more: Any) -> Iterator[list[Any]]:
    """Streams [status, plot, words and a changing heading of each chart in `names`] of a task on the configuration with this key."""
    same, clock = [gr.skip()] * sum(3 if charts()[name].looks else 2 for name in names), Clock()
    try:
        found = shell.shelf.pick([key])
        if not found:
            raise InputError("That configuration is no longer on the page; choose one from the list.")
        for event in watched(shell.runner.do(task, asked(found[0]) | more), clock):
            if isinstance(event, Answer):
                where = origin(event.provenance)
                said = status(f"{found[0].name} on {event.provenance.get('device', 'this device')}: {where}, {clock.seconds():.1f} s.", "done")
                yield [said, *(value for name in names for value in chart_values(charts()[name], data_of(event)))]
            elif isinstance(event, str):
                yield [event, *same]
    except Exception as error:  # the outermost boundary of this tab's buttons: whoever pressed gets a sentence
        yield [failure(error), *same]


def brought(shell: Shell, choice: str, keys: list[str], layer: str | None) -> list[Any]:
    """[tabs, compared, layer, which, status] after the batch sweep of a configuration was asked for elsewhere: this tab opens on it.

    One that is not compared yet, such as a point of the Trade-offs tab, joins the page first; it need not have been opened.
    """
    shown, key = shell.shelf.pick(keys), picked(choice)
    found = next(iter(shell.shelf.pick([key])), None) or survey().get(key)
    if found is None:
        return [gr.skip()] * 4 + [status("That configuration is no longer on the page; run it again.", "error")]
    shell.shelf.add(found)
    if key not in keys_of(shown):
        shown = shell.shelf.with_baseline(shell.shelf.arrange(shown, found)[0])
    compared, picker = shell.shared(shown, layer)
    waiting = status(f"{found.name}: sweeping the batch.", "busy")
    return [gr.Tabs(selected="speed"), gr.Dropdown(**compared), gr.Dropdown(**picker), gr.Dropdown(**choices(shell, shown, key)), waiting]


def choices(shell: Shell, reports: Sequence[Report], chosen: str | None) -> dict[str, Any]:
    """What the list of configurations shows: those on the page, the usual one unless another was chosen."""
    keys = keys_of(reports)
    value = chosen if chosen in keys else usual(reports, shell.shelf.age) or next(iter(keys), None)
    return {"choices": [(report.name, key) for key, report in zip(keys, reports, strict=True)], "value": value}


TAB = Tab("speed", "Speed", build, order=60)
