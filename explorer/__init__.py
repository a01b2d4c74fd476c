"""Quantization Explorer: quantize a language model, run it, measure what changed. The UI is one of two callers; the CLI is the other."""

import importlib.metadata

_plain = importlib.metadata.version


def _version(name: str) -> str:
    """As importlib.metadata has it, but that nothing is called `kernels`: a distribution of Hugging Face is, and where it is installed transformers would
    import what it needs of it from our package of that name.
    """
    if name == "kernels":
        raise importlib.metadata.PackageNotFoundError(name)
    return _plain(name)


importlib.metadata.version = _version
