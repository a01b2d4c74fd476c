"""Memory bandwidth of boards by data sheet, and whose data sheet the name that a driver reports means. Standard library only.

Apart from what else is known of them: a result may rest on a bandwidth, and none on a price.
"""

from __future__ import annotations

# GB/s (10^9) by the words that tell a board apart. What the planner offers first, with the source in explorer.accelerators; then others that a run
# may meet, from NVIDIA's data sheets.
BOARDS = {
    "T4": 320, "A10G": 600, "L4": 300, "L40S": 864, "A100 40 GB": 1555, "A100 80 GB": 2039, "H100": 3350, "H200": 4800, "B200": 8000, "MI300X": 5300,
    "RTX 3060": 360, "RTX 3090": 936, "RTX 4090": 1008, "RTX 5090": 1792, "RTX PRO 6000": 1792,
    "Apple M4 16 GB": 120, "Apple M4 Pro 48 GB": 273, "Apple M4 Max 128 GB": 546, "Apple M3 Ultra 512 GB": 819,
    "A10": 600, "A100 80GB PCIe": 1935, "H100 NVL": 3900, "H100 PCIe": 2000, "L40": 864,
}  # fmt: skip
OTHER = {"d", "laptop", "max", "mig", "mobile", "server", "super", "ti"}  # in the name of a board that has less, or a part, of what its namesake has


def sheet_of(reported: str) -> tuple[str, int] | None:
    """(name, GB/s) of the board whose words are all in the name that its driver reports, such as "NVIDIA A100-SXM4-80GB"; of several the one with most."""
    words = _words(reported)
    found = [] if words & OTHER else [name for name in BOARDS if _words(name) <= words]
    best = max(found, key=lambda name: len(_words(name)), default="")
    return (best, BOARDS[best]) if best else None


def _words(name: str) -> set[str]:
    return set(name.casefold().replace("-", " ").replace(" gb", "gb").split())
