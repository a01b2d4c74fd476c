"""The product of many rows with weights in torch's 4-bit CPU layout: read out in blocks of outputs, then multiplied in 16 bits. Knows no formats.

torch's operator multiplies in float32 and unpacks every weight once for four rows, so its time grows with the rows. From `crossing` rows on it
is faster to unpack 64 outputs at a time to bfloat16 and to multiply those in bfloat16. The same operator unpacks: its layout is [N / 64][K][32 bytes],
so 64 outputs of K inputs are also K / 32 times 64 outputs of 32 inputs, and a product with the identity of order 32 gives them, scale and
shift applied in float32. Nothing larger than one such block is held.
"""

from __future__ import annotations

from functools import cache, reduce

import torch
from torch import Tensor

from kernels import table

KEY = "read_out"  # in the table
COLUMNS, RUN = 64, 32  # outputs of a block of the layout; inputs that are read out together, the operator's smallest group
NEVER = 1 << 62  # rows

product = torch.ops.aten._weight_int4pack_mm_for_cpu  # (x [M, K] bf16, blocked [N, K/2] uint8, G, [K/G, N, 2] bf16) -> [M, N]


@cache
def readable() -> bool:
    """Whether this CPU's layout is cut as assumed: tried on a few codes, because torch documents no layout."""
    codes = torch.arange(2 * COLUMNS * 2 * RUN, dtype=torch.int32).view(2 * COLUMNS, 2 * RUN) % 13
    blocked = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    pairs = torch.tensor([1.0, 0.0]).bfloat16().repeat(2, 2 * COLUMNS, 1)
    x = torch.eye(2 * RUN, dtype=torch.bfloat16)
    return torch.equal(in_blocks(x, blocked, RUN, pairs), (codes.T - 8).to(x.dtype))


def crossing(n: int, k: int, parts: int = 1) -> int:
    """Rows from which reading out weights [N, K] in parts is faster: as `python -m kernels tune --device cpu` measured on this CPU, else by arithmetic.
    Reading costs as much as 32 rows, multiplying 45% as much as the operator does, and each block some 25 us: together 96 rows, and more where
    blocks are small. Every further part doubles what the operator computes, but not what is multiplied here.
    """
    found = table.lookup(torch.device("cpu"), KEY, parts, n, k, 0, 1)
    return found.rows if found else 96 // parts + (1 << 17) // k


def begins(first: int) -> int:
    """`first` where the layout can be read out, else NEVER. Where torch has no AVX-512 it is cut into 32 outputs, and bfloat16 products are slower."""
    return first if readable() else NEVER


def multiply(x: Tensor, blocked: Tensor, group: int, pairs: Tensor, parts: int = 1, first: int = NEVER) -> Tensor:
    """x [M, K] bfloat16 times weights [N, parts * K] in the layout, those of all parts added up -> [M, N]; read out where M >= first."""
    if len(x) >= first and readable():
        return in_blocks(x, blocked, group, pairs, parts)
    return product(widened(x, group, parts), blocked, max(group, RUN), pairs)


def widened(x: Tensor, group: int, parts: int) -> Tensor:
    """x [M, K] repeated for weights in parts: side by side, or in groups of 16 every 16 inputs, the second time divided by 16 (cpu_forms.py)."""
    if group == 16:
        runs = x.unflatten(1, (-1, 16))
        return torch.cat([runs, runs / 16], -1).flatten(1)
    return x.repeat(1, parts) if parts > 1 else x


def in_blocks(x: Tensor, blocked: Tensor, group: int, pairs: Tensor, parts: int = 1) -> Tensor:
    """As `multiply`, by reading out; the outputs beyond the last whole block go through the operator."""
    (m, k), n = x.shape, len(blocked)
    run, whole = min(group, RUN), n - n % COLUMNS
    y = x.new_empty(m, n)
    if whole < n:
        y[:, whole:] = product(widened(x, group, parts), blocked[whole:], max(group, RUN), pairs[:, whole:].contiguous())
    runs = blocked.shape[1] * 2 // RUN
    each = pairs[:, :whole].reshape(len(pairs), -1, COLUMNS, 2).transpose(0, 1)  # [N / 64, K/G, 64, 2]
    eye, turned = torch.eye(RUN, dtype=x.dtype), x.view(m, -1, run).transpose(1, 2).reshape(m, k)  # the order in which weights come out
    for block in range(whole // COLUMNS):
        rows = slice(block * COLUMNS, (block + 1) * COLUMNS)
        scale = each[block].repeat_interleave(runs // len(pairs), 0).view(1, -1, 2)
        weight = product(eye, blocked[rows].view(-1, RUN // 2), RUN, scale).view(RUN, runs, COLUMNS)
        if group == 16:
            weight = torch.add(weight[:16], weight[16:], alpha=1 / 16)
        elif parts > 1:
            weight = reduce(torch.add, weight.view(RUN, parts, -1, COLUMNS).unbind(1))
        y[:, rows] = turned @ weight.reshape(k, COLUMNS)
    return y
