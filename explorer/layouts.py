"""What the formats that are planned by name store, and how many bits a matrix takes in one. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """What a format stores: bits of a code, weights of a row that share a block (0: the whole row), bits of scales, zeros or minima a block, bits a matrix.
    fallback: what takes its place in a matrix whose rows its block does not divide; None for 16 bits. rows: how many share a block; where it is more
    than one, blocks are cut at the edges instead. column: bits an input.
    """

    title: str
    code: int
    block: int
    shared: int
    matrix: int = 0
    fallback: Layout | None = None
    rows: int = 1
    column: int = 0


Q5_0, Q5_1, Q8_0 = Layout("Q5_0", 5, 32, 16), Layout("Q5_1", 5, 32, 32), Layout("Q8_0", 8, 32, 16)
LAYOUTS = {
    "fp8": Layout("FP8, a scale a row", 8, 0, 32),
    "nvfp4": Layout("NVFP4", 4, 16, 8, 32),
    "q6_k": Layout("Q6_K (GGUF)", 6, 256, 144, 0, Q8_0),
    "q5_k": Layout("Q5_K (GGUF)", 5, 256, 128, 0, Q5_1),
    "q4_k": Layout("Q4_K (GGUF)", 4, 256, 128, 0, Q5_0),
    "mxfp4": Layout("MXFP4", 4, 32, 8),
    "awq": Layout("AWQ, 4-bit g128 with zeros", 4, 128, 20),
}  # as the methods of these names store them, which a test compares; fmt: skip


def stored_bits(n: int, k: int, kept: Layout | None) -> int:
    """Bits of one matrix [n, k] in a layout, None for 16 bits. A block that does not divide k makes it the layout's fallback, as the methods do."""
    while kept is not None and kept.rows == 1 and kept.block and k % kept.block:
        kept = kept.fallback
    if kept is None:
        return 16 * n * k
    blocks = -(-n // kept.rows) * (-(-k // kept.block) if kept.block else 1)
    return kept.code * n * k + blocks * kept.shared + kept.column * k + kept.matrix
