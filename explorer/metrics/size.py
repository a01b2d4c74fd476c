"""What the weights cost: stored bits a weight, and the bytes of the tensors that are really in use, by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from explorer.kvcache import bytes_at
from explorer.metrics import Metric, Subject
from explorer.records import Measurement

PART = {"codes": "codes", "high": "codes", "kept": "codes", "weight": "copies"}  # of what a form packs; all else are scales, zeros and transforms


def by_part(packed: Iterable[Mapping[str, int]]) -> Counter[str]:
    """Bytes of "codes", "scales" and "copies", which are weights expanded to 16 bits, from those of layers' packed tensors by name."""
    found: Counter[str] = Counter()
    for parts in packed:
        for name, size in parts.items():
            found[PART.get(name, "scales")] += size
    return found


def measure(subject: Subject) -> Iterator[Measurement]:
    weights = sum(layer.weight.numel() for layer in subject.originals.values())
    stored = sum(16 * layer.weight.numel() for name, layer in subject.originals.items() if name not in subject.qtensors)
    stored += sum(q.stored_bits() for q in subject.qtensors.values())
    yield Measurement("bits_per_weight", stored / weights, "bits", n=weights)
    with subject.quantized():
        tensors = [t for t in (*subject.loaded.model.parameters(), *subject.loaded.model.buffers()) if t.device.type != "meta"]
        resident = {id(t): t.numel() * t.element_size() for t in tensors}
    packed = [layer.packed_bytes() for layer in subject.layers.values()]
    inside = sum(sum(parts.values()) for parts in packed)
    if subject.head is not None:
        packed.append(subject.head.packed_bytes())
        yield Measurement("head_bytes", sum(packed[-1].values()), "bytes")
    held, total = by_part(packed), sum(resident.values())
    kept = sum(16 * layer.weight.numel() for name, layer in subject.originals.items() if name not in subject.layers)
    yield Measurement("bits_per_weight_resident", (8 * inside + kept) / weights, "bits", n=weights)
    yield Measurement("weight_bytes", total, "bytes")
    yield Measurement("memory_codes", held["codes"], "bytes")
    yield Measurement("memory_scales", held["scales"], "bytes")
    if held["copies"]:
        yield Measurement("memory_copies", held["copies"], "bytes")
    yield Measurement("memory_kept", total - held.total(), "bytes")
    cache = bytes_at(subject.loaded.model.config, subject.loaded.length, subject.kv_bits)
    yield Measurement("memory_kv_cache", cache, "bytes", n=subject.loaded.length, how="estimated")
    yield Measurement("quantize_seconds", subject.quantize_seconds, "s")


METRIC = Metric("size", measure, per_device=True, of_weights=True, order=0)
