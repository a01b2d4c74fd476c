"""Tiles of kernels by device, shape and rows, from JSON files that `python -m kernels tune` writes. Nothing here runs or tunes a kernel."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from kernels.timing import device_name

FOLDER = Path(__file__).parent.parent / "assets" / "kernels"


class Tile(NamedTuple):
    """How a product is cut up: rows and columns of y a program (0 rows: not at all, a dequantized copy is multiplied), splits of K, warps a
    program, stages of its pipeline.
    """

    rows: int
    columns: int
    splits: int
    warps: int
    stages: int


def file_name(device: str) -> str:
    """The JSON file of a device by its name, such as "nvidia-h100-80gb-hbm3.json"."""
    return "-".join("".join(c if c.isalnum() else " " for c in device.lower()).split()) + ".json"


def bucket(m: int) -> int:
    """Rows that share a tile: the next power of two."""
    return 1 << (m - 1).bit_length()


def key(op: str, bits: int, n: int, k: int, group: int, m: int, form: str = "") -> str:
    """The name of a row of the table. form: what else makes a kernel another one, so that its best tile is its own."""
    return f"{op} {bits} {n} {k} {group} {bucket(m)}{form and ' '}{form}"


@cache
def tiles(device: str) -> dict[str, Tile]:
    """The table of a device, empty when it was never tuned."""
    path = FOLDER / file_name(device)
    return {row["key"]: Tile(*row["tile"]) for row in json.loads(path.read_text())["rows"]} if path.is_file() else {}


@cache
def _name(device: torch.device) -> str:
    return device_name(device)


def lookup(device: torch.device, op: str, bits: int, n: int, k: int, group: int, m: int, form: str = "") -> Tile | None:
    """The tuned tile, or None: then the op takes its default. On a CPU only `read_out` has any."""
    return tiles(_name(device)).get(key(op, bits, n, k, group, m, form))


def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; an H100's where there is none, so that tests without one cut products up as it would."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def launched(device: torch.device, name: str, default: Callable[[], Tile], launch: Callable[[Tile], Any]) -> Any:
    """launch(tile) with the tuned tile of a key; where there is none, or where it needs more than the GPU has as another Triton compiles it, with the
    default. A tile that does not fit is not tried again.
    """
    found = tiles(_name(device)).get(name)
    if found is not None:
        try:
            return launch(found)
        except triton.OutOfResources:
            tiles(_name(device)).pop(name, None)
    return launch(default())
