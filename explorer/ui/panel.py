"""The panel on the left: the controls of a run by name. Lays out nothing itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from explorer.ui.controls import Control

RUN_OPTIONS = ("evaluation", "text", "calibration", "sequences", "seed", "kv_bits", "head_bits")  # of a run, beside model, method and its parameters


@dataclass(frozen=True)
class Panel:
    """Components: model, method, options by their names in RUN_OPTIONS. fields: the parameters' controls of all methods."""

    model: Any = None
    method: Any = None
    options: dict[str, Any] = field(default_factory=lambda: dict.fromkeys(RUN_OPTIONS))
    fields: list[Control] = field(default_factory=list)

    def components(self) -> list[Any]:
        """All of them in the order in which handlers get their values: model, method, options, fields."""
        return [self.model, self.method, *self.options.values(), *(control.component for control in self.fields)]
