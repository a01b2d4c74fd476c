"""How far the order of sums alone moves a result: `python -m assets.summation` quantizes with other numbers of calibration windows a forward pass, all else
equal, and writes assets/summation.json.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from unittest.mock import patch

from explorer import calibration, experiment
from explorer.devices import default_device
from explorer.experiment import LocalRunner, last_report
from explorer.metrics import metrics
from explorer.provenance import circumstances
from explorer.store import Store

RESULT = Path(__file__).with_suffix(".json")
BATCHES = (4, 2, 1)
METHODS = (("gptq", {"bits": 3}), ("gptq", {"bits": 3, "symmetric": False}), ("awq", {"bits": 3}))


def divergences(method: str, params: dict, batches: tuple[int, ...] = BATCHES) -> tuple[str, list[float]]:
    """(name, mean KL divergence on the bundled model in nats for each number of windows a forward pass); nothing is read from a store."""
    found = []
    for batch in batches:
        with (
            tempfile.TemporaryDirectory() as folder,
            patch.object(calibration, "BATCH", batch),
            patch.object(experiment, "metrics", lambda: {"quality": metrics()["quality"]}),
        ):
            report = last_report(LocalRunner(Store(Path(folder) / "r.db")).run("demo", method, params))
        found.append(report.value("kld_mean"))
    return report.name, found


def main() -> None:
    rows = [dict(zip(("name", "klds"), divergences(method, params), strict=True)) for method, params in METHODS]
    RESULT.write_text(json.dumps({"batches": BATCHES, "rows": rows} | circumstances(default_device()), indent=1) + "\n")


if __name__ == "__main__":
    main()
