"""What is said of each metric: its name, its unit, how its numbers are written, what its interval is. Words only; results do not depend on them.

Who adds a metric declares its words here, and the comparison, the files, the tooltips and the sentences have them. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Bounds(NamedTuple):
    """What low and high of a measurement are: in the column of a file, and in words on a page."""

    column: str
    words: str


WINDOWS = Bounds("95%", "95% interval")
ROUNDS = Bounds("95% over rounds within the run", "95% interval within this run")  # of both loops in turn
TOKENS = Bounds("20th to 80th percentile of tokens", "20th to 80th percentile")
RUNS = Bounds("least to most of runs", "lowest to highest")

TEXT, CALIBRATION, LOOP, MEMORY, CLOCK = "evaluation text", "calibration text", "timed loop", "reading of memory", "clock"  # what numbers are taken from
MIB, MS, GB = ("MiB", 2.0**-20), ("ms", 1000.0), ("GB/s", 1e-9)  # a unit that people read, and from the stored one to it
POINTS = "percentage points"


@dataclass(frozen=True)
class Term:
    """What is said of one metric. title: of its row; short: within a sentence, where the title is none. help: a line for somebody who has never quantized.

    unit: that of the measurement, for where none is at hand; read: another (unit, factor) for people. digits: decimals, None for three significant ones.
    more: whether more is better (None: neither). signed: with a plus. bounds: what low and high are, None for a metric without an interval.
    source: what it is taken from. relative: shown with its ratio to 16 bits.
    """

    metric: str
    title: str
    help: str = ""
    unit: str = ""
    short: str = ""
    digits: int | None = None
    read: tuple[str, float] | None = None
    more: bool | None = None
    signed: bool = False
    bounds: Bounds | None = None
    source: str = ""
    relative: bool = False

    @property
    def called(self) -> str:
        """Its name within a sentence."""
        acronym = self.title[1:2].isupper()
        return self.short or (self.title if acronym else self.title[:1].lower() + self.title[1:])

    @property
    def axis(self) -> str:
        """Its name with the stored unit, where the name does not say it already: for an axis, or the head of a column."""
        return f"{self.called}, {self.unit}" if self.unit and self.unit not in self.called.split() else self.called

    @property
    def shown(self) -> str:
        """The unit that people read."""
        return self.read[0] if self.read else self.unit

    @property
    def factor(self) -> float:
        """From the stored unit to the one that people read."""
        return self.read[1] if self.read else 1.0

    @property
    def by_device(self) -> bool:
        """Whether it compares on one device only."""
        return self.source in (LOOP, MEMORY, CLOCK)

    @property
    def ratio(self) -> bool:
        """Whether it is itself how many times as good as 16 bits."""
        return self.bounds is ROUNDS


_TERMS = (
    Term("perplexity_delta", "Perplexity change, paired",
         "How much worse it guesses the next word than the original model, on the same text; +0% is no loss.",
         "%", "perplexity change", 2, ("", 1.0), more=False, signed=True, bounds=WINDOWS, source=TEXT),  # the number bears its % or "times" itself
    Term("kld_mean", "KL divergence, mean",
         "How far its guesses for the next word are from the original model's, on average, 0 for no difference. The finest of these measures.",
         "nats", "KL divergence", more=False, bounds=WINDOWS, source=TEXT),
    Term("kld_p99", "KL divergence, 99th percentile",
         "The same distance on the worst words: one in a hundred is off by more.", "nats", more=False, bounds=WINDOWS, source=TEXT),
    Term("kld_median", "KL divergence, median",
         "The distance on a typical word: half of them are nearer.", "nats", digits=4, more=False, bounds=WINDOWS, source=TEXT),
    Term("kld_max", "KL divergence, largest", "The distance on the single worst word.", "nats", digits=3, more=False, source=TEXT),
    Term("kld_floor", "KL divergence of bfloat16 itself, to float32",
         "The distance that 16-bit arithmetic itself makes; smaller ones mean nothing.", "nats", bounds=WINDOWS, source=TEXT),
    Term("top1_agreement", "Same top token",
         "How often both models think the same next word the most likely one.", "%", digits=1, more=True, bounds=WINDOWS, source=TEXT),
    Term("clear_flips", "Clear flips of the top token",
         "How often it thinks another next word the most likely one although the original model was sure of its own.",
         "%", digits=2, more=False, bounds=WINDOWS, source=TEXT),
    Term("perplexity", "Perplexity",
         "Among how many words the model wavers, so to speak, at each next word. Less is better; only comparable on the same text and tokenizer.",
         digits=2, more=False, bounds=WINDOWS, source=TEXT),
    Term("p_correct_change", "Probability of the correct token, mean change",
         "How much more or less probable the model finds the word that really follows; below 0 it got worse.",
         POINTS, digits=3, signed=True, bounds=WINDOWS, source=TEXT),
    Term("p_correct_rms", "Probability of the correct token, RMS change",
         "How much that probability moves, up or down.", POINTS, digits=2, more=False, bounds=WINDOWS, source=TEXT),
    Term("calibration_perplexity", "Perplexity of the calibration text",
         "The original model's perplexity on the text that the method read.", digits=1, source=CALIBRATION),
    Term("kld_windows", "KL divergence by window", unit="nats", source=TEXT),
    Term("nll_delta_windows", "Change of the log-likelihood by window", unit="nats", source=TEXT),

    Term("bits_per_weight", "Bits per weight, stored",
         "What a weight takes in the file, with all that is stored beside the codes; the original has 16 bits.",
         "bits", "stored bits per weight", 3, more=False, relative=True),
    Term("bits_per_weight_resident", "Bits per weight, in memory",
         "What a weight takes while the model runs: more than in the file where the kernel needs another form.", "bits", digits=3, more=False, relative=True),
    Term("weight_bytes", "All weights in memory",
         "The memory of all weights, with those that stay in 16 bits.", "bytes", digits=2, read=MIB, more=False, relative=True),
    Term("memory_codes", "Memory of codes", "The memory of the codes, in the width that the kernel reads.", "bytes", "memory by part", 2, MIB),
    Term("memory_scales", "Memory of scales and zeros", "The memory of all that turns codes back into weights.", "bytes", "memory by part", 2, MIB),
    Term("memory_copies", "Memory of 16-bit copies",
         "The memory of weights whose codes no kernel here multiplies, expanded to 16 bits.", "bytes", "memory by part", 2, MIB),
    Term("memory_kept", "Memory kept in 16 bits",
         "The memory of what is not quantized: the embedding, the norms, mostly the head.", "bytes", "memory by part", 2, MIB),
    Term("memory_kv_cache", "KV cache of one window", "The memory of what the model keeps of one window of text, computed.", "bytes", "KV cache", 2, MIB),
    Term("head_bytes", "Memory of the quantized head", "The memory of the last layer, which rates all next words.", "bytes", digits=2, read=MIB),
    Term("decode_copies", "Working copy while decoding",
         "Second copies of weights that a kernel keeps to be faster while it writes text.", "bytes", digits=2, read=MIB),
    Term("decode_cache_bytes", "KV cache of the timed loop",
         "The memory of what the model keeps of the text so far; it grows with the text.", "bytes", digits=2, read=MIB, more=False, relative=True),

    Term("decode_speedup", "Speed-up over 16 bits, interleaved",
         "How many times as fast as the original model it writes; both were timed in turn in the same run. Above 1 is faster.",
         "x", digits=2, more=True, bounds=ROUNDS, source=LOOP),
    Term("first_token_speedup", "The same, first token",
         "The same for the wait until the first token, while the prompt is read.",
         "x", "speed-up of the first token", 2, more=True, bounds=ROUNDS, source=LOOP),
    Term("decode_tokens_per_second", "Decoding",
         "How many tokens (parts of words) are written a second, for one reader.", "tokens/s", digits=0, bounds=TOKENS, source=LOOP),
    Term("decode_latency_p50", "Token latency, median", "The wait for a token: half of them come sooner.", "s", read=MS, source=LOOP),
    Term("decode_latency_p95", "Token latency, 95th percentile", "The wait for a token: 95 of 100 come sooner.", "s", digits=1, read=MS, source=LOOP),
    Term("decode_latencies", "Latency of each token", unit="s", short="single tokens", source=LOOP),
    Term("time_to_first_token", "Time to first token",
         "The wait until the first token, while the prompt is read.", "s", digits=1, read=MS, bounds=RUNS, source=LOOP),
    Term("decode_limit", "Limit of decoding by memory",
         "How many tokens there would be a second if reading the weights and the cache were all of the work, at the rate of memory.",
         "tokens/s", "the limit by memory", 0, source=MEMORY),
    Term("decode_bandwidth", "Rate of memory", "How fast the device reads its memory.", "bytes/s", digits=1, read=GB, source=MEMORY),
    Term("decode_waited", "Waited for a core while timed",
         "The part of their time in which threads waited for a core: much of it means that other work disturbed the times.", "%", digits=1),
    Term("decode_bandwidth_waited", "Waited for a core while memory was read",
         "The same while the rate of memory was read: much of it means that memory may be faster.", "%", digits=1),
    Term("decode_loop", "Loop that was timed"),
    Term("decode_attention", "Attention in the timed loop"),
    Term("quantize_seconds", "Time to quantize", "How long it took to quantize the model, once.", "s", digits=2, source=CLOCK),

    Term("weight_error", "Error of the weights", unit="relative"),
    Term("output_error", "Error of the outputs", unit="relative", short="errors of layers"),
    Term("residual_error", "Error through depth", unit="relative"),
    Term("integrity", "Check of the weights", short="the check of the weights"),
    Term("weight_histogram", "Histogram of the weights", short="its weights"),
    Term("activation_histogram", "Histogram of the inputs", short="inputs of layers"),
    Term("activation_absmax", "Largest input by channel", short="inputs of layers"),
    Term("activation_kurtosis", "Kurtosis of the inputs", short="inputs of layers"),
    Term("outlier_channels", "Outlier channels", short="outliers"),
    Term("sample_text", "Sample text"),
    Term("training_loss", "Training loss", unit="nats"),
)  # fmt: skip
TERMS = {term.metric: term for term in _TERMS}

# Which file of metrics measures what: those of one file are measured and stored together, at one time.
TOGETHER = {
    "quality": "perplexity perplexity_delta kld_mean kld_p99 kld_median kld_max kld_windows nll_delta_windows top1_agreement clear_flips p_correct_change "
    "p_correct_rms",
    "floor": "kld_floor",
    "size": "bits_per_weight bits_per_weight_resident weight_bytes head_bytes memory_codes memory_scales memory_copies memory_kept memory_kv_cache "
    "quantize_seconds",
    "speed": "decode_speedup first_token_speedup decode_tokens_per_second decode_latency_p50 decode_latency_p95 decode_latencies time_to_first_token "
    "decode_limit decode_bandwidth decode_waited decode_bandwidth_waited decode_loop decode_attention decode_copies decode_cache_bytes",
    "layers": "weight_error output_error weight_histogram",
    "depth": "residual_error",
    "integrity": "integrity calibration_perplexity",
    "activations": "activation_histogram activation_absmax activation_kurtosis outlier_channels",
    "sample": "sample_text",
    "training": "training_loss",
}
FAMILY = {metric: family for family, names in TOGETHER.items() for metric in names.split()}

# What one file of metrics measures together, where that is not called as the file is.
FAMILIES = {
    "integrity": "the check of the weights",
    "layers": "errors of layers",
    "floor": "the noise of bfloat16",
    "sample": "its text",
    "depth": "error through depth",
}
FAILURES = (
    "Whether something is broken: infinite outputs, scales of the wrong group, a layer that was never quantized. It does not say how good the result is; the "
    "words below do: at how many bits plain rounding (RTN) of the same model is as good."
)  # of the row that is a verdict, no metric


def term(metric: str, unit: str = "") -> Term:
    """What is said of a metric; of one without an entry its name with spaces, the unit that its measurement has, and an interval over windows."""
    return TERMS.get(metric) or Term(metric, metric.replace("_", " ").capitalize(), unit=unit, bounds=WINDOWS)


def terms(*metrics: str) -> tuple[Term, ...]:
    """What is said of these. Raises KeyError for one that has no entry."""
    return tuple(TERMS[metric] for metric in metrics)
