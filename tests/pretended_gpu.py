"""A GPU that is not there: tensors that say they are on one, hold their numbers on the CPU and refuse what a GPU would refuse. For tests of device handling.

What runs is torch's own CPU code, so numbers are real. Refused are an operation on tensors of both devices, a generator of the other device, and,
while a CUDA graph is recorded, whatever makes the host wait, also to learn a result's size, or copies between the devices. A graph replays the
operations it recorded, on the same memory. Kernels run through Triton's interpreter: what they do inside is not looked at.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("cuda")
CROSSING = ("copy_", "_to_copy")  # operations that take tensors of two devices
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")  # they take indices of the host too, but wait for them
DEPENDS = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}  # torch's own word on operations whose result's size, or value, is data


class Refused(RuntimeError):
    """What a GPU would not have done."""


class Held:
    """Bytes of the storages that tensors on the GPU keep alive, and the most there ever were since `start`."""

    def __init__(self) -> None:
        self.users: Counter[int] = Counter()
        self.bytes = self.peak = 0

    def start(self) -> None:
        """Looks for the peak from now on."""
        self.peak = self.bytes

    def add(self, tensor: Tensor, storage: torch.UntypedStorage) -> None:
        place, size = storage.data_ptr(), storage.nbytes()
        self.bytes += 0 if self.users[place] else size
        self.users[place] += 1
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(tensor, self._drop, place, size)

    def _drop(self, place: int, size: int) -> None:
        self.users[place] -= 1
        if not self.users[place]:
            del self.users[place]
            self.bytes -= size


held = Held()


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU; `numbers` is a CPU tensor. To torch's C++ code it is one of the CPU: a build without CUDA runs it too."""

    @staticmethod
    def __new__(cls, numbers: Tensor) -> OnGpu:
        made = torch.Tensor._make_wrapper_subclass(
            cls, numbers.shape, strides=numbers.stride(), storage_offset=numbers.storage_offset(), dtype=numbers.dtype, requires_grad=False
        )
        made.numbers = numbers
        held.add(made, numbers.untyped_storage())
        return made

    device, is_cuda, is_cpu = property(lambda self: GPU), property(lambda self: True), property(lambda self: False)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return ran(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl  # the mode below sees every function

    def data_ptr(self) -> int:
        return self.numbers.data_ptr()

    def untyped_storage(self) -> Any:
        return self.numbers.untyped_storage()

    def tolist(self) -> Any:
        _no_waiting("tolist")
        return self.numbers.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"OnGpu({self.numbers!r})"


def moved(func: Any, args: tuple, kwargs: dict) -> Any:
    """What moves tensors between the devices, or makes them of data of the host; torch's C++ code would not know the devices apart."""
    if func is torch.Tensor.cpu:
        func, args = torch.Tensor.to, (args[0], "cpu")
    if func is torch.Tensor.to:
        tensor, *where = args
        like = where[0] if where and isinstance(where[0], Tensor) else None
        device, dtype, *_ = (like.device, like.dtype) if like is not None else torch._C._nn._parse_to(*where, **kwargs)
        device, dtype = device or tensor.device, dtype or tensor.dtype
        if "cuda" not in (device.type, tensor.device.type):
            return func(*args, **kwargs)
        if (device.type, dtype) == (tensor.device.type, tensor.dtype):
            return tensor
        if device.type == "cpu":
            _no_waiting("to a CPU")
            return tensor.numbers.to(dtype, copy=True)
        return torch.ops.aten._to_copy(tensor, dtype=dtype, device=device)
    if func is torch.Tensor.new_tensor and isinstance(args[0], OnGpu):
        func, args, kwargs = torch.tensor, args[1:], {"dtype": args[0].dtype, "device": GPU} | kwargs
    if func is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == "cuda":
        made = func(*args, **kwargs | {"device": "cpu"})
        return torch.ops.aten._to_copy(made, device=GPU)
    if func is torch.nn.functional.one_hot and isinstance(args[0], OnGpu):
        return OnGpu(func(args[0].numbers, *args[1:], **kwargs))
    return func(*args, **kwargs)


MOVED = (torch.Tensor.to, torch.Tensor.cpu, torch.tensor, torch.Tensor.new_tensor, torch.nn.functional.one_hot)


class _Functions(TorchFunctionMode):
    """Sees the functions that `moved` stands in for, whatever their tensors."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return moved(func, args, kwargs or {}) if func in MOVED else func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    """Sees the operations that make tensors on a GPU out of nothing or out of CPU tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return ran(func, args, kwargs or {})


class Graph:
    """A recorded CUDA graph: operations with their arguments and results, run again in place."""

    def __init__(self) -> None:
        self.steps: list[tuple] = []

    def replay(self) -> None:
        with torch.utils._python_dispatch._disable_current_modes():
            for func, args, kwargs, results in self.steps:
                for old, new in zip(results, tensors_of(func(*args, **kwargs)), strict=True):
                    if old.data_ptr() != new.data_ptr():  # neither a view nor in place: the memory of the first run is written again
                        old.copy_(new)


recorded: Graph | None = None  # the graph that is being recorded


def _no_waiting(what: str) -> None:
    if recorded is not None:
        raise Refused(f"{what} makes the host wait for the GPU while a graph is recorded")


def each(change: Callable[[Any], Any], values: Any) -> Any:
    """Arguments or results with every leaf changed."""
    if isinstance(values, list | tuple):
        return type(values)([each(change, value) for value in values])
    return {name: each(change, value) for name, value in values.items()} if isinstance(values, dict) else change(values)


def tensors_of(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    each(lambda value: found.append(value) if isinstance(value, Tensor) else None, values)
    return found


def ran(func: Any, args: tuple, kwargs: dict) -> Any:
    """An operation's result, on the GPU if any of its tensors is or if it is asked to be; Refused where a GPU would refuse."""
    tensors, asked = tensors_of((args, kwargs)), kwargs.get("device")
    there = [t for t in tensors if isinstance(t, OnGpu)]
    if not there and (asked is None or torch.device(asked).type != "cuda"):  # C++ code asks for "cpu": it takes an OnGpu for one of these
        return func(*args, **kwargs)
    _check(func, args, tensors, there, kwargs)
    owners = {id(t.numbers): t for t in there}
    args, kwargs = each(lambda a: a.numbers if isinstance(a, OnGpu) else a, (args, kwargs))
    if asked is not None:
        kwargs["device"] = torch.device("cpu")
    results = func(*args, **kwargs)
    if recorded is not None:
        recorded.steps.append((func, args, kwargs, tensors_of(results)))
    return each(lambda t: (owners[id(t)] if id(t) in owners else OnGpu(t)) if isinstance(t, Tensor) else t, results)


def _reads_back(func: Any, args: tuple, kwargs: dict) -> bool:
    """Whether the host must learn numbers of the GPU first: a value that it asks for, or how large a result is (nonzero, unique, a mask as an index)."""
    name = func.overloadpacket.__name__
    if name in INDEXED:
        masks = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        return masks and (name == "index" or args[2].numel() > 1)  # one value goes to all the places of a mask without counting them
    return not DEPENDS.isdisjoint(func.tags) and kwargs.get("output_size") is None


def _check(func: Any, args: tuple, tensors: list[Tensor], there: list[OnGpu], kwargs: dict) -> None:
    name, here = func.overloadpacket.__name__, [t for t in tensors if not isinstance(t, OnGpu) and t.device.type == "cpu"]
    if _reads_back(func, args, kwargs) or (name in CROSSING and here):
        _no_waiting(name)
    if name in CROSSING:
        return
    large = [t for t in here if t.dim()]
    if name in INDEXED and there[:1] and tensors[0] is there[0] and large:
        _no_waiting(name)
    elif large and there:
        raise Refused(f"{name} got tensors of two devices: {[tuple(t.shape) for t in there]} on the GPU, {[tuple(t.shape) for t in large]} on the CPU")
    if getattr(kwargs.get("generator"), "device", GPU).type == "cpu":
        raise Refused(f"{name} on the GPU got a generator of the CPU")


@contextmanager
def _graph(graph: Graph, **_: Any) -> Iterator[None]:
    global recorded
    recorded = graph
    try:
        yield
    finally:
        recorded = None


class _Event:
    def __init__(self, **_: Any) -> None: ...

    def record(self) -> None: ...

    def synchronize(self) -> None:
        _no_waiting("Event.synchronize")

    def elapsed_time(self, end: Any) -> float:
        return 1.0


class _Stream:
    def wait_stream(self, other: Any) -> None: ...


FACTS = {"multi_processor_count": 132, "L2_cache_size": 50 << 20, "total_memory": 80 << 30}
PRETENDED = {
    "get_device_name": lambda *_: "NVIDIA H100 80GB HBM3",
    "get_device_properties": lambda *_: SimpleNamespace(**FACTS),
    "mem_get_info": lambda *_: (70 << 30, 80 << 30),
    "memory_reserved": lambda *_: 0,
    "memory_allocated": lambda *_: 0,
    "synchronize": lambda *_: _no_waiting("synchronize"),
    "Event": _Event,
    "Stream": _Stream,
    "current_stream": lambda *_: _Stream(),
    "stream": lambda _: nullcontext(),
    "CUDAGraph": Graph,
    "graph": _graph,
    "_lazy_init": lambda: None,
}


@contextmanager
def there(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The device, as long as the context lasts."""
    for name, value in PRETENDED.items():
        monkeypatch.setattr(torch.cuda, name, value)
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter cannot become another class in place
    try:
        with _Operations(), _Functions():
            yield GPU
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The device, for the length of a test."""
    with there(monkeypatch) as device:
        yield device
