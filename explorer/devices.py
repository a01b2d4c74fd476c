"""What the hardware can do: memory bandwidth by data sheet or by measurement, and the roofline bound on decoding that follows."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from explorer.accelerators import sheet_of
from kernels.timing import (
    device_name,  # noqa: F401 - the name that identifies results, where everything about devices is looked for
    time_call,
)


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def data_sheet(device: torch.device) -> tuple[float, str] | None:
    """(bytes/s, source) of a known GPU's data sheet: an estimate of what can be reached, not a measurement."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    known = sheet_of(name)
    return None if known is None else (known[1] * 1e9, f"data sheet of {known[0]}")


@cache
def bandwidth(device: torch.device) -> tuple[float, str]:
    """(bytes/s, source): the data sheet's for a known GPU, else the best of five measured reads of 256 MiB."""
    return data_sheet(device) or (read_rate(device), "measured read of 256 MiB")


def read_rate(device: torch.device) -> float:
    """Bytes/s of summing 256 MiB, the best of five."""
    block = torch.ones(32 * 2**20, dtype=torch.int64, device=device)
    return block.nbytes / _best(block.sum, device)


def copy_rate(device: torch.device) -> float:
    """Bytes/s, read and written, of copying 128 MiB, the best of five."""
    source = torch.ones(16 * 2**20, dtype=torch.int64, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s (a multiplication and an addition are two) of a square matmul of bfloat16 or int8, the best of five; None where torch has none."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).mul_(32).to(dtype) for _ in range(2))  # not ones: a GPU multiplies those at a higher clock
    try:
        return 2 * size**3 / _best((lambda: torch._int_mm(a, b.T)) if dtype == torch.int8 else (lambda: a @ b.T), device)
    except RuntimeError:
        return None


def _best(call: Callable[[], object], device: torch.device) -> float:
    """The shortest of five times, after a warm-up: what else runs on the machine only ever adds to it."""
    call()
    return min(time_call([call], device, 1).median for _ in range(5))


def decode_limit(bytes_per_token: float, device: torch.device) -> float:
    """Tokens/s if reading the weights and the cache from memory were all that takes time (roofline, bandwidth side)."""
    return bandwidth(device)[0] / bytes_per_token


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
