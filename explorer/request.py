"""Request: what a person asks for, in plain values, checked and made into an Experiment with its texts. Measures nothing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from explorer import data, models
from explorer.hub import Hub
from explorer.kvcache import WIDTHS, check_heads
from explorer.methods import Method, build, spec_of
from explorer.records import Experiment, InputError

QUICK_TOKENS, ALL_TOKENS = 8192, 10**9
HEAD_WIDTHS = (16, 8, 4)
SHORTEST, LONGEST = 16, 2048  # tokens of a window: in shorter ones hardly a token has a context, and the text falls into thousands of passes


@dataclass(frozen=True)
class Request:
    """model: "demo", a folder or a hub id; method and params as `methods.build` takes them; evaluation and calibration: one of data.SOURCES.

    text: what "pasted" means. tokens: how much of the evaluation text is scored at most, 0 for all of it. sequences: windows of calibration
    text, seed: which ones. length: tokens a window, from SHORTEST, 0 for the model's own length up to 1,024 (2,048 on WikiText-2, as in the papers).
    kv_bits: of the KV cache. head_bits: of the output head. bos: where a BOS stands, see TextRef. text_limit: characters that the text may have.
    """

    model: str
    method: str
    params: dict[str, Any] = field(default_factory=dict)
    evaluation: str = "bundled"
    text: str = ""
    calibration: str = "bundled"
    sequences: int = 16
    seed: int = 0
    kv_bits: int = 16
    tokens: int = QUICK_TOKENS
    length: int = 0
    head_bits: int = 16
    bos: str = "window"
    text_limit: int = data.PASTE_LIMIT

    def prepare(self, hub: Hub) -> tuple[Experiment, Method, dict[str, str]]:
        """(experiment, method, {"evaluation": text, "calibration": text}). Raises InputError with one sentence on anything impossible."""
        method, text = build(self.method, self.params), self.text or ""  # a box of the page that nobody opened sends None
        if method.reads_inputs() and self.calibration == self.evaluation == "pasted":
            raise InputError("Your text cannot calibrate and evaluate at once, the result would flatter the method; choose another text for one of the two.")
        if not text.strip() and "pasted" in (self.evaluation, self.calibration if method.reads_inputs() else ""):
            raise InputError("There is no text of yours to read; paste one (from a shell, give --text FILE) or choose another source.")
        if not (whole(self.sequences, 1, 1024) and whole(self.seed, 0, 2**31 - 1)):
            raise InputError(f"Calibration takes 1 to 1,024 sequences and a seed from 0 up, not {str(self.sequences)[:20]} and {str(self.seed)[:20]}.")
        if self.kv_bits not in WIDTHS:
            raise InputError(f"The KV cache takes {', '.join(map(str, WIDTHS))} bits, not {str(self.kv_bits)[:20]}.")
        if self.head_bits not in HEAD_WIDTHS:
            raise InputError(f"The head takes {', '.join(map(str, HEAD_WIDTHS))} bits, not {str(self.head_bits)[:20]}.")
        if not (whole(self.tokens, 0, ALL_TOKENS) and whole(self.length, 0, LONGEST)) or 0 < self.length < SHORTEST:
            raise InputError(
                f"Give tokens from 0 (all) up and a length of {SHORTEST} to {LONGEST:,}, or 0 for the model's own, "
                f"not {str(self.tokens)[:20]} and {str(self.length)[:20]}."
            )
        if self.bos not in ("window", "text"):
            raise InputError(f"BOS stands before each window or before the text once, not {str(self.bos)[:20]!r}.")
        ref = models.resolve(self.model.strip(), hub)
        if ref.random and (method.reads_inputs() or method.of_model):
            raise InputError(f"{ref.name} has random weights, on which calibration or training means nothing; choose a method that needs no text, such as rtn.")
        length = self._length(models.context(ref, hub))
        if self.kv_bits != 16:
            check_heads(models.typed_configuration(ref, hub), self.kv_bits)
        if not ref.random:
            models.enough(self.tokens or ALL_TOKENS, length)
        further = {"bos": self.bos, "limit": self.text_limit}
        evaluated, evaluation = data.reference(self.evaluation, "evaluation", self.tokens or ALL_TOKENS, length, text, **further)
        calibrated, calibration = data.reference(self.calibration, "calibration", self.sequences * length, length, text, self.seed, **further)
        spec = dataclasses.replace(spec_of(method), kv_bits=self.kv_bits, head_bits=self.head_bits)
        return Experiment(ref, spec, evaluated, calibrated), method, {"evaluation": evaluation, "calibration": calibration}

    def _length(self, context: int) -> int:
        if self.length > context:
            raise InputError(f"Windows of {self.length} tokens are longer than the model's {context}; give a smaller length.")
        return self.length or min(context, 2048 if self.evaluation == "wikitext2" else 1024)


def whole(value: Any, low: int, high: int) -> bool:
    """Whether a value is an integer from low to high, both included."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
