"""Share: the page's state as a link, read back when a page opens; numbers and figures to take away."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from explorer.export import as_csv, as_json, commands, saving_of
from explorer.learn.stories import stories
from explorer.link import OPTIONS, TEXT_STAYS, WHOLE, Wanted, parse, query
from explorer.records import Answer, InputError, QuantSpec, Report
from explorer.report_page import report_page
from explorer.ui.asking import with_options
from explorer.ui.cancel import Cancel
from explorer.ui.page import Page
from explorer.ui.panel import RUN_OPTIONS
from explorer.ui.session import at, bare, specs_by_place
from explorer.ui.status import Clock, failure, status, watched
from explorer.ui.tab import QUIET, picked, tabs
from explorer.wide import layer_names

OWN_TEXT = "A text of your own is never part of it: paste it again and press Run; what was measured of it is stored."
MOST = 2**31 - 1  # of a number without a limit of its own


def panel_of(page: Page, values: Sequence[Any]) -> tuple[str, QuantSpec, dict[str, Any]]:
    """(model, spec, options) that Run would measure. values: the shell's controls, then others."""
    model, method, params, options = page.asked(values[: len(page.shell.controls)])
    return model, QuantSpec.of(method, **{name: value for name, value in params.items() if value is not None}), options


def own_of(page: Page, active: str, values: Sequence[Any], written: bool = True) -> dict[str, Any]:
    """What the open tab is set to, where it is not as it starts. values: the shell's controls, then what all tabs are set to. written: with its texts."""
    rest = iter(values[len(page.shell.controls) :])
    set_to = {tab: {name: (next(rest), part) for name, part in parts.items()} for tab, parts in page.shell.linked.items()}.get(active, {})
    kept = {name: pair for name, pair in set_to.items() if written or not isinstance(pair[1], gr.Textbox)}
    given = {name: value for name, (value, _) in kept.items() if value is not None}
    usual = {name: part.value for name, (_, part) in kept.items()}
    usual |= following(page, active, {name: value for name, value in given.items() if value != usual[name]})
    return {name: value for name, value in given.items() if value != usual[name] and (value != "" or usual[name] is not None)}


def following(page: Page, tab: str, own: dict[str, Any]) -> dict[str, Any]:
    """The values in a tab that follow from what it is set to, where they are not set themselves."""
    return page.shell.follows[tab](own) if own and tab in page.shell.follows else {}


def link_of(page: Page, keys: list[str], layer: str | None, active: str, *values: Any) -> str:
    """The query string that opens this state again. values: the shell's controls, then what all tabs are set to."""
    model, spec, options = panel_of(page, values)
    shown = specs_by_place(page.shell.shelf.pick(keys))
    return "?" + query(active, layer or "", model, spec, options, shown, page.shell.catalogue, own_of(page, active, values))


def settable(part: Any) -> dict[str, Any]:
    """What a tab's component can be set to, as a field of the catalogue's form."""
    if isinstance(part, gr.Radio | gr.Dropdown):
        return {"kind": "choice", "choices": [value for _, value in part.choices]}
    if isinstance(part, gr.Checkbox):
        return {"kind": "bool", "choices": [True, False]}
    if isinstance(part, gr.Textbox):
        return {"kind": "text"}
    whole = part.precision == 0 if isinstance(part, gr.Number) else part.step == int(part.step)
    return {"kind": "int" if whole else "float", "low": part.minimum, "high": MOST if part.maximum is None else part.maximum}


def file_of(page: Page, kind: str, keys: list[str], layer: str | None, address: str = "") -> Iterator[str]:
    """Yields the path of a file with the compared reports, which is gone afterwards; kind: "csv", "json" or "html"; address: of the page."""
    reports = page.shell.shelf.pick(keys)
    numbers = {"csv": as_csv, "json": as_json}
    made = report_page(reports, layer or "", address) if kind == "html" else numbers[kind]([bare(report) for report in reports])
    with tempfile.TemporaryDirectory(prefix="quantization-") as folder:
        path = Path(folder) / f"quantization.{kind}"
        path.write_text(made, encoding="utf-8")
        yield str(path)  # gradio makes a copy, which leaves in its time


def lines(page: Page, keys: list[str], before: str) -> str:
    """The compared configurations as commands, to repeat them or to save their models; nothing when they are on the page already."""
    return "" if before else commands(page.shell.shelf.pick(keys), live=True)


def checkpoint_of(page: Page, choice: str) -> Iterator[list[Any]]:
    """[status, file]: the archive of the checkpoint of the configuration that was asked for, as "key" or "format-key"."""
    try:
        form, _, key = picked(choice).rpartition("-")
        found = next(iter(page.shell.shelf.pick([key])), None)
        command = saving_of(found, form or "auto", whole=True) if found else ""
        if not command:
            raise InputError("That configuration is no longer on the page; run it again.")
        own = with_options(found)
        given = {"command": command, "form": form or "auto", "options": own["options"] | WHOLE}
        for event in watched(page.shell.runner.do("checkpoint", own | given | {"model": found.experiment.model.name}), Clock(), f"{found.name}: "):
            if isinstance(event, Answer):
                data, path = event.data, Path(event.data["path"])
                yield [status(f"{data['name']} as {data['format']}, {data['bytes'] / 2**20:.1f} MiB. {data['note']}", "done"), str(path)]
                shutil.rmtree(path.parent, ignore_errors=True)  # gradio has made a copy
            elif isinstance(event, str):
                yield [event, gr.skip()]
    except Exception as error:  # the outermost boundary: whoever asked gets a sentence
        yield [failure(error), None]


def control_updates(page: Page, wanted: Wanted) -> list[Any]:
    """An update for each of the shell's controls: what the link asks for, everything else as it is."""
    updates = [gr.update(value=wanted.model) if wanted.model else gr.skip(), gr.update(value=wanted.method) if wanted.method else gr.skip()]
    updates += [gr.update(value=wanted.options[name]) if name in wanted.options else gr.skip() for name in RUN_OPTIONS]
    for control in page.shell.panel.fields:
        asked = control.method == wanted.method and control.field["name"] in wanted.params
        updates.append(gr.update(value=wanted.params[control.field["name"]]) if asked else gr.skip())
    return updates


def arrive(page: Page, request: gr.Request) -> Iterator[list[Any]]:
    """What a link asks for, in place before Run can be pressed; then the configurations it compares, measured where the store lacks them.

    Yields [Run button, tabs, status, controls..., what tabs are set to..., compared, layer, outputs of all tabs...].
    """
    pairs = list(request.query_params.multi_items()) if request is not None else []
    fields = {tab: {name: settable(part) for name, part in parts.items()} for tab, parts in page.shell.linked.items()}
    wanted = parse(pairs, page.shell.catalogue, [tab.name for tab in tabs()], fields)
    wanted = dataclasses.replace(wanted, own=following(page, wanted.tab, wanted.own) | wanted.own)
    same = [gr.skip()] * (2 + len(page.shell.outputs()))
    ready = gr.Button(interactive=True)
    controls = control_updates(page, wanted)
    set_to = {(wanted.tab, name): gr.update(value=value) for name, value in wanted.own.items()}
    controls += [set_to.get((tab, name), gr.skip()) for tab, parts in page.shell.linked.items() for name in parts]
    bar = gr.Tabs(selected=wanted.tab) if wanted.tab else gr.skip()
    here = layer_names(page.shell.shelf.first())
    ignored = [*wanted.wrong, *wrong_step(dict(pairs)), *([] if wanted.compared else wrong_layer(wanted, here))]
    line = opened_line(ignored) if ignored else gr.skip()
    layer = [gr.skip(), gr.Dropdown(value=wanted.layer) if wanted.layer in here else gr.skip(), *same[2:]]
    yield [ready, bar, line, *controls, *layer]
    if wanted.compared:
        untouched = [gr.skip()] * len(controls)
        for line, updates in _compared(page, wanted, ignored):
            yield [ready, gr.skip(), line, *untouched, *(updates or same)]


def opened_line(ignored: Sequence[str]) -> str:
    """The status line of a page that a link has opened. ignored: what of the link was not taken, and why where that is not plain."""
    wrong = [value for value in ignored if TEXT_STAYS not in value]
    own = f" {OWN_TEXT}" if len(wrong) < len(ignored) else ""
    if not wrong:
        return status(f"Opened from a link.{own}", "done")
    return status(f"Opened from a link. Of it, this does not exist or is out of range and was ignored: {'; '.join(wrong)}.{own}", "error")


def wrong_step(asked: dict[str, str]) -> list[str]:
    """A walkthrough and a step of it that do not exist; after the last comes the closing card."""
    known, step = stories(), asked.get("step", "1")
    if asked.get("story", next(iter(known))) not in known:
        return [f"story {asked['story'][:40]!r}"]
    last = len(known[asked.get("story", next(iter(known)))].steps)
    return [] if step.isascii() and step.isdigit() and 1 <= int(step[:9]) <= last + 1 else [f"step {step[:40]!r}"]


def wrong_layer(wanted: Wanted, names: Sequence[str]) -> list[str]:
    """The layer of a link, where no report has it."""
    return [f"layer {wanted.layer[:40]!r}"] if wanted.layer and wanted.layer not in names else []


def _compared(page: Page, wanted: Wanted, ignored: Sequence[str]) -> Iterator[tuple[str, list[Any] | None]]:
    """(status, updates of compared, layer and tabs at the end) while the specs of a link are looked up or measured."""
    shelf, clock, failed = page.shell.shelf, Clock(), ""
    shown: list[Report] = []
    options = {name: wanted.options.get(name, OPTIONS[name]) for name in ("evaluation", "calibration", "sequences", "seed")}
    try:
        for place, spec in enumerate((QuantSpec("none"), *wanted.compared)):
            if spec is None:
                continue
            found = shelf.find(wanted.model or page.shell.models[0], spec, options)
            if found is None:
                given = options | {"kv_bits": spec.kv_bits, "head_bits": spec.head_bits}
                events = page.shell.runner.run(wanted.model or page.shell.models[0], spec.method, dict(spec.params), **given)
                for event in watched(events, clock, "from the link: "):
                    if isinstance(event, Report):
                        shelf.add(found := event)
                    elif isinstance(event, str):
                        yield event, None
            shown, _ = shelf.arrange(shown, at(found, place, len(shown)))
    except (InputError, RuntimeError) as error:
        failed = failure(error)
        yield failed, None
    if shown:
        line = failed or opened_line([*ignored, *wrong_layer(wanted, layer_names(shown))])
        yield line, page.view(shown, wanted.layer or None, wanted.tab or tabs()[0].name, _set_to(page, wanted))


def _set_to(page: Page, wanted: Wanted) -> Sequence[Any]:
    """Values of the tabs' own inputs on a page that a link has just opened."""
    asked = {id(part): wanted.own[name] for name, part in page.shell.linked.get(wanted.tab, {}).items() if name in wanted.own}
    return [asked.get(id(component), component.value) for component in page.shell.inputs()]


def build(page: Page) -> dict[str, Any]:
    """Lays out the buttons, Reset among them; `wire` connects them once all tabs stand."""
    parts: dict[str, Any] = {}
    with gr.Row(elem_id="share"):
        parts["reset"] = gr.Button("Reset", size="sm", elem_id="reset", min_width=70)
        parts["link"] = gr.Button("Copy link", size="sm", elem_id="copy-link", min_width=90)
        for kind in ("csv", "json", "html"):
            parts[kind] = gr.Button({"html": "Report"}.get(kind, kind.upper()), size="sm", elem_id=f"save-{kind}", min_width=70)
        parts["commands"] = gr.Button("Commands", size="sm", elem_id="show-commands", min_width=80)
    parts["lines"] = gr.HTML("", elem_id="commands", padding=False)
    parts["text"] = gr.Textbox(visible="hidden", elem_id="link-text")
    parts["file"] = gr.DownloadButton("file", elem_id="save-file", visible="hidden")
    parts["model"] = gr.DownloadButton("model", elem_id="save-model", visible="hidden")
    return parts


def wire(blocks: gr.Blocks, page: Page, stop: Cancel, parts: dict[str, Any], run: Any) -> Any:
    """Connects the buttons, and reads the link when the page opens: gives that event."""
    shell = page.shell
    own = [part for parts in shell.linked.values() for part in parts.values()]
    state = [shell.compared, shell.layer, shell.active, *shell.controls, *own]
    copied = parts["link"].click(lambda *values: link_of(page, *values), state, parts["text"], **QUIET)
    copied.then(None, parts["text"], shell.status, js=COPY, api_visibility="private")
    for kind in ("csv", "json", "html"):
        made = parts[kind].click(partial(file_of, page, kind), [shell.compared, shell.layer, parts["text"]], parts["file"], js=HERE, **QUIET)
        made.then(None, None, None, js="() => document.querySelector('#save-file').click()", api_visibility="private")
    parts["commands"].click(partial(lines, page), [shell.compared, parts["lines"]], parts["lines"], **QUIET)
    stop.stops(shell.picks["save"].change, partial(checkpoint_of, page), shell.picks["save"], [shell.status, parts["model"]], concurrency_limit=8)
    parts["model"].change(None, None, None, js="() => document.querySelector('#save-model').click()", api_visibility="private")
    shown = [run, shell.bar, shell.status, *shell.controls, *own, shell.compared, shell.layer, *shell.outputs()]

    def opened(request: gr.Request) -> Iterator[list[Any]]:
        yield from arrive(page, request)

    return blocks.load(opened, None, shown, **QUIET)


HERE = "(keys, layer) => [keys, layer, location.origin + location.pathname]"
COPY = """async (query) => {
  const link = location.origin + location.pathname + query;
  const line = (text) => { const d = document.createElement('div'); d.className = 'status done'; d.textContent = text; return d.outerHTML; };
  try { await navigator.clipboard.writeText(link); return line('The link is copied: ' + link); } catch { return line('Copy this link: ' + link); }
}"""
