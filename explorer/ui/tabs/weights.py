"""Weights: the report figures of the chosen layer and of all layers."""

from __future__ import annotations

from explorer.ui.frame import report_figures
from explorer.ui.tab import Shell, Tab, View


def build(shell: Shell) -> View:
    return report_figures("weights")


TAB = Tab("weights", "Weights", build, order=10)
