"""Static INT8: ranges from data, placement as the target fuses, only where it is faster than float."""

from .quant import Quant

__all__ = ["Quant"]
