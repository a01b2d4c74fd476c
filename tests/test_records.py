"""Records: reports survive JSON whole, keys depend on everything and only on content."""

from __future__ import annotations

import json
import math

from explorer.records import Experiment, Measurement, ModelRef, QuantSpec, Report, TextRef, key_of, plain, report_from

TEXT = TextRef("bundled", "abc", 8192, 512)
EXPERIMENT = Experiment(ModelRef("demo", "r1"), QuantSpec.of("rtn", bits=4, granularity="group", group_size=64), TEXT, TEXT)


def test_report_survives_json_with_nan_and_infinity() -> None:
    measured = (
        Measurement("perplexity", math.inf, low=math.nan, high=3.0, n=7, bad=2),
        Measurement("activation_absmax", [1.0, math.nan], layer="layers.0"),
        Measurement("sample_text", "nan"),
    )
    back = report_from(json.loads(json.dumps(plain(Report(EXPERIMENT, measured, {"device": "x"})))))
    assert back.experiment == EXPERIMENT
    assert back.value("perplexity") == math.inf and math.isnan(back.find("perplexity").low)
    assert math.isnan(back.value("activation_absmax", "layers.0")[1])


def test_key_depends_on_every_part() -> None:
    keys = {key_of(EXPERIMENT), key_of(EXPERIMENT, "cpu"), key_of(Experiment(ModelRef("demo", "r2"), EXPERIMENT.spec, TEXT, TEXT))}
    assert len(keys) == 3
    assert key_of(QuantSpec.of("rtn", a=1, b=2)) == key_of(QuantSpec.of("rtn", b=2, a=1))
    assert key_of(QuantSpec.of("rtn", bits=1)) != key_of(QuantSpec.of("rtn", bits=True))
