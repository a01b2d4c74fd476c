"""Links and exports: every state comes back as it was, what a link must not ask for is named, files hold every number and no markup of names."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qsl

import gradio as gr
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from explorer.docs import CATALOGUE
from explorer.export import as_csv, as_json, command_of
from explorer.link import OPTIONS, completed, fields_of, parse, query, spec_from, words
from explorer.recorded import SEEDS
from explorer.records import ModelRef, QuantSpec, report_from
from explorer.report_page import as_html
from explorer.table import source
from explorer.ui.session import Shelf
from explorer.ui.share import file_of, opened_line, settable
from explorer.version import written_by

METHODS = json.loads(CATALOGUE.read_text())["methods"]
ALL = [report_from(data) for data in json.loads(SEEDS.read_text())]
TABS = ["compare", "weights"]


def specs() -> st.SearchStrategy[QuantSpec]:
    """Any method with any allowed values."""

    def value(field: dict) -> st.SearchStrategy:
        if field["kind"] in ("choice", "bool"):
            return st.sampled_from(field["choices"])
        if field["kind"] == "text":
            return st.just(field["default"].replace(":", "").replace("\n", ";"))
        return st.just(field["default"])

    def of(method: dict) -> st.SearchStrategy[QuantSpec]:
        values = st.fixed_dictionaries({f["name"]: value(f) for f in method["fields"]})
        fields = {f["name"]: f for f in method["fields"]}
        made = lambda params, kv, head: QuantSpec(method["name"], tuple(sorted(completed(fields, params).items())), kv, head)  # noqa: E731
        return st.builds(made, values, st.sampled_from([16, 8, 4, 2]), st.sampled_from([16, 8, 4]))

    return st.sampled_from(METHODS).flatmap(of)


@given(specs(), st.lists(specs(), max_size=4))
@settings(max_examples=60, deadline=None)
def test_a_state_comes_back_as_it_was(spec: QuantSpec, compared: list[QuantSpec]) -> None:
    options = OPTIONS | {"seed": 3, "sequences": 8, "kv_bits": 4}
    text = query("weights", "layers.1.mlp.up_proj", "demo", spec, options, compared, METHODS)
    found = parse(parse_qsl(text, keep_blank_values=True), METHODS, TABS)
    assert not found.wrong and (found.tab, found.layer, found.model, found.method) == ("weights", "layers.1.mlp.up_proj", "demo", spec.method)
    assert (
        completed(fields_of(spec.method, METHODS), found.params) == dict(spec.params)
        and found.options == {"seed": 3, "sequences": 8, "kv_bits": 4}
        and found.compared == tuple(compared)
    )


def test_a_link_carries_what_the_tab_is_set_to() -> None:
    part = gr.Slider(1, 43, 1, step=1), gr.Radio([2, 3, 4], value=4), gr.Checkbox(True), gr.Textbox("x"), gr.Number(0, minimum=0, precision=0)
    fields = {"stepper": dict(zip(("step", "bits", "symmetric", "prompt", "seed"), map(settable, part), strict=True))}
    own = {"step": 13, "bits": 3, "symmetric": False, "prompt": "a: b&c", "seed": 7}
    text = query("stepper", "", "demo", QuantSpec("none"), OPTIONS, [], METHODS, own)
    found = parse(parse_qsl(text, keep_blank_values=True), METHODS, ["stepper"], fields)
    assert found.own == own and not found.wrong
    assert parse(parse_qsl(text), METHODS, ["stepper", "text"], {"text": fields["stepper"]}).own == {}, "of another tab"
    for name, value in (("step", "44"), ("step", "1.5"), ("bits", "5"), ("symmetric", "1"), ("seed", "-1")):
        found = parse([("tab", "stepper"), (f"stepper.{name}", value)], METHODS, ["stepper"], fields)
        assert found.own == {} and found.wrong == (f"stepper.{name} {value!r}",)


@given(st.lists(st.tuples(st.sampled_from(["tab", "layer", "model", "method", "bits", "with", "seed", "kv_bits", "evaluation", "x"]), st.text(max_size=50))))
@settings(max_examples=200, deadline=None)
def test_no_link_breaks_the_page(pairs: list[tuple[str, str]]) -> None:
    found = parse(pairs, METHODS, TABS)
    assert found.tab in ("", *TABS) and len(found.compared) <= 4


@pytest.mark.parametrize("pair", [("bits", "11"), ("method", "magic"), ("tab", "admin"), ("seed", "-1"), ("with", "rtn:bits=nan"), ("evaluation", "pasted")])
def test_what_a_link_must_not_ask_for_is_named(pair: tuple[str, str]) -> None:
    found = parse([("method", "rtn"), pair], METHODS, TABS)
    assert len(found.wrong) == 1 and pair[1] in found.wrong[0]


def test_a_text_of_ones_own_is_no_mistake_of_a_link() -> None:
    wrong = parse([("method", "rtn"), ("evaluation", "pasted")], METHODS, TABS).wrong
    assert "paste it again" in (line := opened_line(wrong)) and "error" not in line and "does not exist" not in line
    both = opened_line([*wrong, "bits '11'"])
    assert "error" in both and "was ignored: bits" in both and "paste it again" in both and "paste it again" not in opened_line([])


def test_words_are_read_back() -> None:
    for report in ALL:
        assert spec_from(words(report.experiment.spec, METHODS), METHODS) == report.experiment.spec
    assert words(ALL[1].experiment.spec, METHODS) == "rtn:bits=8:granularity=channel"


def test_shelf_finds_a_seed_only_at_its_own_options() -> None:
    shelf, options = Shelf(ALL), {name: OPTIONS[name] for name in ("evaluation", "calibration", "sequences", "seed")}
    assert shelf.find("demo", ALL[3].experiment.spec, options) is ALL[3]
    assert shelf.find("demo", ALL[3].experiment.spec, options | {"seed": 1}) is None and shelf.find("other", ALL[3].experiment.spec, options) is None


def test_csv_and_json_hold_every_number() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(ALL))))
    assert len(rows) == sum(not isinstance(m.value, list | dict) for r in ALL for m in r.measurements)
    row = next(r for r in rows if r["configuration"] == ALL[2].name and r["metric"] == "perplexity_delta")
    assert float(row["value"]) == ALL[2].value("perplexity_delta") and float(row["low"]) == ALL[2].find("perplexity_delta").low and row["device"]
    assert (row["interval"], row["windows"], row["n"], row["seed"]) == ("95%", "16", "8176", "") and "16 of 98 windows" in row["text"]
    first = next(r for r in rows if r["layer"])
    assert not any(r["layer"] for r in rows[: rows.index(first)]) and all(r["layer"] for r in rows[rows.index(first) :]), "the whole model comes first"
    of = {r["metric"]: r for r in rows if r["configuration"] == ALL[3].name}
    assert of["decode_tokens_per_second"]["interval"].startswith("20th") and of["time_to_first_token"]["interval"].startswith("least")
    assert (of["kld_floor"]["windows"], of["perplexity"]["seed"], of["bits_per_weight"]["interval"]) == ("8", "0", "")
    assert "seed 0" in of["kld_max"]["calibration"]
    assert of["perplexity"]["method"] == "gptq" and "bits=4" in of["perplexity"]["params"] and "group_size=64" in of["perplexity"]["params"]

    for row in rows:
        numbers = [row[name] for name in ("value", "low", "high", "windows", "n", "kv_bits") if row[name]]
        assert [float(number) for number in numbers] and bool(row["value"]) != bool(row["words"]), "a column of numbers holds nothing else"
        assert all(row[name] for name in ("model", "revision", "device", "date", "kernel", "method", "text", "torch", "transformers", "origin"))
        assert row["written_by"] == written_by() and row["command"] == command_of(next(r for r in ALL if r.name == row["configuration"]), whole=True)

    def shown(**provenance: bool) -> str:
        return next(csv.DictReader(io.StringIO(as_csv([dataclasses.replace(ALL[2], provenance=provenance)]))))["origin"]

    assert shown(recorded=True) == "recorded" and shown(from_store=True) == "stored" and shown(measured_now=["size"], dates={"size": ""}) == "measured now"
    assert shown(measured_now=["speed"], dates={"size": "", "speed": ""}) == "partly measured now, partly stored"

    def on_page(**provenance: bool) -> str:
        return source(dataclasses.replace(ALL[2], provenance=provenance))

    both = ({"recorded": True}, {"from_store": True}, {"measured_now": ["size"], "dates": {"size": ""}}, {"measured_now": [], "dates": {"size": ""}},
            {"measured_now": ["speed"], "dates": {"size": "", "speed": ""}})  # fmt: skip
    assert all(shown(**p) == on_page(**p) for p in both), "the page and the file say the same"
    assert on_page(unsaved="not stored: disk full") == "measured now, not stored: disk full"
    read = json.loads(as_json(ALL))
    assert read[3]["written_by"] == written_by() and read[3]["command"] == command_of(ALL[3], whole=True)
    assert set(read[3]["intervals"]) == {m.metric for m in ALL[3].measurements if m.low is not None} and read[3]["intervals"]["kld_mean"] == "95%"
    assert [report_from({k: d[k] for k in ("experiment", "measurements", "provenance")}) for d in read] == ALL


@pytest.mark.parametrize("kind", ["csv", "json", "html"])
def test_a_file_that_was_taken_away_leaves_nothing_behind(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shelf = Shelf(ALL)
    files = file_of(SimpleNamespace(shell=SimpleNamespace(shelf=shelf)), kind, [r.key for r in shelf.first()], "")
    assert ALL[1].name in Path(next(files)).read_text()
    assert next(files, None) is None and list(tmp_path.iterdir()) == []


def test_html_needs_nothing_else_and_escapes_names() -> None:
    evil = "</script><script>alert(1)</script>"
    experiment = dataclasses.replace(ALL[1].experiment, model=ModelRef(evil, "0"))
    bad = dataclasses.replace(ALL[1], experiment=experiment, provenance=ALL[1].provenance | {"label": evil, "device": evil})
    page = as_html([ALL[0], bad], "layers.3.mlp.down_proj", "", "")
    assert evil not in page and "src=" not in page.split("<script>")[0] and page.count("Plotly.newPlot(name") == 1
    assert all(f"id='{name}'" in page for name in ("quality", "weights", "memory")) and "python -m explorer run" in page
