"""Accelerators by data sheet, and what fits on them: how many, for how many users, how fast at most, at what price. Standard library only."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from explorer.planner import Architecture, Need, Plan, need, step_bytes, whole
from explorer.records import InputError

USABLE = 0.9  # share of the memory for weights, cache and activations; the default of vLLM's gpu_memory_utilization
REACHED = 0.5  # share of the bandwidth bound that a good server reaches; public end-to-end runs on an H100 reach 0.27 to 0.67
COUNTS = (1, 2, 4, 8, 16, 32, 64)  # devices that share a model over a link


@dataclass(frozen=True)
class Accelerator:
    """memory in GB as the data sheet says, counted as GiB (memory comes in powers of two); bandwidth in GB/s (10^9); price: USD an hour of one, a
    public list price where one is known, else None: what is bought and not rented has none. fp8, fp4: whether its matrix units multiply them
    natively. linked: whether several can share a model; computers with unified memory have no link for it.
    """

    name: str
    memory: int
    bandwidth: int
    fp8: bool
    fp4: bool
    source: str
    price: float | None = None
    usable: float = USABLE
    linked: bool = True

    def bytes(self) -> float:
        """What may be filled."""
        return self.memory * 2**30 * self.usable


SPACES = "price: Hugging Face Spaces, 2026"
EIGHT = "price: Lambda, on demand, one of a machine of eight, as reported in September 2026"
HYPERSTACK = "price: Hyperstack, on demand, as reported in August 2026"
UNIFIED, LITTLE = 0.75, 0.67  # of unified memory that macOS lets the GPU keep by default (Metal's recommendedMaxWorkingSetSize); less on small machines
ACCELERATORS = (
    Accelerator("T4", 16, 320, False, False, f"NVIDIA T4 data sheet; {SPACES}", 0.40),
    Accelerator("A10", 24, 600, False, False, f"NVIDIA A10 data sheet; {SPACES} (A10G)", 1.00),
    Accelerator("L4", 24, 300, True, False, f"NVIDIA L4 data sheet; {SPACES}", 0.80),
    Accelerator("L40S", 48, 864, True, False, f"NVIDIA L40S data sheet; {SPACES}", 1.80),
    Accelerator("A100 40 GB", 40, 1555, False, False, f"NVIDIA A100 data sheet; {EIGHT}", 1.99),
    Accelerator("A100 80 GB", 80, 2039, False, False, f"NVIDIA A100 data sheet (SXM); {SPACES}", 2.50),
    Accelerator("H100", 80, 3350, True, False, f"NVIDIA H100 data sheet (SXM); {EIGHT}", 3.99),
    Accelerator("H200", 141, 4800, True, False, f"NVIDIA H200 data sheet; {HYPERSTACK}", 3.99),
    Accelerator("B200", 180, 8000, True, True, f"NVIDIA DGX B200 data sheet, an eighth of it; {EIGHT}", 6.69),
    Accelerator("RTX 3060", 12, 360, False, False, "NVIDIA GeForce RTX 3060 specification (12 GB)"),
    Accelerator("RTX 3090", 24, 936, False, False, "NVIDIA GeForce RTX 3090 specification"),
    Accelerator("RTX 4090", 24, 1008, True, False, "NVIDIA GeForce RTX 4090 specification"),
    Accelerator("RTX 5090", 32, 1792, True, True, "NVIDIA GeForce RTX 5090 specification"),
    Accelerator("RTX PRO 6000", 96, 1792, True, True, "NVIDIA RTX PRO 6000 Blackwell data sheet"),
    Accelerator("Apple M4 16 GB", 16, 120, False, False, "Apple M4 specification", usable=LITTLE, linked=False),
    Accelerator("Apple M4 Pro 48 GB", 48, 273, False, False, "Apple M4 Pro specification", usable=UNIFIED, linked=False),
    Accelerator("Apple M4 Max 128 GB", 128, 546, False, False, "Apple M4 Max specification", usable=UNIFIED, linked=False),
    Accelerator("Apple M3 Ultra 512 GB", 512, 819, False, False, "Apple M3 Ultra specification", usable=UNIFIED, linked=False),
)


# GB/s of boards that the planner does not offer but a run may meet, from NVIDIA's data sheets, by the words that tell them apart.
BOARDS = {"A10G": 600, "A100 80GB PCIe": 1935, "H100 NVL": 3900, "H100 PCIe": 2000, "L40": 864}
OTHER = {"d", "laptop", "max", "mig", "mobile", "server", "super", "ti"}  # in the name of a board that has less, or a part, of what its namesake has


def sheet_of(reported: str) -> tuple[str, int] | None:
    """(name, GB/s) of the board whose words are all in the name that its driver reports, such as "NVIDIA A100-SXM4-80GB"; of several the one with most."""
    words = _words(reported)
    boards = {one.name: one.bandwidth for one in ACCELERATORS} | BOARDS
    found = [] if words & OTHER else [name for name in boards if _words(name) <= words]
    best = max(found, key=lambda name: len(_words(name)), default="")
    return (best, boards[best]) if best else None


def _words(name: str) -> set[str]:
    return set(name.casefold().replace("-", " ").replace(" gb", "gb").split())


@dataclass(frozen=True)
class Fit:
    """One accelerator under a plan. count: how many are needed, 0 when `most` do not hold it; users: that then fit at the full context; bound:
    tokens/s of all users together if reading memory were all that takes time, no transfer between devices counted; dollars: per million
    tokens at a price an hour and a share of the bound, None without a price.
    """

    accelerator: Accelerator
    count: int
    users: int = 0
    bound: float = 0.0
    dollars_hour: float | None = None
    dollars: float | None = None

    @property
    def most(self) -> int:
        """How many of it can share a model at most."""
        return COUNTS[-1] if self.accelerator.linked else 1


def fit(model: Architecture, plan: Plan, device: Accelerator, price: float | None = None, reached: float = REACHED) -> Fit:
    """How a plan fits on a device. Raises InputError for a price or share that is none."""
    price = device.price if price is None else price
    if price is not None and not (isinstance(price, int | float) and math.isfinite(price) and 0 <= price <= 10_000):
        raise InputError("The price is in dollars an hour, from 0 to 10,000.")
    if not 0 < reached <= 1:
        raise InputError("The share of the bound that is reached lies above 0 and is at most 1.")
    found = need(model, plan)
    count = next((n for n in (COUNTS if device.linked else COUNTS[:1]) if found.total <= n * device.bytes()), 0)
    if not count:
        return Fit(device, 0)
    room = count * device.bytes() - found.weight_bytes - found.activations
    bound = plan.users * count * device.bandwidth * 1e9 / step_bytes(model, plan, found)
    hour = None if price is None else price * count
    dollars = None if hour is None else hour / (bound * reached * 3600) * 1e6
    return Fit(device, count, whole(room / max(1, found.kv_user)), bound, hour, dollars)


def widths(model: Architecture, plan: Plan) -> list[tuple[str, Need]]:
    """(name, need) of the same plan at the widths people compare."""
    asked = (("BF16", 16, 0), ("INT8", 8, 0), ("INT4", 4, plan.group or 128), ("INT3", 3, plan.group or 128), ("INT2", 2, plan.group or 128))
    return [(name, need(model, dataclasses.replace(plan, bits=bits, group=group))) for name, bits, group in asked]
