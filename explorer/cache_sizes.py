"""What a KV cache takes in bytes, whole or in low bits, and in how many layers only a window of it is seen. Standard library only."""

from __future__ import annotations

from typing import Any

GROUP, WINDOW = 32, 32  # tokens (of a key's channel) or channels (of a value) that share a scale and minimum; newest tokens that stay in 16 bits


def packed_tokens(length: int) -> int:
    """Of so many tokens, those that are in low bits: whole groups, and at least the newest WINDOW stay."""
    return max(0, (length - WINDOW) // GROUP) * GROUP


def cache_bytes(tokens: int, values: int, bits: int, scaled: bool = True) -> int:
    """Bytes that `tokens` tokens of `values` values take; below 16 bits with a 16-bit scale and minimum for 32 values, the newest 32 to 63 tokens whole.
    scaled: False for a float8 cache, which is bare.
    """
    if not scaled:
        return tokens * values
    packed = 0 if bits == 16 else packed_tokens(tokens)
    return values * (tokens - packed) * 2 + values * packed * bits // 8 + values * packed * 4 // GROUP


def windowed_bytes(context: int, layers: int, windowed: int, window: int, values: int, bits: int, scaled: bool = True) -> int:
    """Bytes of the cache of one sequence: of so many layers that keep `values` values a token, those with a window keep no more than its tokens."""
    return cache_bytes(context, (layers - windowed) * values, bits, scaled) + cache_bytes(min(context, window), windowed * values, bits, scaled)


def windowed_layers(config: dict[str, Any], family: str, layers: int, window: int) -> int:
    """In how many layers attention is limited to the window: by `layer_types` where the configuration has them, else by the rule of the family."""
    kinds = config.get("layer_types")
    if not window:
        return 0
    if isinstance(kinds, list) and len(kinds) == layers:
        return sum(kind == "sliding_attention" for kind in kinds)
    if family in ("qwen2", "qwen3"):
        first = config.get("max_window_layers", 28)
        return max(0, layers - first) if isinstance(first, int) else 0
    every = {"gemma2": 2, "gpt_oss": 2, "gemma3_text": config.get("sliding_window_pattern", 6)}.get(family, 0)
    return layers - layers // every if isinstance(every, int) and every > 0 else layers
