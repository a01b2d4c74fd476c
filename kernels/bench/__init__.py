"""Checks, timings and tuning of the ops: what `python -m kernels` runs. Nothing that computes a result imports this."""
