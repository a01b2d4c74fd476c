"""What logits say of tokens, in slices of rows: float32 copies of [M, V] cost the same memory whatever the vocabulary. Knows no models or metrics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explorer import sizes

AT_ONCE = 2**22  # logits whose copies in float32 are held at once; each takes 22 bytes in `quality.token_statistics`


def by_rows(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """A function of rows, on a few rows of logits [M, V] (the first tensor) and of what goes with them at a time; its results one below the other."""
    few = max(1, AT_ONCE // tensors[0].shape[-1])
    return torch.cat([function(*rows) for rows in zip(*(tensor.split(few) for tensor in tensors), strict=True)])


def losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of targets [M] int64 under logits [M, V], [M] float32 nats."""
    return by_rows(lambda rows, wanted: F.cross_entropy(rows.float(), wanted, reduction="none"), logits, targets)


def passes(model: nn.Module, windows: Tensor, most: int) -> tuple[Tensor, ...]:
    """Windows [W, T] in parts for one forward pass each: of at most `most`, and of one where more would give too many logits to hold (sizes.PASS)."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    return windows.split(max(1, min(most, sizes.PASS // (windows.shape[1] * vocabulary))))
