"""A trace of decoding: torch's profiler over a few tokens, with ranges named by layer and operation that Perfetto and Nsight Systems show."""

from __future__ import annotations

import gzip
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from explorer import models
from explorer.decode import Decoder
from explorer.experiment import prepared, released
from explorer.llama import LlamaLoop
from explorer.loader import Loader
from explorer.products import Product
from explorer.records import InputError, Progress
from explorer.request import Request
from explorer.writing import NotWritten, refused, unfinished

PARTS = ("qkv", "out", "gate_up", "down")


def profile(request: Request, load: Loader, context: int, steps: int, output: Path) -> Iterator[Any]:
    """Yields Progress, writes the trace to `output`, returns a text: where the time went, and what to run next. Raises InputError for a context longer than the
    windows that the prompt is cut from, or tokens beyond the model's own length; NotWritten.
    """
    experiment, method, texts = request.prepare(load.hub)
    window, positions = experiment.evaluation.length, models.context(experiment.model, load.hub)
    if context > window or context + steps >= positions:
        raise InputError(
            f"The prompt is cut from one window of text, {window:,} tokens, and with the new tokens it must be shorter than the model's own length of "
            f"{positions:,}; give a smaller --context or --new."
        )
    with released() as hold:
        subject, _ = yield from prepared(experiment, method, texts, load, hold)
        device = subject.loaded.device
        with subject.quantized():
            decoder = Decoder(subject.loaded, context + steps + 8, request.kv_bits)
            decoder.timed(subject.windows[:1, :context], 3)
            name_ranges(decoder)
            activities = [torch.profiler.ProfilerActivity.CPU]
            activities += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
            decoder.prefill(subject.windows[:1, :context])
            yield Progress("profile", 0, 1, f"{steps} tokens")
            with torch.profiler.profile(activities=activities) as trace:
                for step in range(steps):
                    with ranged(f"token {step}"):
                        decoder.step()
        write_trace(trace, output)
        column = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
        table = trace.key_averages().table(sort_by=column, row_limit=15, max_name_column_width=48)
        loop = decoder.told()
        del subject, decoder
    command = " ".join(["python -m explorer", *sys.argv[1:]]) if "explorer" in sys.argv[0] else "python -m explorer profile"
    nsys = f"nsys profile --trace=cuda,nvtx --cuda-graph-trace=node --output=profile {command}"
    return f"{table}\n{loop}; wrote {output}: open it at ui.perfetto.dev. Ranges are NVTX ranges too; on a GPU machine:\n{nsys}"


def write_trace(trace: torch.profiler.profile, output: Path) -> None:
    """Writes a trace, with gzip where the file's name ends in .gz. Raises NotWritten, which torch does not, and then leaves nothing. torch writes its path
    into it, which is another at the end.
    """
    with refused(output), unfinished(output.parent) as beside:
        raw, made = beside / "raw.json", beside / "whole"
        trace.export_chrome_trace(str(raw))
        whole = ended(raw)
        with raw.open("rb") as lines, (gzip.open if output.suffix == ".gz" else open)(made, "wb") as out:
            out.writelines(line.replace(str(raw).encode(), output.name.encode()) for line in lines)
        if not whole:
            raise NotWritten(f"{output} could not be written whole; free some space, or choose another place.")
        made.replace(output)


def ended(trace: Path) -> bool:
    """Whether a file is a trace to its last brace."""
    try:
        with trace.open("rb") as file:
            return deque(file, 1)[0].rstrip().endswith(b"}")
    except (OSError, IndexError):
        return False


@contextmanager
def ranged(name: str) -> Iterator[None]:
    """A range of torch's profiler and, where CUDA runs, of NVTX."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.nvtx.range_push(name)
    try:
        with torch.profiler.record_function(name):
            yield
    finally:
        if cuda:
            torch.cuda.nvtx.range_pop()


def name_ranges(decoder: Decoder) -> None:
    """Puts a range around every product of our own loop: "layers.3 gate_up int4_matmul (cpu)". Another loop keeps torch's own operator names."""
    loop = decoder.forward
    if not isinstance(loop, LlamaLoop):
        return
    for index, block in enumerate(loop.blocks):
        named = {part: _named(getattr(block, part), f"layers.{index} {part}") for part in PARTS}
        loop.blocks[index] = block._replace(**named)
    loop.head = _named(loop.head, "head")


def _named(product: Product, name: str) -> Product:
    run: Callable[[Tensor], Tensor] = product.run

    def inside(x: Tensor) -> Tensor:
        with ranged(f"{name} {product.name}"):
            return run(x)

    return product._replace(run=inside)
