"""Half precision: weights stored in 16-bit floats, and fp16 arithmetic where the target has it."""

from .passes import Bf16, Fp16

__all__ = ["Bf16", "Fp16"]
