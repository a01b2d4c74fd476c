"""Mixed: another method or bit-width for each layer, by rules over layer names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from typing import ClassVar

from torch import Tensor

from explorer.input_statistics import InputStatistics
from explorer.methods import Method, build, from_text, methods, text
from explorer.qtensor import QuantizedTensor
from explorer.records import UNNAMED, InputError

# Values and the layers that write to the residual stream at four bits, the others at three: below the line between all at three and all at four.
DEFAULT = "\n".join([*(f"*{name}: gptq bits=4 symmetric=false" for name in ("v_proj", "o_proj", "down_proj")), "*: gptq bits=3 symmetric=false"])


@dataclass(frozen=True)
class Mixed(Method):
    """Layers differ in how much rounding them costs: values, and the layers that write to the residual stream, are often the worst. Spending more
    bits there and fewer elsewhere can beat one width for all at the same size. One rule a line, `pattern: method parameter=value ...`; the first whose pattern
    matches a layer's name decides, `none` keeps 16 bits, and so does a layer that no rule names.
    """

    name: ClassVar[str] = "mixed"
    title: ClassVar[str] = "Mixed (a rule for each layer)"
    short: ClassVar[str] = "Mixed"
    paper: ClassVar[str] = "Dong et al. 2019, HAWQ, arXiv 1905.03293, section 3 (why layers differ); the rules are yours"
    needs_inputs: ClassVar[bool] = True
    by_name: ClassVar[bool] = True

    rules: str = text(DEFAULT, title="Rules", help="pattern: method parameter=value ... One a line, the first that matches a layer decides.")

    def check(self) -> str:
        try:
            parsed(self.rules)
        except InputError as error:
            return str(error)
        return ""

    def of(self, layer: str) -> Method | None:
        """The method of a layer, None when no rule names it."""
        return next((method for pattern, method in parsed(self.rules) if fnmatch(layer, pattern)), None)

    def reads_inputs(self) -> bool:
        return any(method.reads_inputs() for _, method in parsed(self.rules))

    def reads_gram(self, layer: str) -> bool:
        method = self.of(layer)
        return method is not None and method.reads_gram(layer)

    def inverts_gram(self, layer: str) -> bool:
        method = self.of(layer)
        return method is not None and method.inverts_gram(layer)

    def modules(self) -> set[str]:
        return super().modules().union(*(method.modules() for _, method in parsed(self.rules)))

    def refuses(self, shape: tuple[int, int], layer: str = "") -> str:
        method = self.of(layer)
        return UNNAMED if method is None else method.refuses(shape, layer)

    def stored_as(self, shape: tuple[int, int], layer: str = "") -> str:
        method = self.of(layer)
        return "" if method is None else method.stored_as(shape, layer)

    def quantize(self, weight: Tensor, inputs: InputStatistics | None, layer: str = "") -> QuantizedTensor:
        method = self.of(layer)
        if method is None:
            raise ValueError(f"no rule names {layer!r}")
        return method.quantize(weight, inputs if method.reads_inputs() else None, layer)

    def quantize_together(self, weights: dict[str, Tensor], inputs: InputStatistics | None, rows: Tensor | None) -> Iterator[tuple[str, QuantizedTensor]]:
        """What methods of one name have of the layers goes to them together; a scale that all of them must share only where these are all."""
        for kind in dict.fromkeys(type(self.of(layer)) for layer in weights):
            own = {layer: method for layer in weights if type(method := self.of(layer)) is kind}
            alike = {layer: weights[layer] for layer in own}
            yield from kind.quantize_each(own, alike, inputs, rows if len(own) == len(weights) else None)


@lru_cache(16)  # rules are a visitor's text: 300 of 10,000 characters took 41 MB
def parsed(rules: str) -> tuple[tuple[str, Method], ...]:
    """(pattern, method) of every rule. Raises InputError with a sentence that quotes the line at fault."""
    found = []
    for line in rules.splitlines():
        pattern, colon, rest = line.partition(":")
        name, *pairs = rest.split() or [""]
        if not colon or not pattern.strip() or any("=" not in pair for pair in pairs):
            raise InputError(f"mixed: the rule {line[:60]!r} does not read as 'pattern: method parameter=value ...', such as '*: rtn bits=4'.")
        if name in ("mixed", "") or (name in methods() and methods()[name].of_model):
            raise InputError(f"mixed: the rule {line[:60]!r} needs a method that quantizes one layer at a time, such as rtn or gptq.")
        try:
            method = build(name, from_text(name, dict(pair.split("=", 1) for pair in pairs)))
        except InputError as error:
            raise InputError(f"mixed: in the rule {line[:60]!r}: {error}") from error
        if method.by_name:
            raise InputError(f"mixed: the rule {line[:60]!r} names a mixture, which has rules of its own; name one format, such as kquant format=q4_k.")
        found.append((pattern.strip(), method))
    if not found:
        raise InputError("mixed: give at least one rule, such as '*: rtn bits=4'.")
    return tuple(found)
