"""One flat row a report, for spreadsheets and data frames: columns that are always the same, in one order, with their units in their names."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from explorer.export import command_of, harmless
from explorer.findings import doubts, origin
from explorer.records import OUTSIDE, Measurement, Report
from explorer.version import written_by
from explorer.vocabulary import term

WHAT = ("label", "method", "params", "kv_bits", "head_bits", "model", "revision", "evaluation", "evaluation_digest", "windows", "tokens", "length",
        "calibration", "calibration_digest", "sequences", "seed", "layers_quantized", "layers_kept")  # fmt: skip
NUMBERS = (
    "bits_per_weight", "kld_mean", "perplexity_delta", "perplexity", "top1_agreement", "p_correct_change", "p_correct_rms", "kld_median", "kld_max",
    "weight_bytes", "decode_tokens_per_second", "decode_speedup", "decode_latency_p50", "decode_limit", "quantize_seconds",
)  # fmt: skip
SPREAD = ("kld_mean", "perplexity_delta", "perplexity", "top1_agreement")  # what differs with the calibration text
WORDS = {"x": "", "%": "percent", "s": "seconds", "tokens/s": "tokens_per_second", "bytes/s": "bytes_per_second"}
BY = {"device": "device", "date": "date", "kernel": "kernel_summary", "torch": "torch", "transformers": "transformers"}  # columns, as provenance calls them
WHERE = ("origin", "speed_origin", "speed_note", *BY, "written_by", "command", "error")  # speed_note: why nothing is concluded from the times


def column(metric: str, unit: str | None = None) -> str:
    """A column's name: the metric and its unit, where the name does not say it already. unit: that of a measurement, None where none is at hand."""
    word = term(metric).unit if unit is None else unit
    word = WORDS.get(word, word.replace(" ", "_").replace("/", "_per_"))
    return metric if not word or word in metric else f"{metric}_{word}"


def ends(name: str) -> tuple[str, str]:
    """The columns of an interval."""
    return f"{name}_low", f"{name}_high"


FIXED = (
    *WHAT, *(part for metric in NUMBERS for name in (column(metric),) for part in (name, *(ends(name) if term(metric).bounds else ()))),
    "seeds", *(f"{column(metric)}_seeds_{what}" for metric in SPREAD for what in ("mean", "sd")), *WHERE,
)  # fmt: skip


def layer_names(reports: Sequence[Report]) -> list[str]:
    """Names of the layers that reports have numbers of, in their order."""
    return list(dict.fromkeys(m.layer for r in reports for m in r.measurements if m.layer))


def rows(reports: Sequence[Report], refused: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, object]]:
    """One row a report: the configuration, the texts, the numbers of the whole model with their intervals, where and when they were measured; with
    several seeds the mean and standard deviation over them, the same in each of their rows. "" for what is not known.

    refused: configurations that could not run ({"label", "method", "params", "kv_bits", "head_bits", "seed", "error"}), a row each after the reports'.
    Every row has all of FIXED; each further number of the whole model that a metric yields comes after those.
    """
    spread, found = over_seeds(reports), []
    for report in reports:
        row = dict.fromkeys(FIXED, "") | asked(report) | layers(report)
        for m in of_model(report):
            name = column(m.metric, m.unit)
            row |= {name: m.value} | ({} if m.low is None else dict(zip(ends(name), (m.low, m.high), strict=True)))
        row |= spread.get(drawn(report), {}) | {"origin": origin_of(report, "quality"), "speed_origin": origin_of(report, "speed")}
        row |= {"speed_note": "; ".join(doubts(report))}
        row |= {"written_by": written_by(), "command": command_of(report, whole=True)}
        found.append(row | {name: report.provenance.get(told, "") for name, told in BY.items()})
    for one in refused:
        same = {name: asked(reports[0])[name] for name in ("model", "revision", "evaluation", "evaluation_digest", "length")} if reports else {}
        found.append(dict.fromkeys(FIXED, "") | same | one | {"params": written(one["params"])})
    return found


def asked(report: Report) -> dict[str, object]:
    """The columns of what was asked for; those of calibration are empty where none was read."""
    experiment, p = report.experiment, report.provenance
    spec, scored, read = experiment.spec, experiment.evaluation, experiment.calibration
    tokens = p.get("tokens") or 0
    found: dict[str, object] = {
        "label": report.name, "method": spec.method, "params": written(spec.params), "kv_bits": spec.kv_bits, "head_bits": spec.head_bits,
        "model": experiment.model.name, "revision": experiment.model.revision, "evaluation": scored.source, "evaluation_digest": scored.digest,
        "windows": tokens // scored.length, "tokens": tokens, "length": scored.length,
    }  # fmt: skip
    if not p.get("reads_inputs"):
        return found
    sequences = p.get("calibration_tokens", read.tokens) // read.length
    return found | {"calibration": read.source, "calibration_digest": read.digest, "sequences": sequences, "seed": read.seed}


def written(params: Sequence[Sequence[object]]) -> str:
    """Parameters as "name=value name=value"."""
    return " ".join(f"{name}={value}" for name, value in params)


def layers(report: Report) -> dict[str, object]:
    """How many matrices of the decoder blocks were quantized, and how many stayed in 16 bits, for whatever reason."""
    p = report.provenance
    quantized, kept = len(p.get("kernels", {})), sum(why != OUTSIDE for why in p.get("skipped", {}).values())
    seen = len({m.layer for m in report.measurements if m.layer})  # where nothing is quantized, nothing is said to be skipped either
    return {"layers_quantized": quantized, "layers_kept": kept or (seen if not quantized else 0) or ("" if not quantized else 0)}


def of_model(report: Report) -> list[Measurement]:
    """The numbers of the whole model."""
    return [m for m in report.measurements if not m.layer and isinstance(m.value, int | float)]


def drawn(report: Report) -> tuple[Any, ...]:
    """What is the same in runs that differ by their draw of calibration text only."""
    return report.experiment.spec, report.experiment.model, report.experiment.evaluation


def over_seeds(reports: Sequence[Report]) -> dict[tuple[Any, ...], dict[str, float]]:
    """{`drawn` of a configuration that ran with several seeds: {"seeds": how many, "<column>_seeds_mean": ..., "<column>_seeds_sd": ...}}."""
    runs: dict[tuple[Any, ...], list[Report]] = {}
    for report in reports:
        runs.setdefault(drawn(report), []).append(report)
    found = {}
    for key, alike in runs.items():
        if len(alike) > 1:
            found[key] = {"seeds": len(alike)}
            for name in SPREAD:
                values = [value for report in alike if (value := report.value(name)) is not None]
                if len(values) > 1:
                    found[key] |= {f"{column(name)}_seeds_mean": statistics.fmean(values), f"{column(name)}_seeds_sd": statistics.stdev(values)}
    return found


def origin_of(report: Report, family: str) -> str:
    """Where the measurements of a metric come from and when they were made: "measured now, ...", "stored, ..." or "recorded, ..."; "" without any."""
    how, date = origin(report.provenance, family), report.provenance.get("dates", {}).get(family)
    return f"{how}, {date}" if date else how


def table(found: Sequence[Mapping[str, object]]) -> str:
    """Rows as CSV: FIXED, then every further column of any row by name, value, low and high together."""
    lines = io.StringIO()
    more = {name for row in found for name in row} - set(FIXED)
    whole = sorted(name for name in more if not (name.endswith(("_low", "_high")) and name.rpartition("_")[0] in more))
    names = [*FIXED, *(part for name in whole for part in (name, *ends(name)) if part in more)]
    writer = csv.DictWriter(lines, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: harmless(value) for name, value in row.items()} for row in found)
    return lines.getvalue()
