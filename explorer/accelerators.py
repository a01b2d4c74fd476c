"""Accelerators by data sheet, and what fits on them: how many, for how many users, how fast at most, at what price. Standard library only."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from explorer.boards import BOARDS
from explorer.families import Architecture
from explorer.planner import Need, Plan, activation_bytes, copies, decode_work, need, prompt_work, step_bytes, user_activations, whole
from explorer.records import InputError

USABLE = 0.9  # share of the memory for weights, cache and activations; the default of vLLM's gpu_memory_utilization
REACHED = 0.5  # share of the bound that a good server reaches; public end-to-end runs on an H100 reach 0.27 to 0.67
COUNTS = (1, 2, 4, 8, 16, 32, 64)  # devices that share a model over a link
OWNED = 16  # cards that someone has at most


@dataclass(frozen=True)
class Accelerator:
    """memory in GB as the data sheet says; reported: GiB that the driver gives a program (torch's total_memory), which is less than the name says;
    compute in TFLOP/s (10^12), dense, products of 16-bit numbers summed in 32 bits; price: USD an hour of one, a public list price where one is known,
    else None: what is bought and not rented has none. fp8, fp4: whether its matrix units multiply them natively. linked: whether several can share a
    model; computers with unified memory have no link for it.
    """

    name: str
    memory: int
    reported: float
    compute: float
    fp8: bool
    fp4: bool
    source: str
    price: float | None = None
    usable: float = USABLE
    linked: bool = True

    @property
    def bandwidth(self) -> int:
        """Of its memory, in GB/s (10^9)."""
        return BOARDS[self.name]

    def bytes(self) -> float:
        """What may be filled."""
        return self.reported * 2**30 * self.usable


SPACES = "price: Hugging Face Spaces, 2026"
EIGHT = "price: Lambda, on demand, one of a machine of eight, as reported in September 2026"
HYPERSTACK = "price: Hyperstack, on demand, as reported in August 2026"
UNIFIED, LITTLE = 0.75, 0.67  # of unified memory that macOS lets the GPU keep by default (Metal's recommendedMaxWorkingSetSize); less on small machines
CORES = "compute by us, as Apple gives none: GPU cores x 128 lanes x 2 x clock"
# reported: "total capacity" of PyTorch's out-of-memory messages in public logs, the least of them, as it differs by 1% between drivers and ECC settings.
# compute: data sheets give it with sparsity, which is twice the dense number that stands here; GeForce cards sum in 32 bits at half their advertised rate.
ACCELERATORS = (
    Accelerator("T4", 16, 14.56, 65, False, False, f"NVIDIA T4 data sheet (float16: it has no bfloat16 units); {SPACES}", 0.40),
    Accelerator("A10G", 24, 22.06, 70, False, False, f"NVIDIA A10G data sheet, by AWS; {SPACES}", 1.00),
    Accelerator("L4", 24, 22.03, 121, True, False, f"NVIDIA L4 data sheet; {SPACES}", 0.80),
    Accelerator("L40S", 48, 44.39, 362, True, False, f"NVIDIA L40S data sheet; {SPACES}", 1.80),
    Accelerator("A100 40 GB", 40, 39.38, 312, False, False, f"NVIDIA A100 data sheet; {EIGHT}", 1.99),
    Accelerator("A100 80 GB", 80, 79.14, 312, False, False, f"NVIDIA A100 data sheet (SXM); {SPACES}", 2.50),
    Accelerator("H100", 80, 79.1, 989, True, False, f"NVIDIA H100 data sheet (SXM); {EIGHT}", 3.99),
    Accelerator("H200", 141, 139.8, 989, True, False, f"NVIDIA H200 data sheet (SXM); {HYPERSTACK}", 3.99),
    Accelerator("B200", 180, 178.35, 2250, True, True, f"NVIDIA DGX B200 data sheet, an eighth of it; {EIGHT}", 6.69),
    Accelerator("MI300X", 192, 191.98, 1307, True, False, "AMD Instinct MI300X data sheet"),
    Accelerator("RTX 3060", 12, 11.72, 25.5, False, False, "NVIDIA GeForce RTX 3060 specification (12 GB); compute: twice its float32 rate"),
    Accelerator("RTX 3090", 24, 23.56, 71, False, False, "NVIDIA GeForce RTX 3090 specification; compute: GA102 white paper"),
    Accelerator("RTX 4090", 24, 23.52, 165, True, False, "NVIDIA GeForce RTX 4090 specification; compute: Ada white paper"),
    Accelerator("RTX 5090", 32, 31.34, 209.5, True, True, "NVIDIA GeForce RTX 5090 specification; compute: RTX Blackwell white paper"),
    Accelerator("RTX PRO 6000", 96, 94.97, 503.8, True, True, "NVIDIA RTX PRO 6000 Blackwell data sheet; compute: its white paper (Workstation)"),
    Accelerator("Apple M4 16 GB", 16, 16, 4.3, False, False, f"Apple M4 specification; {CORES} (10, 1.68 GHz)", usable=LITTLE, linked=False),
    Accelerator("Apple M4 Pro 48 GB", 48, 48, 8.6, False, False, f"Apple M4 Pro specification; {CORES} (20, 1.68 GHz)", usable=UNIFIED, linked=False),
    Accelerator("Apple M4 Max 128 GB", 128, 128, 17.2, False, False, f"Apple M4 Max specification; {CORES} (40, 1.68 GHz)", usable=UNIFIED, linked=False),
    Accelerator("Apple M3 Ultra 512 GB", 512, 512, 28.6, False, False, f"Apple M3 Ultra specification; {CORES} (80, 1.4 GHz)", usable=UNIFIED, linked=False),
)

USUAL = "A100 80 GB"  # whose answer comes first where none is named


@dataclass(frozen=True)
class Fit:
    """One accelerator under a plan. count: how many are needed, 0 when `most` do not hold it; together: devices that share one copy of the weights
    (tensor parallelism), of which there are count / together, each with its part of the users; users: that then fit at the full context; bound:
    tokens/s of all users together, decoding, at which either memory or the matrix units are busy all the time (limit says which: "bandwidth" or
    "compute"), no transfer between devices counted; prompt: tokens/s of prompts, at most, by compute alone; dollars, prompt_dollars: per million
    of each at a price an hour and a share of the bound, None without a price.
    """

    accelerator: Accelerator
    count: int
    together: int = 0
    users: int = 0
    bound: float = 0.0
    limit: str = ""
    prompt: float = 0.0
    dollars_hour: float | None = None
    dollars: float | None = None
    prompt_dollars: float | None = None

    @property
    def most(self) -> int:
        """How many of it can share a model at most."""
        return COUNTS[-1] if self.accelerator.linked else 1


def on_each(model: Architecture, plan: Plan, found: Need, devices: int) -> float:
    """Bytes on each of `devices` under tensor parallelism: an even share of the weights and of the cache with its copies, and activations."""
    return (found.weight_bytes + found.kv * copies(model, devices)) / devices + activation_bytes(model, plan, devices)


def most_users(model: Architecture, plan: Plan, found: Need, device: Accelerator, devices: int) -> int:
    """How many users fit at the full context, each with its cache and the activations of its decoding token."""
    each = user_activations(model, devices)
    room = device.bytes() - found.weight_bytes / devices - activation_bytes(model, plan, devices) + plan.users * each
    return whole(room / max(1, found.kv_user * copies(model, devices) / devices + each))


def spread(model: Architecture, plan: Plan, device: Accelerator, count: int, together: int) -> Fit | None:
    """The plan on `count` devices in groups of `together`, each group with a copy of the weights and its part of the users; None where that does not
    fit. The fullest group decides.
    """
    groups = count // together
    part = dataclasses.replace(plan, users=-(-plan.users // groups))
    found = need(model, part)
    if on_each(model, part, found, together) > device.bytes():
        return None
    reading = step_bytes(model, part, found, together) / (together * device.bandwidth * 1e9)
    multiplying = part.users * decode_work(model, plan.context) / (together * device.compute * 1e12)
    users = groups * most_users(model, part, found, device, together)
    prompt = count * device.compute * 1e12 / prompt_work(model, plan.context)
    return Fit(device, count, together, users, plan.users / max(reading, multiplying), "bandwidth" if reading >= multiplying else "compute", prompt)


def held(model: Architecture, plan: Plan, device: Accelerator, have: int) -> Fit:
    """How a plan fits on so many devices that one has: in the groups with the highest bound, each of a power of two, so that some may be left over;
    its count is 0 where it does not fit. Raises InputError for a number out of range, and for several devices that no link joins.
    """
    if not isinstance(have, int) or isinstance(have, bool) or not 1 <= have <= OWNED:
        raise InputError(f"The number of cards is a whole number from 1 to {OWNED}, not {str(have)[:20]}.")
    if have > 1 and not device.linked:
        raise InputError(f"No link joins several {device.name}: plan for one.")
    ways = [way for together in COUNTS if together <= have and (way := spread(model, plan, device, have // together * together, together))]
    return max(ways, key=lambda way: (way.bound, way.users), default=Fit(device, 0))


def fit(model: Architecture, plan: Plan, device: Accelerator, price: float | None = None, reached: float = REACHED) -> Fit:
    """How a plan fits on a device: on the fewest, in the groups with the highest bound. Raises InputError for a price or share that is none."""
    price = device.price if price is None else price
    if price is not None and not (isinstance(price, int | float) and math.isfinite(price) and 0 <= price <= 10_000):
        raise InputError("The price is in dollars an hour, from 0 to 10,000.")
    if not 0 < reached <= 1:
        raise InputError("The share of the bound that is reached lies above 0 and is at most 1.")
    for count in COUNTS if device.linked else COUNTS[:1]:
        ways = [way for together in COUNTS if together <= count and (way := spread(model, plan, device, count, together))]
        if ways:
            best = max(ways, key=lambda way: (way.bound, way.users))
            hour = None if price is None else price * count
            dollars, prompt = (None if hour is None else hour / (rate * reached * 3600) * 1e6 for rate in (best.bound, best.prompt))
            return dataclasses.replace(best, dollars_hour=hour, dollars=dollars, prompt_dollars=prompt)
    return Fit(device, 0)


def widths(model: Architecture, plan: Plan) -> list[tuple[str, Need]]:
    """(name, need) of the same plan at the widths people compare."""
    asked = (("BF16", 16, 0), ("INT8", 8, 0), ("INT4", 4, plan.group or 128), ("INT3", 3, plan.group or 128), ("INT2", 2, plan.group or 128))
    return [(name, need(model, dataclasses.replace(plan, bits=bits, group=group, format=""))) for name, bits, group in asked]
