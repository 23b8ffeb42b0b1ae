"""Weight-only quantization: 4- and 8-bit integers with a scale for every block of weights; activations stay float."""

from .weightquant import WeightQuant

__all__ = ["WeightQuant"]
