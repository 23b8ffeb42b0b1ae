"""Products and polynomials with constant coefficients, read off the graph however an exporter wrote them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ..rewrite import Rewriter

FLOATS = ("float32", "float64", "float16")


def near(value: Any, wanted: float) -> bool:
    """Whether a constant is a number up to float rounding (half precision included)."""
    return value is not None and abs(float(value) - wanted) <= 1e-3 * abs(wanted) * (
        1.0 if np.asarray(value).dtype == np.float16 else 1e-3
    )


def is_float(x: Any, *types: str) -> bool:
    """Whether a tensor is known to be of one of these types, or any float."""
    return x.dtype is not None and np.dtype(x.dtype).name in (types or FLOATS)


def fits(rw: Rewriter, x: Any, *types: str) -> bool:
    """Whether an operator may take `x` alone: a float, and surely no scalar, which constants of one axis broadcast."""
    return is_float(x, *types) and rw.rank(x) not in (None, 0)


def polynomial(rw: Rewriter, tensor: Any, x: Any, depth: int = 8) -> dict[int, float] | None:
    """Coefficients by power of a tensor that is a polynomial in `x` and made for one reader; None when it is not."""
    if tensor is x:
        return {1: 1.0}
    if isinstance(tensor, gs.Constant):
        value = rw.scalar(tensor) if len(tensor.shape) <= 1 and np.dtype(tensor.dtype).name in FLOATS else None
        return None if value is None else {0: float(value)}
    node = rw.inner(tensor, "Add", "Sub", "Mul", "Div", "Pow") if depth else None
    if node is None or len(node.inputs) != 2:
        return None
    a, b = (polynomial(rw, t, x, depth - 1) for t in node.inputs)
    if a is None or b is None:
        return None
    if node.op in ("Add", "Sub"):
        sign = 1.0 if node.op == "Add" else -1.0
        return {k: a.get(k, 0.0) + sign * b.get(k, 0.0) for k in {*a, *b}}
    if node.op == "Mul":
        return _product(a, b)
    if set(b) != {0}:
        return None
    if node.op == "Div":
        return {k: v / b[0] for k, v in a.items()} if b[0] else None
    return {k * int(b[0]): v ** int(b[0]) for k, v in a.items()} if len(a) == 1 and b[0] in (2.0, 3.0) else None


def _product(a: dict[int, float], b: dict[int, float]) -> dict[int, float]:
    found: dict[int, float] = {}
    for j, u in a.items():
        for k, v in b.items():
            found[j + k] = found.get(j + k, 0.0) + u * v
    return found


def matches(found: dict[int, float] | None, wanted: dict[int, float]) -> bool:
    """Whether the coefficients are those wanted, up to how many digits exporters write."""
    return found is not None and all(
        abs(found.get(k, 0.0) - wanted.get(k, 0.0)) <= 1e-4 * abs(wanted.get(k, 0.0)) for k in {*found, *wanted}
    )


def factors(rw: Rewriter, node: gs.Node) -> tuple[float, list[Any]] | None:
    """The constant factor of a product (divisions by constants too), and its other factors; None when it has many."""
    number, queue = 1.0, [node]
    found: list[Any] = []
    while queue:
        current = queue.pop()
        for at, tensor in enumerate(current.inputs):
            value = rw.scalar(tensor) if len(tensor.shape or ()) <= 1 else None
            below = rw.inner(tensor, "Mul", "Div")
            if value is not None and np.asarray(value).dtype.name in FLOATS:
                divides = current.op == "Div"
                if divides and (at == 0 or value == 0):
                    return None
                number *= 1.0 / float(value) if divides else float(value)
            elif current.op == "Div" and at == 1:
                return None
            elif below is not None and len(found) + len(queue) < 4 and rw.together(node, below):
                queue.append(below)
            else:
                found.append(tensor)
    return number, found
