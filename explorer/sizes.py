"""What a checkpoint weighs, and the memory that quantizing it takes: whole on the device, or offloaded, a layer at a time; and how a want of memory shows.
Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

FLOATS = {"F16": "float16", "F32": "float32", "F64": "float64"}  # dtypes of checkpoints beside bfloat16, and torch's names of them
ROOM = 5e8  # bytes for activations and the process itself
BESIDE = 48  # bytes for each parameter of the largest matrix while it is rounded and packed; 47 were measured for NF4
COMPENSATED, SQUARE = 20, 20  # the same for GPTQ, and for each pair of inputs: five matrices [K, K] in float32, from the Hessian to its factor


WINDOW = 2048  # tokens of a window at most
PASS = 2**27  # logits of one forward pass over several windows at most; one window may have more
LOGIT = 6  # bytes a logit while windows are scored: both models' in bfloat16, and one of them once more while windows are joined
TRAINED = 22  # bytes a weight in training: weight, gradient and Adam's two moments in float32, what rounding keeps for the way back, the rounded weight
ACTIVE = 3  # bytes an input or output of a layer in training: in 16 bits, and half as much for what lies between layers
LEARNED = 30  # bytes a logit in training: the student's and the teacher's, their logarithms and the way back


@dataclass(frozen=True)
class Weight:
    """What a checkpoint weighs. parameters by the checkpoint's dtype ("BF16"); largest: those of the largest tensor inside the blocks; outside: those
    outside of them, embedding and head above all, which stay in 16 bits; vocabulary: rows of the embedding; widest: most inputs
    of a tensor inside the blocks; matrices: the shapes [N, K] of those inside the blocks.
    """

    parameters: Mapping[str, int]
    largest: int
    outside: int = 0
    vocabulary: int = 0
    widest: int = 0
    matrices: tuple[tuple[int, int], ...] = ()

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.parameters.values())

    @property
    def mapped(self) -> bool:
        """Whether the weights can stay in their files, mapped into memory: those in bfloat16 need no conversion."""
        return set(self.parameters) == {"BF16"}

    @property
    def rounded(self) -> tuple[str, ...]:
        """The dtypes, by torch's names, of those that are rounded to bfloat16 as they are read."""
        return tuple(name for kind, name in FLOATS.items() if kind in self.parameters)

    @classmethod
    def of(cls, tensors: Iterable[tuple[str, str, Sequence[int]]]) -> Weight:
        """The weight of tensors given as (name, dtype, shape). Those of a block have its number as a part of their name."""
        parameters: dict[str, int] = {}
        largest = outside = table = vocabulary = widest = 0
        matrices = list[tuple[int, int]]()
        for name, dtype, shape in tensors:
            count = math.prod(shape)
            parameters[dtype] = parameters.get(dtype, 0) + count
            if any(part.isdecimal() for part in name.split(".")):
                largest, widest = max(largest, count), max(widest, *shape[-1:], 0)
                matrices += [tuple(shape)] if len(shape) == 2 else []
            else:
                outside += count
                table, vocabulary = max((table, vocabulary), (count, shape[0] if shape else 0))
        return cls(parameters, largest, outside, vocabulary, widest, tuple(matrices))


def beside(weight: Weight) -> float:
    """Bytes that one layer takes while it is quantized, by the method that takes most."""
    return max(BESIDE * weight.largest, COMPENSATED * weight.largest + SQUARE * weight.widest**2)


def scoring(vocabulary: int) -> float:
    """Bytes that the logits of windows take while both models score them: of two windows, or of one where two would be more than a pass."""
    return LOGIT * vocabulary * WINDOW if 2 * vocabulary * WINDOW > PASS else 2 * LOGIT * vocabulary * WINDOW


def training(weights: int, logits: int, values: int) -> float:
    """Bytes that training takes beside the model: so many weights, and a step with so many logits and so many inputs and outputs of the layers."""
    return TRAINED * weights + LEARNED * logits + ACTIVE * values + ROOM


def resident(weight: Weight, on_gpu: bool) -> float:
    """Bytes that the 16-bit weights take once they are read: none on a CPU where they stay mapped from their files."""
    return 2.0 * weight.total if on_gpu or not weight.mapped else 0.0


def whole(weight: Weight, on_gpu: bool) -> float:
    """Bytes of the device that quantizing and measuring take, estimated: for each parameter 2.2, which was measured (codes, packed form, what the
    allocator holds), and 2 for the 16-bit weights unless they can stay mapped on disk; and the logits.
    """
    return weight.total * (4.2 if on_gpu or not weight.mapped else 2.2) + beside(weight) + scoring(weight.vocabulary) + ROOM


def offloaded(weight: Weight, on_gpu: bool, bits: int = 4) -> float:
    """The same where 16-bit weights stay in the files and codes go to a file: what stays is the packed form of `bits`, with a tenth for scales and
    what the allocator holds, and on a GPU embedding and head in 16 bits.
    """
    inside = weight.total - weight.outside
    kept = 2 * weight.outside if on_gpu or not weight.mapped else 0
    return 1.1 * inside * bits / 8 + kept + beside(weight) + scoring(weight.vocabulary) + ROOM


def out_of_memory(error: BaseException) -> bool:
    """Whether memory was not enough, of the device or of the process: torch says it in several ways."""
    text = f"{type(error).__name__}: {error}"
    return isinstance(error, MemoryError) or any(sign in text for sign in ("OutOfMemory", "out of memory", "can't allocate memory"))
