"""Times a call honestly: warm-up, rotated arguments larger than the cache, CUDA graph on a GPU, median and 20/80 percentiles."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch


class Timing(NamedTuple):
    """Seconds of one call: median, 20th and 80th percentile, and the number of samples."""

    median: float
    p20: float
    p80: float
    n: int


def device_name(device: torch.device) -> str:
    """The GPU's name; or the CPU's with the number of threads and the instructions that torch found, such as "AMD EPYC, 2 threads, AVX2": machines of
    one name may run other kernels, and results are kept and compared by this name.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads, tiles = torch.get_num_threads(), " and AMX" if torch.cpu._is_amx_tile_supported() else ""
    return f"{_cpu_name()}, {threads} thread{'' if threads == 1 else 's'}, {torch.backends.cpu.get_cpu_capability()}{tiles}"


@cache
def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cache_bytes(device: torch.device) -> int:
    """Bytes that rotated copies must exceed so that no call finds its weights in the cache."""
    return 4 * torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 96 * 2**20


LEAST = 5  # rounds that a median with a spread takes
AWAKE = 0.03  # seconds of rounds before the first that counts: a GPU that waited for the host to pack a weight has lowered its clock
CAPTURE = "thread_local"  # what other threads of this process ask of the GPU does not spoil a graph that this one records


def time_call(calls: Sequence[Callable[[], object]], device: torch.device, samples: int = 20, limit: float = 3.0) -> Timing:
    """Seconds per call, over `samples` rounds through all calls, fewer (but LEAST) when they take longer than `limit` seconds. The calls do the same
    work on different copies of the weights.
    """
    round_trip = _graph_round(calls) if device.type == "cuda" else _plain_round(calls)
    first = round_trip()
    count = min(samples, max(LEAST, int(limit / max(first, 1e-9))))
    seconds = sorted(round_trip() / len(calls) for _ in range(count))
    return Timing(seconds[count // 2], seconds[count // 5], seconds[count * 4 // 5], count)


def busy() -> str:
    """A clause that says how busy the CPUs are with other work, "" when at least as many are idle as threads are used. Timings beside other work
    say little: a thread that waits for a core holds up all the others at every barrier.
    """
    waiting, cores = os.getloadavg()[0], os.cpu_count() or 1
    return "" if waiting + torch.get_num_threads() <= cores + 0.5 else f"{waiting:.1f} processes run or wait on {cores} cores"


def best_time(call: Callable[[], object], device: torch.device, patience: int = 8, limit: float = 0.7) -> float:
    """Seconds of the fastest call after a warm-up: what else runs on the machine only ever adds to it. Ends once `patience` calls in a row were not 1%
    faster, or after `limit` seconds.
    """
    call()
    best, since, end = math.inf, 0, time.perf_counter() + limit
    while since < patience and (time.perf_counter() < end or best == math.inf):
        taken = time_call([call], device, 1).median
        best, since = min(best, taken), 0 if taken < 0.99 * best else since + 1
    return best


def copy_bandwidth(device: torch.device) -> float:
    """Bytes/s that a copy of 256 MiB reads and writes: what a kernel can reach on this device, the best measured."""
    source = torch.ones(64 * 2**20, dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_time(lambda: target.copy_(source), device)


def read_bandwidth(device: torch.device) -> float:
    """Bytes/s of summing 256 MiB, the best measured, on as many threads as everything else here runs on."""
    block = torch.ones(32 * 2**20, dtype=torch.int64, device=device)
    return block.nbytes / best_time(block.sum, device)


def _plain_round(calls: Sequence[Callable[[], object]]) -> Callable[[], float]:
    def once() -> float:
        start = time.perf_counter()
        for call in calls:
            call()
        return time.perf_counter() - start

    return once


def _graph_round(calls: Sequence[Callable[[], object]]) -> Callable[[], float]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())  # the copies are made there
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode=CAPTURE):
        for call in calls:
            call()

    def once() -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000

    awake = time.perf_counter() + AWAKE
    while time.perf_counter() < awake:
        once()
    return once
