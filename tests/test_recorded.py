"""What ships with the project: one module reads the recorded reports and marks them, one the configurations that are counted."""

from __future__ import annotations

from explorer.figures.ladder import RUNGS
from explorer.presets import configurations, presets
from explorer.recorded import LADDER, SEEDS, SURVEY, ladder, on_record, seeds, survey
from tests.test_architecture import PRODUCT, module_name


def test_every_recorded_report_is_marked_and_read_once() -> None:
    assert all(r.provenance["recorded"] is True for r in (*seeds(), *survey().values(), *ladder()))
    assert seeds() is seeds() and survey() is survey() and ladder() is ladder()
    assert {r.key for r in ladder()} <= on_record().keys() >= survey().keys() and all(
        r.experiment.spec.get("group_size") == RUNGS["group_size"] for r in ladder()
    )


def test_only_one_module_reads_recorded_reports() -> None:
    """Others name the files only to write them, which they do by the constants."""
    for name in (SEEDS.name, SURVEY.name, LADDER.name):
        assert {module_name(path) for path in PRODUCT if f'"{name}"' in path.read_text()} == {"explorer.recorded"}


def test_the_architectures_are_scanned_once_for_pages_and_once_for_weights() -> None:
    """The second reader is a part of what results depend on, so it may not share the first's."""
    scans = {module_name(path) for path in PRODUCT if '"architectures"' in path.read_text() and "glob" in path.read_text()}
    assert scans == {"explorer.presets", "explorer.architectures"}
    assert next(iter(presets())) == next(iter(configurations())) == "demo" and presets().keys() == configurations().keys()
