"""Searches tiles, and on a CPU the rows from which weights are read out, by timing them; writes the table that kernels look them up in."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from kernels import fp4_product, hadamard, kv_attention, low_bit_matmul, read_out, scaled_matmul, table
from kernels.bench.measure import cases_of, rotated
from kernels.low_bit_cache import LowBitCache, unpacked
from kernels.op import Form, Op, Packed, compute_capability, ops
from kernels.table import Tile
from kernels.timing import time_call


def candidates(m: int, n: int, k: int, block: int, weight_only: bool) -> list[Tile]:
    """Tiles worth timing: of few rows the one height that holds them, or half where that is 64, split along K only while four steps a program are left."""
    heights = [max(8, 1 << (m - 1).bit_length())] if m <= 32 else [32, 64] if m <= 64 else [64, 128]
    heights = heights if weight_only else [max(16, height) for height in heights]
    splits = [s for s in (1, 2, 4, 8, 16) if s == 1 or (weight_only and m <= 64 and s <= -(-k // block) // 4)]
    widths, counts = ((32, 64, 128), (1, 2, 4, 8)) if weight_only else ((64, 128, 256), (4, 8))
    found = [Tile(rows, columns, s, warps, stages)
             for rows in heights for columns in widths for s in splits for warps in counts for stages in (2, 3, 4)
             if columns <= max(32, n) and rows * columns >= 32 * warps and not (weight_only and low_bit_matmul.warp_groups(columns, warps))]  # fmt: skip
    return [*found, low_bit_matmul.COPY] if weight_only and m >= 32 else found


def search(tiles: Iterable[Tile], seconds: Callable[[Tile, int], float]) -> tuple[Tile, float]:
    """(the fastest tile, its seconds). seconds(tile, samples) raises RuntimeError where a tile cannot run. All are timed briefly, the best four again.

    RuntimeError when none runs.
    """
    brief = []
    for tile in tiles:
        try:
            brief.append((seconds(tile, 5), tile))
        except RuntimeError:  # out of shared memory or registers
            continue
    if not brief:
        raise RuntimeError("no tile runs on this device")
    best = [tile for _time, tile in sorted(brief)[:4]]
    return min(((tile, seconds(tile, 20)) for tile in best), key=lambda found: found[1])


def in_turn(tiles: list[Tile], default: Tile, seconds: Callable[[Tile, int], float]) -> tuple[Tile, float]:
    """As `search`, first the shape of a tile with the splits nearest to the default's, then its splits: a tile takes a second to compile."""
    near = min({tile.splits for tile in tiles if tile.rows}, key=lambda splits: abs(splits - default.splits))
    tile, best = search([tile for tile in tiles if tile.splits == near or not tile.rows], seconds)
    others = [other for other in tiles if tile.rows and other.splits != near and other == tile._replace(splits=other.splits)]
    if not others:
        return tile, best
    return min((tile, best), search(others, seconds), key=lambda found: found[1])


class Tuned(NamedTuple):
    """What is tuned: its key in the table, the tiles to try, its default tile, and run(x, tensors, tile)."""

    key: str
    tiles: list[Tile]
    default: Tile
    run: Callable[[Tensor, dict[str, Tensor], Tile], Any]


def tuned(
    device: torch.device,
    shapes: Iterable[tuple[int, int]],
    rows: Iterable[int],
    samples_of: Callable | None = None,
    names: tuple[str, ...] = (),
    formats: tuple[str, ...] = (),
) -> Iterator[dict[str, Any]]:
    """Rows of the table for the products at shapes (N, K), of the named ops and formats where there are names, each as it is found. Block floats have
    tiles of their own on FP4 units only, elsewhere those of weight-only products.
    """
    seen = set[str]()
    for op in (op for op in ops().values() if op.bits and (not names or op.name in names)):
        for case in cases_of(op, shapes, sorted({table.bucket(m) for m in rows}), formats):
            x, weight = op.problem(case, torch.Generator().manual_seed(0))
            form = op.gpu[0]
            if not 0 < compute_capability(device) < form.capability and not form.refuses(weight):
                packed = form.pack(weight)
                yield from _searched(_product(op, form, x, packed, device), in_turn, x, packed, device, samples_of, seen)


def others(device: torch.device, samples_of: Callable | None = None, names: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """Rows of the table for attention over a low-bit cache and for the Hadamard transform, on the cases that they are timed on; as `tuned`."""
    seen = set[str]()
    for op in (op for op in ops().values() if op.name in (kv_attention.OP.name, hadamard.OP.name) and (not names or op.name in names)):
        for case in op.timed:
            x, operand = op.problem(case, torch.Generator().manual_seed(0))
            packed = op.gpu[0].pack(operand)
            found = _attention(x, packed, device) if op.name == kv_attention.OP.name else _turn(x, packed)
            yield from _searched(found, lambda tiles, default, seconds: search(tiles, seconds), x, packed, device, samples_of, seen)


def _searched(
    at: Tuned, searching: Callable, x: Tensor, packed: Packed, device: torch.device, samples_of: Callable | None, seen: set[str]
) -> Iterator[dict[str, Any]]:
    """One row, none where its key was seen. samples_of(key): a stand-in for seconds(tile, samples)."""
    if at.key in seen:
        return
    seen.add(at.key)
    seconds = samples_of(at.key) if samples_of else _seconds(rotated(x.bfloat16(), packed.tensors, device), at.run, device)
    tile, best = searching(at.tiles, at.default, seconds)
    yield {"key": at.key, "tile": list(tile), "us": best * 1e6, "default_us": seconds(at.default, 20) * 1e6}


def _seconds(copies: list, run: Callable, device: torch.device) -> Callable[[Tile, int], float]:
    return lambda tile, samples: time_call([partial(run, *copy, tile) for copy in copies], device, samples).median


def _product(op: Op, form: Form, x: Tensor, packed: Packed, device: torch.device) -> Tuned:
    """A product of x with packed weights on a device."""
    (m, k), t, x = x.shape, packed.tensors, x.to(device)
    if not op.activation:
        at, values = packed.meta[0], packed.meta[1]
        names = ("codes", "high", "scale", "zero", "codebook", "nest")

        def run(x: Tensor, t: dict[str, Tensor], tile: Tile) -> Tensor:
            return low_bit_matmul.launch(x, {name: t.get(name) for name in names}, at, values, tile)

        key, tiles = low_bit_matmul.table_key(at, "zero" in t, m), candidates(m, at.n, k, at.step, True)
        return Tuned(key, tiles, low_bit_matmul.default_of(x, at, "zero" in t), run)
    if form is fp4_product.FP4:
        n, (per, given) = len(t["codes"]), packed.meta
        key, tiles = fp4_product.table_key(t["codes"], m, per), fp4_product.candidates(m, n, k)
        return Tuned(key, tiles, fp4_product.default_of(x, t["codes"]), lambda x, t, tile: fp4_product.launch(x, t, per, given, tile))
    a = packed.meta[0]
    key, tiles = scaled_matmul.table_key(t["codes"], m, a, t["scale"], t.get("kept")), candidates(m, len(t["codes"]), k, 128, False)
    return Tuned(key, tiles, scaled_matmul.default_of(x, t, a), lambda x, t, tile: scaled_matmul.launch(x, t, a, tile))


def _attention(x: Tensor, packed: Packed, device: torch.device) -> Tuned:
    """Attention of x over a cache."""
    cache = unpacked(packed)
    rows, tokens = cache.key_codes.shape[0] * cache.key_codes.shape[1], cache.key_codes.shape[2]

    def run(x: Tensor, tensors: dict[str, Tensor], tile: Tile) -> Tensor:
        return kv_attention.launch(x, LowBitCache(**tensors, bits=cache.bits).tensors(), cache.bits, None, tile)

    default = kv_attention.default_tile(rows, tokens, table.processors(device))
    return Tuned(kv_attention.table_key(x, cache.tensors(), cache.bits), kv_attention.candidates(tokens), default, run)


def _turn(x: Tensor, packed: Packed) -> Tuned:
    """A rotation of x. Its rounding is tuned with the case that comes first, whether rounded or not."""
    (q, activation), (m, k), p = packed.meta, x.shape, packed.tensors["left"].shape[0]
    sizes, kind = hadamard.axes(p, q), "" if activation is None else activation.kind

    def run(x: Tensor, tensors: dict[str, Tensor], tile: Tile) -> Any:
        return hadamard.launch(x, tensors["signs"], tensors["left"], q, kind, tile)

    return Tuned(hadamard.table_key(m, k, p, q), hadamard.candidates(k, sizes), hadamard.default_tile(k, sizes), run)


TRIED = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)  # rows


def crossings(shapes: Iterable[tuple[int, int]], tried: tuple[int, ...] = TRIED) -> Iterator[dict[str, Any]]:
    """Rows of the table for a CPU: for weights [N, K] of one, two or three parts the fewest rows from which reading out is faster at every number
    tried; us and default_us: reading out and the operator at that number. Where the operator always wins, beyond the last.
    """
    cpu = torch.device("cpu")
    for n, k in shapes:
        for parts in (1, 2, 3):
            blocked = torch.randint(0, 256, (n, parts * k // 2), dtype=torch.uint8)
            pairs = torch.rand(parts * k // 32, n, 2).bfloat16()
            first, times = 2 * tried[-1], (0.0, 0.0)
            for m in reversed(tried):
                x = torch.randn(m, k).bfloat16()
                calls = [partial(read_out.multiply, x, blocked, 32, pairs, parts, at) for at in (1, m + 1)]
                taken = tuple(time_call([call], cpu, 7).median for call in calls)
                if taken[0] >= taken[1]:
                    break
                first, times = m, taken
            yield {"key": table.key(read_out.KEY, parts, n, k, 0, 1), "tile": list(Tile(first, 0, 0, 0, 0)), "us": times[0] * 1e6, "default_us": times[1] * 1e6}


def write(device_name: str, rows: Iterable[dict[str, Any]], command: str) -> str:
    """Writes the device's file after every row, rows of other shapes kept, and returns its path."""
    path = table.FOLDER / table.file_name(device_name)
    old = {row["key"]: row for row in json.loads(path.read_text())["rows"]} if path.is_file() else {}
    path.parent.mkdir(parents=True, exist_ok=True)

    for row in rows:
        old[row["key"]] = row
        head = {"device": device_name, "torch": torch.__version__, "triton": triton.__version__, "date": datetime.date.today().isoformat(), "command": command}
        path.write_text(json.dumps(head | {"rows": list(old.values())}, indent=1) + "\n")
    table.tiles.cache_clear()
    return str(path)
