"""What a report says of its own circumstances: what was read, and whose word stands where metrics were measured apart."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import torch

from explorer.commands.run import table
from explorer.metrics import metrics
from explorer.provenance import calibrated, merged, turning
from explorer.recorded import SEEDS
from explorer.records import TextRef, report_from
from explorer.table import kernel


def test_calibration_is_told_as_read() -> None:
    asked, few = TextRef("bundled", "a", 1024 * 512, 512), torch.zeros(104, 512)
    assert "53,248 tokens in windows of 512, seed 0; 524,288 were asked for" in calibrated(few, asked)
    assert "asked" not in calibrated(few, dataclasses.replace(asked, tokens=104 * 512)) and calibrated(None, asked) == "none read"


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
