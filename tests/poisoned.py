"""Uninitialised memory that is seen where nobody wrote to it."""

from __future__ import annotations

import pytest
import torch

POISON = 0x5A  # a byte of integers: neither zero nor what codes of few bits are


def _filled(made: torch.Tensor) -> torch.Tensor:
    if made.is_floating_point():
        return made.fill_(torch.nan)
    made.view(torch.uint8).fill_(POISON)
    return made


def poison(patch: pytest.MonkeyPatch) -> None:
    """What a kernel does not write stays NaN, or in integers POISON in every byte."""
    empty, new_empty, empty_like = torch.empty, torch.Tensor.new_empty, torch.empty_like
    patch.setattr(torch, "empty", lambda *size, **options: _filled(empty(*size, **options)))
    patch.setattr(torch.Tensor, "new_empty", lambda *args, **options: _filled(new_empty(*args, **options)))
    patch.setattr(torch, "empty_like", lambda *args, **options: _filled(empty_like(*args, **options)))
