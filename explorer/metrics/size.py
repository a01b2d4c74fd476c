"""What the weights cost: stored bits a weight, and the bytes of the tensors that are really in use, by part."""

from __future__ import annotations

from collections.abc import Iterator

from explorer.kvcache import bytes_at
from explorer.metrics import Metric, Subject
from explorer.records import Measurement


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
    codes = sum(parts.get("codes", 0) for parts in packed)
    scales = sum(size for parts in packed for name, size in parts.items() if name != "codes")
    total = sum(resident.values())
    kept = sum(16 * layer.weight.numel() for name, layer in subject.originals.items() if name not in subject.layers)
    yield Measurement("bits_per_weight_resident", (8 * inside + kept) / weights, "bits", n=weights)
    yield Measurement("weight_bytes", total, "bytes")
    yield Measurement("memory_codes", codes, "bytes")
    yield Measurement("memory_scales", scales, "bytes")
    yield Measurement("memory_kept", total - codes - scales, "bytes")
    cache = bytes_at(subject.loaded.model.config, subject.loaded.length, subject.kv_bits)
    yield Measurement("memory_kv_cache", cache, "bytes", n=subject.loaded.length, how="estimated")
    yield Measurement("quantize_seconds", subject.quantize_seconds, "s")


METRIC = Metric("size", measure, per_device=True, of_weights=True)
