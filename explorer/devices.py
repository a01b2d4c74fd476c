"""What the hardware can do: memory bandwidth by data sheet or by measurement."""

from __future__ import annotations

import math
import os
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from explorer.boards import sheet_of
from explorer.records import BUSY
from kernels.op import Activation, LowBitWeight, choose
from kernels.timing import best_time, read_bandwidth


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def data_sheet(device: torch.device) -> tuple[float, str] | None:
    """(bytes/s, source) of a known GPU's data sheet: an estimate of what can be reached, not a measurement."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    known = sheet_of(name)
    return None if known is None else (known[1] * 1e9, f"data sheet of {known[0]}")


class Rate(NamedTuple):
    """Bytes/s at which memory was read, and the percentage of their time that this process's threads waited for a core meanwhile."""

    value: float
    waited: float = 0.0

    def doubt(self) -> str:
        """That other work may have slowed the reads, "" where it did not."""
        return "" if self.waited <= BUSY else f"the machine was busy: threads waited {self.waited:.0f}% of their time for a core while memory was read"


def bandwidth(device: torch.device) -> tuple[Rate, str]:
    """(rate, source): the data sheet's for a known GPU, else `read_rate`."""
    sheet = data_sheet(device)
    return (Rate(sheet[0]), sheet[1]) if sheet else (read_rate(device), "measured read of 256 MiB")


_reads: dict[tuple[torch.device, int], Rate] = {}


def read_rate(device: torch.device) -> Rate:
    """The one read rate of this process, on as many threads as it runs on now: whatever shows it shows the same. Measured again as long as threads
    waited for a core meanwhile; the best is kept, because other work only ever slows reads.
    """
    key = device, torch.get_num_threads()
    known = _reads.get(key)
    if known is None or known.waited > BUSY:
        idle, used = waited(), time.process_time()
        found = read_bandwidth(device)
        lost = max(0.0, waited() - idle) if device.type == "cpu" else 0.0  # NaN gives 0: where the system does not say, the rate is believed
        found = Rate(found, 100 * lost / (lost + time.process_time() - used + 1e-9))
        _reads[key] = found if known is None else Rate(max(known.value, found.value), min(known.waited, found.waited))
    return _reads[key]


def cache_size(device: torch.device) -> int:
    """Bytes of the last cache before memory, 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    try:
        sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
        return max((int(size[:-1]) * {"K": 2**10, "M": 2**20}[size[-1]] for size in sizes), default=0)
    except (OSError, ValueError, KeyError):
        return 0


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s (a multiplication and an addition are two) of a square matmul of bfloat16 or int8, the best measured; None where there is none. int8 on a
    CPU by the form that multiplies here: torch's own is a plain loop where there is no VNNI.
    """
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).mul_(32).to(dtype) for _ in range(2))  # not ones: a GPU multiplies those at a higher clock
    if dtype == torch.int8 and device.type == "cpu":
        one = torch.ones(size, 1)
        weight = LowBitWeight((b.to(torch.int16) + 128).to(torch.uint8), one, None, 8, None, Activation("int8"))
        form = choose(weight, device)[1]
        if form.rounded is None:
            return None
        call = partial(form.rounded, one, a, one, form.pack(weight))
    else:
        call = (lambda: torch._int_mm(a, b.T)) if dtype == torch.int8 else (lambda: a @ b.T)
    try:
        return 2 * size**3 / best_time(call, device)
    except RuntimeError:
        return None


def waited() -> float:
    """Seconds that this process's living threads have waited for a core so far, whatever else ran meanwhile; NaN where the system does not say."""
    try:
        return sum(int(path.read_text().split()[1]) for path in Path("/proc/self/task").glob("*/schedstat")) / 1e9
    except (OSError, IndexError, ValueError):
        return math.nan


def quiet() -> bool:
    """Whether times can be measured undisturbed: in the last minute fewer than half of the cores were wanted. True where the system does not say."""
    return not hasattr(os, "getloadavg") or os.getloadavg()[0] < (os.cpu_count() or 1) / 2


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated: on a CPU what the system and its control group (a container's limit) leave."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch keeps what it freed
    return min(_available(), _group_left())


def total_memory(device: torch.device) -> int:
    """Bytes of the device's memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def spare_memory(device: torch.device) -> int:
    """Bytes that a copy for speed may take: a quarter of the memory stays free for what the run itself needs."""
    return free_memory(device) - total_memory(device) // 4


def _available() -> int:
    try:
        with open("/proc/meminfo") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return total_memory(torch.device("cpu")) // 2  # not Linux: half is a guess that keeps the machine usable


def _group_left() -> int:
    try:
        limit, used = (Path("/sys/fs/cgroup", name).read_text().strip() for name in ("memory.max", "memory.current"))
        return int(limit) - int(used)
    except (OSError, ValueError):  # no such group, or "max"
        return 1 << 60
