"""Every metric that is measured has its words in one place, no view has words of its own, and results do not depend on them."""

from __future__ import annotations

import ast
import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest

from explorer import closure, export, report_page, vocabulary
from explorer.chips import kind_of
from explorer.closure import modules_in
from explorer.findings import counted, doubt
from explorer.gaps import absent
from explorer.learn.charts import title
from explorer.recorded import SEEDS, ladder, survey
from explorer.records import Measurement, report_from
from explorer.table import comparison
from explorer.vocabulary import FAMILY, LOOP, TERMS, TEXT, TOGETHER, TOKENS, WINDOWS, Term, term
from explorer.wide import rows, table

ROOT = Path(__file__).parent.parent / "explorer"
SEED = [report_from(data) for data in json.loads(SEEDS.read_text())]
MEASURED = [m for report in (*SEED, *survey().values(), *ladder()) for m in report.measurements]
OWN = {  # where words stand beside a metric's name all the same
    "saving/__init__.py": "the card in a checkpoint; tasks import it, and recorded results hold while it stays as it is",
    "figures/divergence.py": "an axis, which says that it is a mean and log",
    "figures/quality.py": "an axis, on which only increases have a place",
    "figures/tradeoffs.py": "axes that turn a rate into a time or have a logarithm, and a hover of few words",
    "figures/memory.py": "parts of a bar whose title says memory",
    "figures/sensitivity.py": "a measure of a layer alone, by the same name",
    "ui/tabs/layers/__init__.py": "a measure of a layer alone, by the same name",
}


def yielded(files: str = "*") -> set[str]:
    """The names that the files of metrics give to what they measure."""
    calls = [node for path in (ROOT / "metrics").glob(f"{files}.py") for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id in ("Measurement", "found", "speedup")]
    return {c.args[0].value for c in named if isinstance(c.args[0], ast.Constant)}


def test_every_metric_that_is_measured_has_its_words_and_no_other() -> None:
    looped = {"kld_median", "kld_p99", "kld_windows", "nll_delta_windows"}  # named in a loop over them
    assert {m.metric for m in MEASURED} <= set(TERMS) and yielded() | looped == set(TERMS)
    assert len(TERMS) > 45 and len({one.title for one in TERMS.values()}) == len(TERMS)


def test_every_metric_is_dated_by_the_file_that_measures_it() -> None:
    assert set(FAMILY) == set(TERMS) and set(TOGETHER) == set(SEED[0].provenance["dates"])
    assert all(set(names.split()) >= yielded(family) for family, names in TOGETHER.items())
    dates = {family: f"2026-01-{day:02}" for day, family in enumerate(TOGETHER, 1)}
    report = dataclasses.replace(SEED[3], provenance={"dates": dates, "date": "2026-02-01", "measured_now": ["speed"], "device": "cpu"})
    rows = list(csv.DictReader(io.StringIO(export.as_csv([report]))))
    assert rows and all(row["date"] == dates[FAMILY[row["metric"]]] for row in rows)
    assert {(row["origin"], FAMILY[row["metric"]] == "speed") for row in rows} == {("measured now", True), ("stored", False)}
    assert "2026-01-01" in comparison([report]) and "2026-01-04" in comparison([report]), "and so under the letters of the page"


def test_numbers_of_the_model_are_told_to_whoever_has_never_quantized() -> None:
    for name in {m.metric for m in MEASURED if not m.layer and isinstance(m.value, int | float)}:
        assert TERMS[name].help.endswith(".") and len(TERMS[name].help) < 160, name


def test_words_agree_with_what_was_measured() -> None:
    """The unit that stands for a measurement is that of the measurements, and what has no interval never has one."""
    for m in MEASURED:
        one = TERMS[m.metric]
        assert one.unit == m.unit and (m.low is None or one.bounds), m.metric
        assert not one.signed or one.unit in ("%", "percentage points")
    timed = [one for one in TERMS.values() if one.source == LOOP]
    assert {one.metric for one in timed} >= {"decode_speedup", "decode_tokens_per_second", "time_to_first_token"} and all(one.by_device for one in timed)


def test_no_view_has_words_of_its_own_for_a_metric() -> None:
    """Nowhere does prose stand right beside a metric's name: as a value under it, after it or before it in a list, or in a call."""

    def text(node: ast.AST | None) -> str:
        node = node.elts[0] if isinstance(node, ast.Tuple) and node.elts else node
        return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""

    known = {words for one in TERMS.values() for words in (one.unit, one.called, one.title)} - {""}
    found: dict[str, list[str]] = {}
    for path in {*ROOT.rglob("*.py")} - {Path(vocabulary.__file__)}:
        for node in ast.walk(ast.parse(path.read_text())):
            pairs: list[tuple] = []
            if isinstance(node, ast.Dict):
                pairs = list(zip(node.keys, node.values, strict=True))
            elif isinstance(node, ast.Tuple | ast.List):
                pairs = list(zip(node.elts, node.elts[1:], strict=False))
            elif isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in ("Figure", "Term", "Measurement")):
                pairs = list(zip(node.args, node.args[1:], strict=False))
            for pair in pairs:
                one, other = map(text, pair)
                if (one in TERMS and other not in TERMS and (" " in other or other in known)) or (other in TERMS and " " in one):
                    found.setdefault(str(path.relative_to(ROOT)), []).append(f"{one}: {other}")
    assert {name: said for name, said in found.items() if name not in OWN} == {} and set(found) == set(OWN)


def test_words_decide_no_result() -> None:
    parts = ("explorer.metrics", "explorer.methods", "explorer.tasks", "kernels")
    assert "explorer.vocabulary" not in closure.closure("explorer.experiment", *(name for part in parts for name in modules_in(part)))


def test_a_new_metric_with_its_words_is_in_every_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry: a row with title, unit, digits and tooltip, columns of both files, what its interval is over, a doubt, a sentence on a gap, an axis."""
    new = Term("zeros", "Weights that became zero", "How many weights are lost.", "%", "lost weights", 1, signed=True, bounds=TOKENS, source=LOOP)
    monkeypatch.setitem(vocabulary.TERMS, "zeros", new)
    added = (Measurement("zeros", 1.5, "%", low=1.0, high=2.0, n=7), Measurement("decode_waited", 33.0, "%"))
    measured = dataclasses.replace(SEED[1], measurements=(*(m for m in SEED[1].measurements if m.metric != "decode_waited"), *added))
    page = comparison([SEED[0], measured], live=False)
    row = next(part for part in page.split("<tr>") if "became zero" in part)
    assert "How many weights are lost." in row and "became zero <small>%</small>" in row and "<span>+1.5</span>" in row and "1.0 to 2.0" in row
    assert "20th to 80th percentile 1.0 to 2.0 % over 7 values" in row and "threads waited 33%" in row
    assert row in report_page.as_html([SEED[0], measured], "", page, "")
    line = next(line for line in csv.DictReader(io.StringIO(export.as_csv([measured]))) if line["metric"] == "zeros")
    assert (line["unit"], line["interval"], line["windows"]) == ("%", "20th to 80th percentile of tokens", "") and "threads waited" in line["note"]
    assert "zeros_percent,zeros_percent_low,zeros_percent_high" in table(rows([measured]))
    assert absent([SEED[0], measured], ["zeros"]) == f"{SEED[0].name}: lost weights not measured." and title("zeros", [measured]) == "lost weights, %"


def test_a_metric_without_words_has_its_name_and_its_unit() -> None:
    one = term("zeros_left", "%")
    assert (one.title, one.called, one.shown, one.bounds, one.by_device) == ("Zeros left", "zeros left", "%", WINDOWS, False)
    found = Measurement("zeros_left", 1.5, "%", n=8176)
    assert counted(found, SEED[1]) == "over 8,176 values" and doubt(SEED[1], "zeros_left") == "" and kind_of(found, SEED[1]) == "measured"
    assert TERMS["kld_windows"].source == TEXT
