"""What a report says of its own circumstances: what was read, and whose word stands where metrics were measured apart."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import torch

from explorer.commands.run import table
from explorer.metrics import metrics
from explorer.models import DEMO
from explorer.provenance import FEW, calibrated, inverted, merged, turning
from explorer.recorded import SEEDS
from explorer.records import QuantSpec, TextRef, report_from
from explorer.table import kernel


def test_calibration_is_told_as_read() -> None:
    asked, few = TextRef("bundled", "a", 1024 * 512, 512), torch.zeros(104, 512)
    assert "53,248 tokens in windows of 512, seed 0; 524,288 were asked for" in calibrated(few, asked)
    assert "asked" not in calibrated(few, dataclasses.replace(asked, tokens=104 * 512)) and calibrated(None, asked) == "none read"


def test_too_few_tokens_for_a_gram_matrix_that_is_inverted_are_told() -> None:
    """From four tokens an input on nothing is said; what inverts no such matrix gets no such note."""
    asked, read = TextRef("bundled", "a", 8 * 512, 512), torch.zeros(8, 512)
    said = "; the Gram matrix of layers with 1,025 inputs comes from 4,096 tokens, fewer than 4 x 1,025: damping decides; GPTQ's authors read 128 x 2,048"
    assert calibrated(read, asked, inverted=1025) == calibrated(read, asked) + said and "Gram" not in calibrated(read, asked, inverted=1024)
    originals = {name: torch.nn.Linear(width, 8, bias=False) for name, width in (("layers.0.mlp.up_proj", 64), ("layers.0.mlp.down_proj", 96))}
    model = SimpleNamespace(config=SimpleNamespace(to_dict=dict))
    subject = SimpleNamespace(originals=originals, layers=dict.fromkeys(originals), loaded=SimpleNamespace(model=model))
    rules = QuantSpec.of("mixed", rules="*up_proj: gptq group_size=32; *: awq group_size=32")
    for spec, widest in (
        (QuantSpec.of("gptq"), 96),
        (QuantSpec.of("quip"), 96),
        (QuantSpec.of("quip", feedback=False), 0),
        (QuantSpec.of("awq"), 0),
        (rules, 64),
    ):
        assert inverted(subject, spec) == widest, spec


def test_the_bundled_model_has_enough_tokens() -> None:
    """16 windows of 512 tokens for 1,024 inputs: twice what the note asks for."""
    config = json.loads((DEMO / "config.json").read_text())
    assert 16 * config["max_position_embeddings"] >= FEW * config["intermediate_size"]


def test_a_report_tells_the_circumstances_of_this_device_and_every_date() -> None:
    told = {name: {"kernels": name, "date": name} for name in metrics()}
    assert merged(told)["kernels"] == "speed" and merged(told)["dates"] == {name: name for name in metrics()}
    del told["speed"], told["size"]
    assert merged(told)["kernels"] == "training" and merged({name: told[name] for name in ("activations", "depth")})["kernels"] == "depth"


def test_a_report_says_what_turned_the_inputs() -> None:
    report = report_from(json.loads(SEEDS.read_text())[1])
    layers = {name: SimpleNamespace(turned_by=told) for name, told in (("q", "hadamard (native)"), ("k", "hadamard (native)"), ("v", ""))}
    told = turning(SimpleNamespace(layers=layers))
    assert told == "inputs turned by hadamard (native)" and turning(SimpleNamespace(layers={})) == ""
    turned = dataclasses.replace(report, provenance=report.provenance | {"kernel_turns": told})
    for shown in (table, kernel):
        assert told in shown(turned) and told not in shown(report)
