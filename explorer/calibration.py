"""Layer inputs, block by block: the inputs of a few windows, or statistics of many. Peak memory is the model plus one block's activations: hidden states of
all windows, [B, T, H] a batch on the model's device (128 x 2,048 x 8,192 in bfloat16: 4.3 GB), and what one batch becomes inside. Knows no method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from explorer.flow import Before, Group, groups
from explorer.input_statistics import InputStatistics, InputSums
from explorer.models import CACHE_ARGUMENTS, LoadedModel, blocks, linears

BATCH = 4  # windows a forward pass, at most


class _Stop(Exception):
    """Ends a forward pass once what was looked for is known."""


@torch.no_grad()
def first_inputs(loaded: LoadedModel, windows: Tensor) -> tuple[list[Tensor], list[dict]]:
    """(hidden states entering block 0, one [B, T, H] a batch; for each block the keyword arguments it gets: blocks of one model may see through different
    windows and at different rotary frequencies, as Gemma's do). windows [W, T] int64, W >= 1: all are run.
    """
    size = max(n for n in range(1, BATCH + 1) if len(windows) % n == 0)  # equal batches, because all share the keyword arguments
    first, *others = windows.split(size)
    all_blocks, batches = blocks(loaded.model), list[Tensor]()
    arguments = _arguments(loaded, first)

    def stop(module: nn.Module, args: tuple, kwargs: dict) -> None:
        batches.append(args[0] if args else kwargs["hidden_states"])
        raise _Stop

    handle = all_blocks[0].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        for batch in (first, *others):
            with suppress(_Stop):
                loaded.model(batch, use_cache=False)
    finally:
        handle.remove()
    return batches, arguments


def _arguments(loaded: LoadedModel, batch: Tensor) -> list[dict]:
    """What each block gets beside its hidden states when the model runs on a batch [B, T] int64. Only the first block computes, to show whether blocks
    give a tensor or a tuple; the others hand on what they get.
    """
    all_blocks, found, tuples = blocks(loaded.model), list[dict](), list[bool]()

    def passing(forward: Callable) -> Callable:
        def passed(*args: Any, **kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            found.append({name: v for name, v in kwargs.items() if name not in ("hidden_states", *CACHE_ARGUMENTS, "use_cache")})
            if len(found) == len(all_blocks):
                raise _Stop
            if not tuples:
                tuples.append(isinstance(forward(*args, **kwargs), tuple))
            return (hidden,) if tuples[0] else hidden

        return passed

    for block in all_blocks:
        block.forward = passing(block.forward)
    try:
        with suppress(_Stop):
            loaded.model(batch, use_cache=False)
    finally:
        for block in all_blocks:
            del block.forward  # the class's own is there again
    return found


def _forward(block: nn.Module, hidden: Tensor, arguments: dict) -> Tensor:
    output = block(hidden, **arguments)
    return output[0] if isinstance(output, tuple) else output


def advance(block: nn.Module, batches: list[Tensor], arguments: dict) -> None:
    """Replaces what enters a block, [B, T, H] a batch, by what leaves it, a batch at a time so that both are never held whole."""
    for index, hidden in enumerate(batches):
        batches[index] = _forward(block, hidden, arguments)


@torch.no_grad()
def record_inputs(block: nn.Module, batches: list[Tensor], arguments: dict, wanted: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Runs a block on all batches and returns the inputs of the wanted layers, [M, K] in the model's dtype; shared inputs share memory. All inputs of
    all wanted layers are held at once: for a few windows.
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in wanted}

    def keep(name: str) -> Callable:
        return lambda module, args: seen[name].append(args[0].flatten(0, -2))

    handles = [layer.register_forward_pre_hook(keep(name)) for name, layer in wanted.items()]
    try:
        for hidden in batches:
            _forward(block, hidden, arguments)
    finally:
        for handle in handles:
            handle.remove()
    joined: dict[tuple, Tensor] = {}
    result = {}
    for name, parts in seen.items():
        address = tuple(part.data_ptr() for part in parts)
        result[name] = joined.setdefault(address, torch.cat(parts) if parts else torch.empty(0))
    return result


@torch.no_grad()
def block_inputs(loaded: LoadedModel, windows: Tensor, wanted: dict[str, nn.Module]) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
    """Yields (block, number of blocks, {layer name: its inputs [M, K]}) for the wanted layers of each block, the model running as it is."""
    batches, arguments = first_inputs(loaded, windows)
    names = {id(layer): name for name, layer in wanted.items()}
    all_blocks = blocks(loaded.model)
    for index, block in enumerate(all_blocks):
        inside = {names[id(m)]: m for m in block.modules() if id(m) in names}
        yield index, len(all_blocks), record_inputs(block, batches, arguments[index], inside)
        advance(block, batches, arguments[index])


@torch.no_grad()
def flowing(loaded: LoadedModel, windows: Tensor) -> Iterator[tuple[Tensor, list[Group]]]:
    """Yields (what enters it, [B, T, H]; its groups of linear layers) for each block, in order. windows [W, T] int64: the first of them are run."""
    batches, arguments = first_inputs(loaded, windows)
    hidden = batches[0]
    for block, given in zip(blocks(loaded.model), arguments, strict=True):
        found, after = groups(block, hidden, given), _forward(block, hidden, given)
        yield hidden, found
        hidden = after


@torch.no_grad()
def sequential_statistics(loaded: LoadedModel, windows: Tensor, asked: Mapping[str, bool]) -> Iterator[tuple[list[str], InputStatistics, Before | None]]:
    """Yields (layers that share an input, what that input was like, what gives it) in order of execution, for each such set with a layer that is asked
    about. asked: {layer: whether the Gram matrix of its inputs is needed}.

    The caller replaces the yielded layers in the model before it asks for more, so that each set sees the effect of all sets
    before it (true-sequential order: q/k/v, then o, then gate/up, then down).
    """
    batches, arguments = first_inputs(loaded, windows)
    names = {id(layer): name for name, layer in linears(loaded.model).items()}
    for block, given in zip(blocks(loaded.model), arguments, strict=True):
        for group in groups(block, batches[0], given):
            layers = sorted(names[id(layer)] for layer in group.layers)
            if not asked.keys().isdisjoint(layers):
                gram = any(asked.get(name, False) for name in layers)
                yield layers, _statistics(block, batches, given, group.layers[0], gram), group.before
        advance(block, batches, given)


def _statistics(block: nn.Module, batches: list[Tensor], arguments: dict, layer: nn.Module, gram: bool) -> InputStatistics:
    """Of the inputs of one of a block's layers while it runs on all batches; no input outlives its batch."""
    sums = InputSums(gram)
    handle = layer.register_forward_pre_hook(lambda module, args: sums.add(args[0]))
    try:
        for hidden in batches:
            _forward(block, hidden, arguments)
    finally:
        handle.remove()
    return sums.statistics()
