"""What C kernels must keep when several threads call them, and when one ends: each its own memory, and none of it afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import psutil
import torch
from torch import Tensor


def share_nothing(calls: Sequence[Callable[[], Tensor]], times: int = 30) -> None:
    """Asserts that calls give the same in threads that run at once as one after the other."""
    expected, wrong = [call() for call in calls], []

    def again(i: int) -> None:
        wrong.extend(1 for _ in range(times) if not torch.equal(calls[i](), expected[i]))

    threads = [threading.Thread(target=again, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def give_back(call: Callable[[], object]) -> None:
    """Asserts that a thread keeps nothing of a call that takes 8 MiB: a worker begins a thread for each job."""
    process, sizes = psutil.Process(), []
    for _ in range(30):
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        sizes.append(process.memory_info().rss)
    assert sizes[-1] - sizes[5] < 60 * 2**20, sizes
