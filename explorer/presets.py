"""The architectures that ship with the project, and the bundled model's, for whoever counts them. Standard library only.

explorer.architectures makes weights from the same files; it reads them by itself, so that no result depends on what is counted here.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from explorer.families import Architecture, architecture

ASSETS = Path(__file__).parent.parent / "assets"
DEMO = "demo"


@cache
def configurations() -> dict[str, dict[str, Any]]:
    """Name -> config.json, or {"source", "config"} around one: the bundled model's, then those in assets/architectures by name."""
    files = {DEMO: ASSETS / "demo-model" / "config.json"} | {path.stem: path for path in sorted((ASSETS / "architectures").glob("*.json"))}
    return {name: json.loads(path.read_text()) for name, path in files.items()}


@cache
def presets() -> dict[str, Architecture]:
    """The same, counted, the smallest first."""
    found = {name: architecture(config, name) for name, config in configurations().items()}
    return dict(sorted(found.items(), key=lambda pair: pair[1].parameters))
