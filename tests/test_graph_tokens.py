"""The comparison of a captured loop with the CPU's, which a GPU session runs: on a pretended GPU, and with faults that it must see."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pretended_gpu import gpu  # noqa: F401 - a fixture

from explorer.decode import Decoder
from tests import graph_tokens


def only(folder: Path, device: torch.device, *configuration: object) -> dict:
    (row,) = graph_tokens.compared(str(folder), device, 4, (configuration,))
    return row


@pytest.mark.parametrize("kv_bits", [16, 4])
def test_a_graph_gives_what_the_cpu_gives(kv_bits: int, tiny_folder: Path, gpu: torch.device) -> None:  # noqa: F811
    row = only(tiny_folder, gpu, "none", {}, kv_bits)
    assert row["ok"] and row["captured"] and row["graph"] == 0 and row["other_tokens"] == 0


def test_a_step_that_reads_the_wrong_place_is_seen(tiny_folder: Path, gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """A replay whose logits are of another token; a device that is not captured at all."""
    replayed = Decoder.step

    def stale(decoder: Decoder) -> None:
        if decoder.graph is not None:
            decoder.token.fill_(1)
        replayed(decoder)

    monkeypatch.setattr(Decoder, "step", stale)
    row = only(tiny_folder, gpu, "none", {}, 16)
    assert row["captured"] and not row["ok"] and row["graph"] > graph_tokens.GRAPH
    row = only(tiny_folder, torch.device("cpu"), "none", {}, 16)
    assert not row["ok"] and "no graphs" in row["why"] and row["graph"] == row["cpu"] == 0
