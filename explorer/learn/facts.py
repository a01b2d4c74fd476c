"""What expressions may ask of measured runs: values, intervals, and whether two runs differ, paired by window. Pure functions of reports."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from explorer import paired
from explorer.findings import doubts
from explorer.learn import planned
from explorer.learn.answers import FUNCTIONS
from explorer.records import Answer, Measurement, Report, report_from


class Facts:
    """Named reports. A name or a metric that is not there raises KeyError, so that a story cannot conclude from nothing."""

    def __init__(self, reports: Mapping[str, Report], answers: Mapping[str, Answer] | None = None) -> None:
        self._reports, self._answers = dict(reports), dict(answers or {})

    def data(self, answer: str, key: str) -> Any:
        """An entry of a task's answer."""
        return self._answers[answer].data[key]

    def planted(self, answer: str, metric: str) -> Any:
        """A whole-model value of the report that the failure lab gave back."""
        return report_from(self._answers[answer].data["report"]).value(metric)

    def planted_layers(self, answer: str, metric: str) -> list[float]:
        """A metric of every layer of that report, in order."""
        return list(report_from(self._answers[answer].data["report"]).by_layer(metric).values())

    def distinct(self, answer: str, key: str) -> int:
        """How many different values a list of an answer has."""
        return len(set(self.data(answer, key)))

    def entry(self, nested: Mapping[str, Any] | Sequence[Any], *keys: str | int) -> Any:
        """What a nested answer holds under these names and positions, one inside the other."""
        found: Any = nested
        for key in keys:
            found = found[key]
        return found

    def _find(self, run: str, metric: str) -> Measurement:
        found = self._reports[run].find(metric)
        if found is None:
            raise KeyError(f"{run} has no {metric}")
        return found

    def value(self, run: str, metric: str) -> Any:
        return self._find(run, metric).value

    def undisturbed(self, run: str) -> bool:
        """Whether no other work had the cores while its tokens were timed or memory was read."""
        return not doubts(self._reports[run])

    def low(self, run: str, metric: str) -> float:
        """The lower end of its 95% interval."""
        return self._bound(run, metric, "low")

    def high(self, run: str, metric: str) -> float:
        return self._bound(run, metric, "high")

    def _bound(self, run: str, metric: str, end: str) -> float:
        found = getattr(self._find(run, metric), end)
        if found is None:
            raise KeyError(f"{metric} of {run} has no interval")
        return found

    def difference(self, run: str, other: str, metric: str) -> float:
        """`run` less `other`, paired by window: see `paired.difference`. Raises KeyError for two that cannot be paired."""
        return self._paired(run, other, metric).value

    def difference_low(self, run: str, other: str, metric: str) -> float:
        """The lower end of its 95% interval."""
        return self._paired(run, other, metric).low

    def difference_high(self, run: str, other: str, metric: str) -> float:
        return self._paired(run, other, metric).high

    def _paired(self, run: str, other: str, metric: str) -> Measurement:
        reports = self._reports[run], self._reports[other]
        found = paired.difference(*reports, metric)
        if found is None:
            raise KeyError(f"{run} and {other} cannot be paired in {metric}, because {paired.why_not(*reports, metric)}")
        return found

    def below(self, run: str, other: str, metric: str) -> bool:
        """Whether `run` is measurably below `other`: by the paired difference; for two that cannot be paired, when their intervals lie apart."""
        found = paired.difference(self._reports[run], self._reports[other], metric)
        return self.high(run, metric) < self.low(other, metric) if found is None else found.high < 0

    def tied(self, run: str, other: str, metric: str) -> bool:
        """Whether this text cannot tell the runs apart."""
        return not (self.below(run, other, metric) or self.below(other, run, metric))

    def half(self, run: str, metric: str) -> float:
        """Half of its interval."""
        return (self.high(run, metric) - self.low(run, metric)) / 2

    def layers(self, run: str, metric: str) -> list[float]:
        """A metric of every layer, in order."""
        found = list(self._reports[run].by_layer(metric).values())
        if not found:
            raise KeyError(f"{run} has no {metric} by layer")
        return found

    def median_layer(self, run: str, metric: str) -> float:
        return statistics.median(self.layers(run, metric))

    def worst_layer(self, run: str, metric: str) -> float:
        return max(self.layers(run, metric))

    def layers_below(self, run: str, other: str, metric: str) -> int:
        """In how many layers `run` is below `other`."""
        return sum(a < b for a, b in zip(self.layers(run, metric), self.layers(other, metric), strict=True))

    def outlier_layers(self, run: str, rule: str) -> int:
        """Layers of the 16-bit model with an outlier channel by "ratio" or "llm_int8"."""
        return sum(bool(channels[rule]) for channels in self._reports[run].by_layer("outlier_channels").values())

    def peak_ratio(self, run: str) -> float:
        """The largest ratio of a channel's largest input to the median channel's, over all layers."""
        return max(max(peaks) / statistics.median(peaks) for peaks in self._reports[run].by_layer("activation_absmax").values())

    def share(self, run: str, part: str) -> float:
        """A part of the memory ("codes", "scales", "kept") as a share of all weights."""
        return self.value(run, f"memory_{part}") / self.value(run, "weight_bytes")

    def first_loss(self, run: str) -> float:
        return self.value(run, "training_loss")[0]

    def last_loss(self, run: str) -> float:
        """Mean of the last tenth of the steps."""
        losses = self.value(run, "training_loss")
        return statistics.fmean(losses[-max(1, len(losses) // 10) :])

    def functions(self) -> dict[str, Callable]:
        """Everything an expression may call: these, and the arithmetic of `answers` and of `planned`."""
        own = {name: getattr(self, name) for name in vars(Facts) if not name.startswith("_") and name != "functions"}
        return {**FUNCTIONS, **planned.FUNCTIONS, **own}
