"""Which version of the explorer this is, for what leaves it: a file that is kept must say whose numbers it holds. Standard library only."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path


@cache
def version() -> str:
    """The version of this checkout, such as "0.13.0"."""
    return tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))["project"]["version"]


def written_by() -> str:
    """What wrote a file."""
    return f"Quantization Explorer {version()}"
