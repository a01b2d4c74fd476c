"""What the formats that are planned by name store, and how many bits a matrix takes in one. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """What a format stores: bits of a code, weights of a row that share a block (0: the whole row), bits of scales, zeros or minima a block, bits a matrix.
    fallback: what takes its place in a matrix whose rows its block does not divide; None for 16 bits. rows: how many share a block; where it is more
    than one, blocks are cut at the edges instead. column: bits an input. inputs: what software rounds a layer's inputs to where a device multiplies such
    numbers natively ("int8", "fp8", "fp4"); "" where they stay in 16 bits.
    """

    title: str
    code: int
    block: int
    shared: int
    matrix: int = 0
    fallback: Layout | None = None
    rows: int = 1
    column: int = 0
    inputs: str = ""

    @property
    def name(self) -> str:
        """In words: its title, of plain integers bits and groups."""
        return self.title or f"{self.code}-bit, {f'groups of {self.block}' if self.block else 'a scale a channel'}"

    def over(self, k: int) -> Layout | None:
        """What rows of k weights are stored in: this, where its block does not divide them its fallback, as the methods do; None for 16 bits."""
        if self.rows > 1 or not self.block or k % self.block == 0:
            return self
        return self.fallback.over(k) if self.fallback else None


Q5_0, Q5_1, Q8_0 = (Layout(title, bits, 32, shared, inputs="int8") for title, bits, shared in (("Q5_0", 5, 16), ("Q5_1", 5, 32), ("Q8_0", 8, 16)))
LAYOUTS = {
    "fp8": Layout("FP8, a scale a row", 8, 0, 32, inputs="fp8"),
    "nvfp4": Layout("NVFP4", 4, 16, 8, 32, inputs="fp4"),
    "q6_k": Layout("Q6_K (GGUF)", 6, 256, 144, 0, Q8_0, inputs="int8"),
    "q5_k": Layout("Q5_K (GGUF)", 5, 256, 128, 0, Q5_1, inputs="int8"),
    "q4_k": Layout("Q4_K (GGUF)", 4, 256, 128, 0, Q5_0, inputs="int8"),
    "mxfp4": Layout("MXFP4", 4, 32, 8, inputs="fp4"),
    "awq": Layout("AWQ, 4-bit g128 with zeros", 4, 128, 20),
}  # as the methods of these names store them, which a test compares; fmt: skip
LLAMA_CPP = ("q6_k", "q5_k", "q4_k")  # those of a GGUF file


def stored_bits(n: int, k: int, kept: Layout | None) -> int:
    """Bits of one matrix [n, k] in a layout, or what takes its place; None for 16 bits."""
    kept = kept.over(k) if kept else None
    if kept is None:
        return 16 * n * k
    blocks = -(-n // kept.rows) * (-(-k // kept.block) if kept.block else 1)
    return kept.code * n * k + blocks * kept.shared + kept.column * k + kept.matrix
