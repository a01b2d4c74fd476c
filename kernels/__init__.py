"""Low-bit operations on tensors: torch and triton only. Knows nothing of models, methods or pages; imports without a GPU."""
