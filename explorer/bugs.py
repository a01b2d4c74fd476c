"""Bugs that quantized models really have, in words: how each comes about and what gives it away. `faults` can plant them, `detectors` name them."""

from __future__ import annotations

from dataclasses import dataclass

from explorer.records import Report


@dataclass(frozen=True)
class Bug:
    """title: its name for people; story: how it comes about and what it looks like from outside; seen: what gives it away; settle: the next step
    that proves or removes it, in words that do not name it.
    """

    name: str
    title: str
    story: str
    seen: str
    settle: str


BUGS = {
    bug.name: bug
    for bug in (
        Bug(
            "zero", "Zero-point off by one",
            "A checkpoint that stores zero - 1 is read by a kernel that expects zero; two generations of the GPTQ format differ so. Every weight moves "
            "by one step of its grid.",
            "All layers lose about the same, and the mean error of their weights is a whole step.",
            "Read one packed layer with the zero-point as stored, with one less and with one more, and keep the convention that fits the 16-bit weights.",
        ),
        Bug(
            "stale", "Stale scale in the second group",
            "A kernel keeps the first group's scale when the second group begins inside its tile. Nothing crashes, the text stays fluent, the quality is "
            "a little off.",
            "One group of columns has a larger error than the others, the same group in every layer.",
            "Feed the kernel inputs that are zero outside one group at a time, and compare each group with the dequantized weights.",
        ),
        Bug(
            "overflow", "float16 overflow",
            "Partial sums are kept in float16 before the scale is applied, and some inputs are large. The bundled model's inputs are too small for that, so "
            "the sums of one layer are multiplied by a power of two, which changes nothing in bfloat16 and takes the largest one past 65,504.",
            "Infinities in one layer, NaN in all that follow.",
            "Run the first layer that is not finite with sums in float32, and apply the scale before the partial sums are added up.",
        ),
        Bug(
            "calibration", "Wrong calibration text",
            "The calibration text was tokenized for another model, or is no text: here its characters are shuffled. The method protects inputs that "
            "never come.",
            "The 16-bit model's perplexity is many times higher on the calibration text than on the evaluation text, and part of what the method gains over "
            "plain rounding is gone.",
            "Decode the tokens that the method was calibrated on, calibrate again on text like production, compare with plain rounding.",
        ),
        Bug(
            "fallback", "Silent fallback to 16 bits",
            "A kernel refuses a shape, or a list of layers to skip matches too much, and the loader keeps the 16-bit weights without a word. Here it is the "
            "last third of the layers.",
            "Some layers have no error at all, and more bits are in memory than are stored.",
            "List for each layer the kernel that ran and the bytes it reads, and let the loader fail instead of keeping 16 bits.",
        ),
        Bug(
            "nibbles", "Swapped nibble order",
            "Two 4-bit codes share a byte, and writer and reader disagree on which comes first: every pair of neighbouring weights is exchanged.",
            "No layer resembles its weights, until neighbouring columns are exchanged.",
            "Write a row of codes 0, 1, 2, ... with the writer, read it with the reader, and compare the order.",
        ),
        Bug(
            "transposed", "Transposed scales",
            "Scales are stored [groups, rows] and read as [rows, groups], or the other way round: every code is right and meets another group's scale.",
            "Read in the other order, the scales fit the weights again.",
            "Take one layer that is not square and compare shape and strides of its scales as written and as read.",
        ),
    )
}  # fmt: skip


def impossible(report: Report) -> dict[str, str]:
    """The bugs that a report's configuration cannot have, each with the reason; what a report does not tell is left to whoever plants it."""
    packed, resident = list(report.by_layer("integrity").values()), report.value("bits_per_weight_resident")
    found = {} if report.provenance.get("reads_inputs", True) else {"calibration": "the method reads no calibration text"}
    if packed and all(layer.get("offset_steps") is None for layer in packed):
        found["zero"] = "its codes are indices into a table"
    if packed and all(layer.get("transposed_error") is None for layer in packed):
        found |= dict.fromkeys(("stale", "transposed"), "it has one scale a row, not one a group")
    if isinstance(resident, int | float) and resident >= 8:
        found["nibbles"] = "its codes fill whole bytes"
    return found
