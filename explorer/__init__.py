"""Quantization Explorer: quantize a language model, run it, measure what changed. The UI is one of two callers; the CLI is the other."""
