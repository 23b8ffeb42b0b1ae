"""Operators that work element by element, with broadcasting."""

from __future__ import annotations

from .facts import Facts, Quant

_FIXED = {"Sigmoid": (0.0, 1.0)}
_QUANTIZABLE = {"Add": (0, 1), "Mul": (0, 1), "Sigmoid": (0,), "LeakyRelu": (0,), "Relu": (0,), "Clip": (0,)}

_UNARY = [
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitwiseNot",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "CastLike",
]
_BINARY = [
    "Add",
    "And",
    "BitShift",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "PRelu",
    "Pow",
    "Sub",
    "Sum",
    "Where",
    "Xor",
]


def _row(op: str) -> Facts:
    quant = Quant(inputs=_QUANTIZABLE[op], fixed=_FIXED.get(op)) if op in _QUANTIZABLE else None
    return Facts(op, "elementwise", quant=quant)


FACTS = tuple(_row(op) for op in (*_UNARY, *_BINARY))
