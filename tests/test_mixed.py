"""Mixed assignment: which rule serves a layer, what the report says, and that bad rules are sentences."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from explorer.experiment import Loader, LocalRunner, last_report
from explorer.methods import build, spec_of
from explorer.records import InputError
from explorer.store import Store

RULES = "*.0.*v_proj: rtn bits=8 granularity=channel\n*.self_attn.*: gptq bits=3 group_size=32\n*gate_proj: none\n*up_proj: nf4"


def test_the_first_rule_that_matches_decides() -> None:
    mixed = build("mixed", {"rules": RULES})
    assert mixed.of("layers.0.self_attn.v_proj") == build("rtn", {"bits": 8, "granularity": "channel"})
    assert mixed.of("layers.1.self_attn.v_proj") == build("gptq", {"bits": 3, "group_size": 32})
    assert mixed.of("layers.0.mlp.down_proj") is None and "no rule" in mixed.refuses((64, 64), "layers.0.mlp.down_proj")
    assert mixed.reads_inputs() and not build("mixed", {"rules": "*: rtn bits=4"}).reads_inputs()


def test_semicolons_and_spaces_make_no_difference() -> None:
    assert spec_of(build("mixed", {"rules": " *: rtn bits=4 ;\n\n x: nf4"})) == spec_of(build("mixed", {"rules": "*: rtn bits=4\nx: nf4"}))


def test_layers_get_what_their_rule_says(store: Store, tiny_folder: Path) -> None:
    runner = LocalRunner(store, Loader(torch.device("cpu")))
    report = last_report(runner.run(str(tiny_folder), "mixed", {"rules": RULES}, sequences=1, tokens=2048))
    kernels, skipped = report.provenance["kernels"], report.provenance["skipped"]
    assert kernels["layers.0.self_attn.v_proj"] == "int8_matmul (cpu)" and kernels["layers.1.self_attn.v_proj"] == "int4_matmul (cpu)"
    assert skipped["layers.0.mlp.gate_proj"]
    assert skipped["layers.1.mlp.down_proj"] == "no rule names it"
    eight, three = (report.value("weight_error", f"layers.{i}.self_attn.v_proj") for i in (0, 1))
    assert eight < 0.02 < three
    again = last_report(runner.run(str(tiny_folder), "mixed", {"rules": RULES.replace("bits=3", "bits=4")}, sequences=1, tokens=2048))
    assert not again.provenance["from_store"] and again.value("weight_error", "layers.1.self_attn.v_proj") < three


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        ("", "at least one rule"),
        ("rtn bits=4", "does not read as"),
        ("*: rtn 4", "does not read as"),
        ("*:", "one layer at a time"),
        ("*: qat bits=2", "one layer at a time"),
        ("*: mixed", "one layer at a time"),
        ("*: magic", "no method 'magic'"),
        ("*: rtn bits=9", "bits cannot be"),
        ("*: rtn colour=red", "no parameter 'colour'"),
        ("x" * 10_001, "at most 10,000"),
        (4, "must be a text"),
    ],
)
def test_bad_rules_are_a_sentence(rules: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        build("mixed", {"rules": rules})
    assert str(caught.value).endswith(".")
