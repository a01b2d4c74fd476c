"""What the model writes: one greedy continuation of a fixed prompt, by the same loop that is timed."""

from __future__ import annotations

from collections.abc import Iterator

from explorer import models
from explorer.decode import Decoder
from explorer.metrics import Metric, Subject
from explorer.records import Measurement, Progress

PROMPT = "To build the library from source,"  # the bundled model goes on for 60 tokens without a loop, so that one in a text is the rounding's
NEW = 60


def measure(subject: Subject) -> Iterator[Progress | Measurement]:
    """Raises NoRoom for weights that come from their files at every token, which takes minutes."""
    loaded = subject.loaded
    subject.require_memory()
    prompt = models.prompt(loaded, PROMPT)
    ids = []
    with subject.quantized():
        for token in Decoder(loaded, prompt.shape[1] + NEW, subject.kv_bits).generate(prompt, NEW):
            ids.append(token)
            if len(ids) % 16 == 0:
                yield Progress("sample text", len(ids), NEW)
    yield Measurement("sample_text", loaded.tokenizer.decode(ids), "", n=NEW)


METRIC = Metric("sample", measure)
