"""The list of accelerators: whose data sheet a board's name means, and memory as drivers report it."""

from __future__ import annotations

from explorer.accelerators import ACCELERATORS
from explorer.boards import sheet_of

REPORTED = {
    "NVIDIA L40": 864, "NVIDIA L40S": 864, "NVIDIA L4": 300, "Tesla T4": 320, "NVIDIA A10G": 600, "NVIDIA A100-SXM4-80GB": 2039, "NVIDIA A100-SXM4-40GB": 1555,
    "NVIDIA A100-PCIE-40GB": 1555, "NVIDIA A100 80GB PCIe": 1935, "NVIDIA H100 80GB HBM3": 3350, "NVIDIA H100 PCIe": 2000, "NVIDIA H100 NVL": 3900,
    "NVIDIA H200": 4800, "NVIDIA B200": 8000, "NVIDIA GeForce RTX 4090": 1008, "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": 1792,
    "NVIDIA GH200 480GB": None, "NVIDIA T400 4GB": None, "NVIDIA GeForce RTX 4090 Laptop GPU": None, "NVIDIA GeForce RTX 3060 Ti": None,
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb": None, "": None,
}  # fmt: skip


def test_a_board_has_the_bandwidth_of_its_own_name() -> None:
    """By whole words: an L40 is no L4, a GH200 no H200; who is nobody's namesake is measured."""
    assert {name: (sheet_of(name) or (name, None))[1] for name in REPORTED} == REPORTED
    assert len({a.name for a in ACCELERATORS}) == len(ACCELERATORS) and all(a.source and a.compute > 0 for a in ACCELERATORS)
    assert all(0.9 * a.memory * 1e9 < a.reported * 2**30 <= a.memory * 2**30 for a in ACCELERATORS), "no board reports more than its name in GiB"
    assert next(a for a in ACCELERATORS if a.name == "T4").bytes() < 0.9 * 15_843_721_216, "as torch reports of one"
