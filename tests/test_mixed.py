"""Mixed assignment: which rule serves a layer, what the report says, and that bad rules are sentences."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from explorer.experiment import LocalRunner, last_report
from explorer.input_statistics import InputStatistics
from explorer.loader import Loader
from explorer.methods import build, spec_of
from explorer.methods.mixed import parsed
from explorer.records import InputError
from explorer.store import Store
from tests.measuring import ON_CPU

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
    assert (kernels["layers.0.self_attn.v_proj"], kernels["layers.1.self_attn.v_proj"]) == (f"int8_matmul ({ON_CPU})", f"int4_matmul ({ON_CPU})")
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
        ("*v_proj: kquant format=q4_k_m; *: rtn bits=4", "names a mixture, which has rules of its own"),
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


def test_awq_of_several_widths_shares_one_scale(draw: torch.Generator) -> None:
    """q and k at 3 bits, v at 4: layers that read the same input divide it by the same numbers, or the norm before could not take them."""
    weights = {name: torch.randn(64, 64, generator=draw) for name in ("q_proj", "k_proj", "v_proj")}
    inputs = InputStatistics.of(torch.randn(256, 64, generator=draw) * torch.linspace(0.2, 4, 64))
    rows = torch.arange(64)
    made = dict(build("mixed", {"rules": "*v_proj: awq bits=4; *: awq bits=3"}).quantize_together(weights, inputs, rows))
    assert list(made) == list(weights) and [q.bits for q in made.values()] == [3, 3, 4]
    scales = [q.channel_scale for q in made.values()]
    assert scales[0] is not None and all(torch.equal(scales[0], scale) for scale in scales) and scales[0].std() > 0.1
    alike = dict(build("mixed", {"rules": "*: awq bits=3"}).quantize_together(weights, inputs, rows))
    plain = dict(build("awq", {"bits": 3}).quantize_together(weights, inputs, rows))
    assert all(torch.equal(alike[name].codes, plain[name].codes) and torch.equal(alike[name].channel_scale, plain[name].channel_scale) for name in weights)
    split = dict(build("mixed", {"rules": "*v_proj: rtn bits=4; *: awq bits=3"}).quantize_together(weights, inputs, rows))
    assert all(q.channel_scale is None for q in split.values()), "nothing can divide the input of some of its readers only"


@pytest.fixture
def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_rules_of_many_visitors_do_not_pile_up() -> None:
    """Parsed rules are larger than their text; a worker lives for weeks."""
    for k in range(50):
        parsed(f"*{k}: rtn bits=4")
    assert parsed.cache_info().currsize <= 16
