"""Accelerators by data sheet, and what fits on them: how many, for how many users, how fast at most, at what price. Standard library only."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from explorer.boards import BOARDS
from explorer.families import Architecture
from explorer.layouts import LLAMA_CPP
from explorer.planner import Need, Plan, activation_bytes, copies, decode_work, need, prompt_work, rounded_work, step_bytes, user_activations, whole
from explorer.records import InputError

USABLE = 0.9  # share of the memory for weights, cache and activations; the default of vLLM's gpu_memory_utilization
REACHED = 0.5  # share of the bound that a good server reaches; public end-to-end runs on an H100 reach 0.27 to 0.67
COUNTS = (1, 2, 4, 8, 16, 32, 64)  # devices that share a model over a link
OWNED = 16  # cards that someone has at most
TIGHT = 0.05  # share of what may be filled that stays free, below which a fit is tight
UNCOUNTED = "the runtime's context, captured graphs, buffers of links and fragmentation are not counted"
NOTES = {
    "compute": "Compute counts layers whose inputs software may round (FP8; 8-bit integers and GGUF as int8; NVFP4, MXFP4) and attention over an FP8 cache at "
    "the rate of a device's units for such numbers, where it has them, and all else in 16 bits.",
    "tight": f"Tight: less than {TIGHT:.0%} of what may be filled stays free, and {UNCOUNTED}.",
    "gguf": "A GGUF file is planned for one device: over several llama.cpp splits it by layers, which take turns.",
}


@dataclass(frozen=True)
class Accelerator:
    """memory in GB as the data sheet says; reported: GiB that the driver gives a program (torch's total_memory), which is less than the name says;
    compute in TFLOP/s (10^12), dense, products of 16-bit numbers summed in 32 bits; capability: NVIDIA's compute capability, None for others; price: USD
    an hour of one, a public list price where one is known, else None: what is bought and not rented has none. fp8, fp4: whether its matrix units
    multiply them natively. int8: how many times as fast as `compute` they multiply 8-bit integers; 1 where they do not. linked: whether several can
    share a model; computers with unified memory have no link for it.
    """

    name: str
    memory: int
    reported: float
    compute: float
    capability: float | None
    fp8: bool
    fp4: bool
    source: str
    price: float | None = None
    usable: float = USABLE
    linked: bool = True
    int8: int = 2

    @property
    def bandwidth(self) -> int:
        """Of its memory, in GB/s (10^9)."""
        return BOARDS[self.name]

    def bytes(self) -> float:
        """What may be filled."""
        return self.reported * 2**30 * self.usable

    def rate(self, inputs: str) -> int:
        """How many times as fast as `compute` it multiplies inputs that are rounded so, as data sheets say; 1 where it has no units for them. FP8 is twice
        as fast, FP4 twice as fast as 8-bit integers, whose sums GeForce cards do not slow down.
        """
        return {"int8": self.int8, "fp8": 2 if self.fp8 else 1, "fp4": 2 * self.int8 if self.fp4 else 1}[inputs]

    def seconds(self, model: Architecture, plan: Plan, work: float, head: float = 1) -> float:
        """In which it multiplies `work`, the FLOP of a token, at the least. head: as in `rounded_work`."""
        spared = sum(part * (1 - 1 / self.rate(inputs)) for inputs, part in rounded_work(model, plan, work, head).items())
        return (work - spared) / (self.compute * 1e12)


SPACES = "price: Hugging Face Spaces, 2026"
EIGHT = "price: Lambda, on demand, one of a machine of eight, as reported in September 2026"
HYPERSTACK = "price: Hyperstack, on demand, as reported in August 2026"
UNIFIED, LITTLE = 0.75, 0.67  # of unified memory that macOS lets the GPU keep by default (Metal's recommendedMaxWorkingSetSize); less on small machines
CORES = "compute by us, as Apple gives none: GPU cores x 128 lanes x 2 x clock"
ALONE = {"linked": False, "int8": 1}  # computers with unified memory
# reported: "total capacity" of PyTorch's out-of-memory messages in public logs, the least of them, as it differs by 1% between drivers and ECC settings.
# compute: data sheets give it with sparsity, which is twice the dense number that stands here; GeForce cards sum in 32 bits at half their advertised rate.
ACCELERATORS = (
    Accelerator("T4", 16, 14.56, 65, 7.5, False, False, f"NVIDIA T4 data sheet (float16: it has no bfloat16 units); {SPACES}", 0.40),
    Accelerator("A10G", 24, 22.06, 70, 8.6, False, False, f"NVIDIA A10G data sheet, by AWS; {SPACES}", 1.00),
    Accelerator("L4", 24, 22.03, 121, 8.9, True, False, f"NVIDIA L4 data sheet; {SPACES}", 0.80),
    Accelerator("L40S", 48, 44.39, 362, 8.9, True, False, f"NVIDIA L40S data sheet; {SPACES}", 1.80),
    Accelerator("A100 40 GB", 40, 39.38, 312, 8.0, False, False, f"NVIDIA A100 data sheet; {EIGHT}", 1.99),
    Accelerator("A100 80 GB", 80, 79.14, 312, 8.0, False, False, f"NVIDIA A100 data sheet (SXM); {SPACES}", 2.50),
    Accelerator("H100", 80, 79.1, 989, 9.0, True, False, f"NVIDIA H100 data sheet (SXM); {EIGHT}", 3.99),
    Accelerator("H200", 141, 139.8, 989, 9.0, True, False, f"NVIDIA H200 data sheet (SXM); {HYPERSTACK}", 3.99),
    Accelerator("B200", 180, 178.35, 2250, 10.0, True, True, f"NVIDIA DGX B200 data sheet, an eighth of it; {EIGHT}", 6.69),
    Accelerator("MI300X", 192, 191.98, 1307, None, True, False, "AMD Instinct MI300X data sheet"),
    Accelerator("RTX 3060", 12, 11.72, 25.5, 8.6, False, False, "NVIDIA GeForce RTX 3060 specification (12 GB); compute: twice its float32 rate", int8=4),
    Accelerator("RTX 3090", 24, 23.56, 71, 8.6, False, False, "NVIDIA GeForce RTX 3090 specification; compute: GA102 white paper", int8=4),
    Accelerator("RTX 4090", 24, 23.52, 165, 8.9, True, False, "NVIDIA GeForce RTX 4090 specification; compute: Ada white paper", int8=4),
    Accelerator("RTX 5090", 32, 31.34, 209.5, 12.0, True, True, "NVIDIA GeForce RTX 5090 specification; compute: RTX Blackwell white paper", int8=4),
    Accelerator("RTX PRO 6000", 96, 94.97, 503.8, 12.0, True, True, "NVIDIA RTX PRO 6000 Blackwell data sheet; compute: its white paper (Workstation)"),
    Accelerator("Apple M4 16 GB", 16, 16, 4.3, None, False, False, f"Apple M4 specification; {CORES} (10, 1.68 GHz)", usable=LITTLE, **ALONE),
    Accelerator("Apple M4 Pro 48 GB", 48, 48, 8.6, None, False, False, f"Apple M4 Pro specification; {CORES} (20, 1.68 GHz)", usable=UNIFIED, **ALONE),
    Accelerator("Apple M4 Max 128 GB", 128, 128, 17.2, None, False, False, f"Apple M4 Max specification; {CORES} (40, 1.68 GHz)", usable=UNIFIED, **ALONE),
    Accelerator("Apple M3 Ultra 512 GB", 512, 512, 28.6, None, False, False, f"Apple M3 Ultra specification; {CORES} (80, 1.4 GHz)", usable=UNIFIED, **ALONE),
)

USUAL = "A100 80 GB"  # whose answer comes first where none is named


@dataclass(frozen=True)
class Fit:
    """One accelerator under a plan. count: how many are needed, 0 when `most` do not hold it; together: devices that share one copy of the weights
    (tensor parallelism), of which there are count / together, each with its part of the users; users: that then fit at the full context; bound:
    tokens/s of all users together, decoding, at which either memory or the matrix units are busy all the time (limit says which: "bandwidth" or
    "compute"), no transfer between devices counted; prompt: tokens/s of prompts, at most, by compute alone; dollars, prompt_dollars: per million
    of each at a price an hour and a share of the bound, None without a price. most: how many can share a model at most; free: bytes of what may be
    filled that stay free on the fullest device; tight: whether that is next to nothing.
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
    most: int = COUNTS[-1]
    free: float = 0.0
    tight: bool = False

    @property
    def alone(self) -> str:
        """Why one is the most, to end a sentence; "" where several share a model."""
        return "" if self.most > 1 else ", and a GGUF file is planned for one" if self.accelerator.linked else ", and no link joins them"


def shared_by(plan: Plan, device: Accelerator) -> tuple[int, ...]:
    """How many of a device may share a model under a plan."""
    return COUNTS if device.linked and plan.format not in LLAMA_CPP else COUNTS[:1]


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
    free = device.bytes() - on_each(model, part, found, together)
    if free < 0:
        return None
    reading = step_bytes(model, part, found, together) / (together * device.bandwidth * 1e9)
    multiplying = part.users * device.seconds(model, plan, decode_work(model, plan.context)) / together
    users = groups * most_users(model, part, found, device, together)
    prompt = count / device.seconds(model, plan, prompt_work(model, plan.context), 1 / plan.context)
    limit, most = "bandwidth" if reading >= multiplying else "compute", shared_by(plan, device)[-1]
    bound, tight = plan.users / max(reading, multiplying), free < TIGHT * device.bytes()
    return Fit(device, count, together, users, bound, limit, prompt, most=most, free=free, tight=tight)


def held(model: Architecture, plan: Plan, device: Accelerator, have: int) -> Fit:
    """How a plan fits on so many devices that one has: in the groups with the highest bound, each of a power of two, so that some may be left over;
    its count is 0 where it does not fit. Raises InputError for a number out of range, and for several devices that no link joins.
    """
    if not isinstance(have, int) or isinstance(have, bool) or not 1 <= have <= OWNED:
        raise InputError(f"The number of cards is a whole number from 1 to {OWNED}, not {str(have)[:20]}.")
    if have > 1 and not device.linked:
        raise InputError(f"No link joins several {device.name}: plan for one.")
    counts = shared_by(plan, device)
    have = have if counts[-1] > 1 else 1
    ways = [way for together in counts if together <= have and (way := spread(model, plan, device, have // together * together, together))]
    return max(ways, key=lambda way: (way.bound, way.users), default=Fit(device, 0, most=counts[-1]))


def fit(model: Architecture, plan: Plan, device: Accelerator, price: float | None = None, reached: float = REACHED) -> Fit:
    """How a plan fits on a device: on the fewest, in the groups with the highest bound. Raises InputError for a price or share that is none."""
    price = device.price if price is None else price
    if price is not None and not (isinstance(price, int | float) and math.isfinite(price) and 0 <= price <= 10_000):
        raise InputError("The price is in dollars an hour, from 0 to 10,000.")
    if not 0 < reached <= 1:
        raise InputError("The share of the bound that is reached lies above 0 and is at most 1.")
    counts = shared_by(plan, device)
    for count in counts:
        ways = [way for together in COUNTS if together <= count and (way := spread(model, plan, device, count, together))]
        if ways:
            best = max(ways, key=lambda way: (way.bound, way.users))
            hour = None if price is None else price * count
            dollars, prompt = (None if hour is None else hour / (rate * reached * 3600) * 1e6 for rate in (best.bound, best.prompt))
            return dataclasses.replace(best, dollars_hour=hour, dollars=dollars, prompt_dollars=prompt)
    return Fit(device, 0, most=counts[-1])


def compared(plan: Plan) -> dict[str, Plan]:
    """The same plan at the widths people compare, by name."""
    asked = (("BF16", 16, 0), ("INT8", 8, 0), ("INT4", 4, plan.group or 128), ("INT3", 3, plan.group or 128), ("INT2", 2, plan.group or 128))
    return {name: dataclasses.replace(plan, bits=bits, group=group, format="") for name, bits, group in asked}


def widths(model: Architecture, plan: Plan) -> list[tuple[str, Need]]:
    """(name, need) of those."""
    return [(name, need(model, one)) for name, one in compared(plan).items()]
