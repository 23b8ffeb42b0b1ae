"""Dynamic INT8: weights in 8 bits, activations quantized as they come, where that is faster than float."""

from .dynquant import DynQuant

__all__ = ["DynQuant"]
