"""What the hardware can do: memory bandwidth by data sheet or by measurement, and the roofline bound on decoding that follows."""

from __future__ import annotations

import platform
import time
from functools import cache
from pathlib import Path

import psutil
import torch

# Peak memory bandwidth in bytes/s, from NVIDIA's data sheets of each product; matched by substring, the more specific name first.
DATA_SHEET_BANDWIDTH = {
    "H200": 4.8e12,
    "H100 PCIe": 2.0e12,
    "H100 NVL": 3.9e12,
    "H100": 3.35e12,
    "A100-SXM4-80GB": 2.039e12,
    "A100 80GB": 1.935e12,
    "A100": 1.555e12,
    "L40S": 0.864e12,
    "L4": 0.3e12,
    "A10G": 0.6e12,
    "T4": 0.32e12,
    "RTX PRO 6000": 1.792e12,
    "RTX 4090": 1.008e12,
    "RTX 3090": 0.936e12,
}


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def device_name(device: torch.device) -> str:
    """A name that identifies results: the GPU's, or the CPU's with the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_model()}, {torch.get_num_threads()} threads"


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@cache
def bandwidth(device: torch.device) -> tuple[float, str]:
    """(bytes/s, source): the data sheet's for a known GPU, else the best of five measured reads of 256 MiB."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, value in DATA_SHEET_BANDWIDTH.items():
            if known in name:
                return value, f"data sheet of {known}"
    block = torch.ones(32 * 2**20, dtype=torch.int64, device=device)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        block.sum().item()
        best = min(best, time.perf_counter() - start)
    return block.numel() * 8 / best, "measured read of 256 MiB"


def decode_limit(bytes_per_token: float, device: torch.device) -> float:
    """Tokens/s if reading the weights and the cache from memory were all that takes time (roofline, bandwidth side)."""
    return bandwidth(device)[0] / bytes_per_token


def free_memory(device: torch.device) -> int:
    """Bytes that a new model could take: of the GPU, or of this machine within its container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = psutil.virtual_memory().available
    limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else min(free, max(0, limit - used))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such control group, or "max"
        return None
