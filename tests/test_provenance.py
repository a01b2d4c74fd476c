"""What a report says of its own circumstances: what was read, and whose word stands where metrics were measured apart."""

from __future__ import annotations

import dataclasses

import torch

from explorer.metrics import metrics
from explorer.provenance import calibrated, merged
from explorer.records import TextRef


def test_calibration_is_told_as_read() -> None:
    asked, few = TextRef("bundled", "a", 1024 * 512, 512), torch.zeros(104, 512)
    assert "53,248 tokens in windows of 512, seed 0; 524,288 were asked for" in calibrated(few, asked)
    assert "asked" not in calibrated(few, dataclasses.replace(asked, tokens=104 * 512)) and calibrated(None, asked) == "none read"


def test_a_report_tells_the_circumstances_of_this_device_and_every_date() -> None:
    told = {name: {"kernels": name, "date": name} for name in metrics()}
    assert merged(told)["kernels"] == "speed" and merged(told)["dates"] == {name: name for name in metrics()}
    del told["speed"], told["size"]
    assert merged(told)["kernels"] == "training" and merged({name: told[name] for name in ("activations", "depth")})["kernels"] == "depth"
