"""Published WikiText-2 rows and the command that repeats them: `python -m explorer reproduce`. Says which rows could not be run, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from traceback import walk_tb
from typing import Any

from explorer import models
from explorer.experiment import LocalRunner, last_report
from explorer.records import Event, InputError

GPTQ_PAPER = "Frantar et al. 2022, arXiv 2210.17323, tables of OPT on WikiText-2"
AWQ_PAPER = "Lin et al. 2023, arXiv 2306.00978, table of LLaMA on WikiText-2"
ROW = {"granularity": "channel", "symmetric": False}  # one asymmetric grid a row, as in the GPTQ paper
G128 = {"granularity": "group", "group_size": 128, "symmetric": False}
COLUMNS = {"act_order": False}  # the GPTQ paper rounds columns in their own order
# WikiText-2 raw test, all of it, windows of 2,048 that are cut from the text with the tokenizer's BOS once before it; what reads calibration text reads
# 128 windows of C4.
PROTOCOL = {"evaluation": "wikitext2", "calibration": "c4", "sequences": 128, "length": 2048, "tokens": 0, "bos": "text"}

# In what a calibrated row here departs from its authors' code.
NOTES = {
    "gptq": "GPTQ: its authors crop each calibration window from one document of C4 that is long enough; here documents are joined and then cut. "
    "Layers read what the rounded ones of their own block give, which is an option there.",
    "awq": "AWQ: its authors calibrate on 512 windows of 512 tokens of pileval, with the 16-bit model's inputs; here 128 of 2,048 of C4, documents joined, "
    "and inputs from the layers already quantized.",
}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A perplexity that a paper gives. tolerance: how far ours may be, relative: 16-bit rows differ by bfloat16 against float16 (0.5%), rounded
    rows by the rounding of scales to bfloat16 (2%), calibrated ones also by which text was drawn (3%).
    """

    model: str
    method: str
    params: dict[str, Any]
    perplexity: float
    tolerance: float
    source: str
    options: dict[str, Any] = field(default_factory=lambda: dict(PROTOCOL))

    @property
    def note(self) -> str:
        """In what its run departs from the paper's, "" where it does not."""
        return NOTES.get(self.method, "")

    def title(self) -> str:
        """Such as "facebook/opt-125m gptq bits=4"."""
        return " ".join([self.model, self.method, *(f"{name}={value}" for name, value in self.params.items())])


def _opt(model: str, method: str, bits: int, perplexity: float) -> Published:
    params = {} if method == "none" else {"bits": bits, **ROW} | (COLUMNS if method == "gptq" else {})
    return Published(f"facebook/{model}", method, params, perplexity, {"none": 0.005, "rtn": 0.02, "gptq": 0.03}[method], GPTQ_PAPER)


def _llama(model: str, method: str, bits: int, perplexity: float, reorder: bool = False) -> Published:
    grid = {"group_size": 128} if method == "awq" else G128 | ({"act_order": reorder} if method == "gptq" else {})
    params = {} if method == "none" else {"bits": bits, **grid}
    return Published(model, method, params, perplexity, {"none": 0.005, "rtn": 0.02, "gptq": 0.03, "awq": 0.03}[method], AWQ_PAPER)


PUBLISHED = (
    _opt("opt-125m", "none", 16, 27.65), _opt("opt-125m", "rtn", 4, 37.28), _opt("opt-125m", "gptq", 4, 31.12), _opt("opt-125m", "gptq", 3, 53.85),
    _opt("opt-1.3b", "none", 16, 14.63), _opt("opt-1.3b", "rtn", 4, 48.17), _opt("opt-1.3b", "gptq", 4, 15.47),
    _llama("huggyllama/llama-7b", "none", 16, 5.68), _llama("huggyllama/llama-7b", "rtn", 4, 5.96),
    _llama("huggyllama/llama-7b", "gptq", 4, 6.22), _llama("huggyllama/llama-7b", "gptq", 4, 5.83, reorder=True),
    _llama("huggyllama/llama-7b", "awq", 4, 5.78),
    _llama("meta-llama/Llama-2-7b-hf", "none", 16, 5.47), _llama("meta-llama/Llama-2-7b-hf", "rtn", 4, 5.73),
    _llama("meta-llama/Llama-2-7b-hf", "gptq", 4, 5.69), _llama("meta-llama/Llama-2-7b-hf", "awq", 4, 5.60),
    _llama("meta-llama/Llama-2-7b-hf", "rtn", 3, 6.66), _llama("meta-llama/Llama-2-7b-hf", "gptq", 3, 6.43),
    _llama("meta-llama/Llama-2-7b-hf", "awq", 3, 6.24),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of a row: `found` and its 95% interval, or None and the sentence that says why it could not be run."""

    row: Published
    found: float | None = None
    low: float | None = None
    high: float | None = None
    why_not: str = ""

    @property
    def agrees(self) -> bool | None:
        """Whether ours is within the tolerance; None when it could not be run."""
        return None if self.found is None else abs(self.found / self.row.perplexity - 1) <= self.row.tolerance


def reproduce(runner: LocalRunner, rows: tuple[Published, ...], watch: Callable[[Event], None]) -> Iterator[Outcome]:
    """Runs the rows one by one. A model that cannot be had is asked for once; what refuses a row alone leaves the others to be run."""
    unreachable: dict[str, str] = {}
    for row in rows:
        if row.model in unreachable:
            yield Outcome(row, why_not=unreachable[row.model])
            continue
        try:
            found = last_report(runner.run(row.model, row.method, row.params, **row.options), watch).find("perplexity")
        except InputError as error:
            if of_model(error):
                unreachable[row.model] = str(error)
            yield Outcome(row, why_not=str(error))
        else:
            yield Outcome(row, found.value, found.low, found.high)


def of_model(error: Exception) -> bool:
    """Whether it was raised while a model was resolved, its configuration read or its files fetched: the same for all that is asked of this model."""
    asking = {function.__code__ for function in (models.resolve, models.context, models.fetching)}
    return any(frame.f_code in asking for frame, _ in walk_tb(error.__traceback__))
