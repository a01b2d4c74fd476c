"""Layers that a method cannot round: named with the reason wherever the report is shown; a run that has no others is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from explorer.commands.run import table
from explorer.detectors import named, sentence, verdicts
from explorer.experiment import LocalRunner, last_report
from explorer.findings import SUSPICIOUS
from explorer.loader import Loader
from explorer.records import InputError, Progress
from explorer.store import Store

FEW = {"tokens": 1024, "length": 256}  # of random weights any text says as much


@pytest.fixture(scope="module")
def loader() -> Loader:
    return Loader(torch.device("cpu"))


def test_layers_that_no_group_divides_are_skipped_with_a_reason(store: Store, loader: Loader, tiny_folder: Path) -> None:
    report = last_report(LocalRunner(store, loader).run(str(tiny_folder), "rtn", {"bits": 4, "granularity": "group", "group_size": 64}, **FEW))
    skipped = report.provenance["skipped"]
    assert set(skipped) == {"layers.0.mlp.down_proj", "layers.1.mlp.down_proj", "lm_head", "model.embed_tokens"}
    assert "does not divide" in skipped["layers.0.mlp.down_proj"]
    assert 4.25 < report.value("bits_per_weight") < 16 and set(report.refused()) == {"layers.0.mlp.down_proj", "layers.1.mlp.down_proj"}
    why = "2 of 14 layers (0 down_proj and 1 down_proj) in 16 bits: group size 64 does not divide its 80 inputs"
    assert f"{'kept':28s} {why}" in table(report)
    found = verdicts(report, None)
    assert next(f for f in found if f.name == "skipped").level == SUSPICIOUS and not named(found)
    assert sentence(found).startswith(f"Suspicious: {why}.") and "what so few bits cost" not in sentence(found)


def test_a_run_that_would_quantize_nothing_is_refused_before_it_reads_text(store: Store, loader: Loader, tiny_folder: Path) -> None:
    seen = []
    with pytest.raises(InputError, match=r"GPTQ 4-bit g128 quantizes none of the 14 layers: group size 128 .* Choose group size 32 or group size 64 or"):
        asked = str(tiny_folder), "gptq", {"bits": 4, "group_size": 128}
        seen += (e.stage for e in LocalRunner(store, loader).run(*asked, **FEW) if isinstance(e, Progress))
    assert "quantize" not in seen
