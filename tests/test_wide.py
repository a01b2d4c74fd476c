"""The table of a sweep: the same columns in the same order with their units, failures in it, and every number that a metric yields."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest

from explorer.__main__ import main
from explorer.recorded import SEEDS
from explorer.records import OUTSIDE, Measurement, Report, report_from
from explorer.table import comparison
from explorer.wide import FIXED, column, layer_names, rows, table

REPORTS = [report_from(entry) for entry in json.loads(SEEDS.read_text())]


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_columns_are_fixed_and_a_number_stands_beside_its_interval() -> None:
    """Whatever the first row had: the baseline's paired change has no interval."""
    several = [table(rows(part)).partition("\n")[0].split(",") for part in (REPORTS, REPORTS[::-1], REPORTS[2:3])]
    assert several[0] == several[1] and {tuple(names[: len(FIXED)]) for names in several} == {FIXED}
    at = FIXED.index("perplexity_delta_percent")
    assert FIXED[at : at + 3] == ("perplexity_delta_percent", "perplexity_delta_percent_low", "perplexity_delta_percent_high")
    one = read(table(rows(REPORTS)))[2]
    assert (one["model"], one["evaluation"], one["windows"], one["tokens"]) == ("demo", "bundled", "16", "8192") and one["revision"]
    assert (one["layers_quantized"], one["layers_kept"], one["calibration"]) == ("42", "0", "")
    assert read(table(rows(REPORTS)))[0]["layers_kept"] == "42" and read(table(rows(REPORTS)))[3]["calibration"] == "bundled"
    assert float(one["kld_mean_nats_low"]) < float(one["kld_mean_nats"]) < float(one["kld_mean_nats_high"]) and one["memory_codes_bytes"] == "4718592"


def test_layers_that_stayed_in_16_bits_are_counted() -> None:
    p = REPORTS[2].provenance
    kernels = dict(list(p["kernels"].items())[2:])
    short = dataclasses.replace(REPORTS[2], provenance=p | {"kernels": kernels, "skipped": {"a": "80 inputs", "b": "80 inputs", "lm_head": OUTSIDE}})
    assert [(row["layers_quantized"], row["layers_kept"]) for row in rows([short])] == [(40, 2)]


def test_a_metric_that_no_list_names_has_a_column() -> None:
    new = (Measurement("zeros", 1.5, "%", low=1.0, high=2.0), Measurement("zeros", 9.0, "%", layer="x"), Measurement("words", "none"))
    found = table(rows([REPORTS[0], dataclasses.replace(REPORTS[1], measurements=(*REPORTS[1].measurements, *new))]))
    assert "zeros_percent,zeros_percent_low,zeros_percent_high" in found and [row["zeros_percent"] for row in read(found)] == ["", "1.5"]
    assert column("weight_bytes") == "weight_bytes" and column("time_to_first_token", "s") == "time_to_first_token_seconds"


def test_what_cannot_run_has_a_row_and_nothing_that_ran_is_exit_code_2(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture) -> None:
    """No layer of this model has inputs that 128 divides."""
    argv = ["sweep", "--model", str(tiny_folder), "--methods", "rtn,gptq", "--bits", "4", "--group-size", "128", "--tokens", "256", "--length", "64"]
    argv += ["--store", str(tmp_path / "r.db"), "--seeds", "3,4", "--sequences", "1"]
    assert main(argv) == 2
    out, err = capsys.readouterr()
    base, *failed = read(out)
    assert [row["label"] for row in failed] == ["RTN 4-bit g128", "GPTQ 4-bit g128", "GPTQ 4-bit g128"] and [row["seed"] for row in failed] == ["", "3", "4"]
    assert all(row["error"] and row["model"] == base["model"] and "group_size=128" in row["params"] and not row["kld_mean_nats"] for row in failed)
    assert not base["error"] and err.count("could not run") == 3


def test_a_metric_that_no_list_names_has_a_row_on_the_page() -> None:
    new = dataclasses.replace(REPORTS[1], measurements=(*REPORTS[1].measurements, Measurement("zeros", 1.5, "%", low=1.0, high=2.0)))
    page = comparison([REPORTS[0], new], live=False)
    assert "Zeros <small>%</small>" in page and "1.50</span>" in page and "Zeros" not in comparison(REPORTS[:2], live=False)
    assert page.count("Memory of codes") == 1 and page.count(">Perplexity<") <= 1


def test_a_size_that_is_exactly_the_same_gets_no_sign() -> None:
    """The cache of the timed loop is that of 16 bits: neither better, nor worse, nor about equal."""
    page = comparison(REPORTS[:3], live=False)
    line = page[page.index("KV cache of the timed loop") :].split("</tr>")[0]
    assert line.count("<td class=''") == 3 and "<td class='better'" in page[page.index("All weights in memory") :].split("</tr>")[0]


def test_layers_are_named_once_in_their_order() -> None:
    def of(*layers: str) -> Report:
        return dataclasses.replace(REPORTS[1], measurements=tuple(Measurement("weight_error", 0.1, layer=layer) for layer in layers))

    assert layer_names([of("b", "", "a", "b"), of("c", "a")]) == ["b", "a", "c"] and layer_names([]) == []
