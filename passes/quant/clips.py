"""Factors on channels behind an activation that is clipped above, as Relu6 is.

min(max(x, 0), c) times a factor s is min(max(s·x, 0), s·c): the upper end would have to differ by channel, which no
Clip can. Rounded to integers it need not. With s ≥ 1 and a range that ends at r ≤ c, everything beyond r becomes the
largest integer, whether it was clipped at c or at s·c before: Q(min(max(s·x, 0), c)) = Q(min(max(s·x, 0), s·c)), for
every x. A channel that reaches c has the largest share of the range and the factor 1, so that r ≤ c costs nothing.
(DFQ, arXiv 1906.04721, puts a Relu in the place of Relu6, which is another network.) Where such a tensor stays float,
the layers on both sides take the factors back; powers of two leave no rounding behind.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model
from . import equalise
from .placement import bounds_of
from .rounding import Rounded


def undone(model: Model, factors: Mapping[str, np.ndarray], quantized: Collection[str] = ()) -> dict[str, np.ndarray]:
    """{tensor: one over its factors}, for `equalise.apply`, on both sides of every Clip that has an upper end, factors,
    and an output that is not quantized."""
    found = {}
    for node in model.graph.nodes:
        if node.op != "Clip" or bounds_of(node)[1] == np.inf or node.outputs[0].name in quantized:
            continue
        factor = factors.get(node.outputs[0].name)
        if factor is not None and (factor != 1).any():
            found[node.inputs[0].name] = found[node.outputs[0].name] = 1 / factor
    return found


def known(model: Model, undone: Mapping[str, np.ndarray], rounded: Mapping[str, Rounded]) -> dict[str, Rounded]:
    """`rounded` with the integers of layers that took factors back: rows change the scale, columns are a gain."""
    found = dict(rounded)
    for node in model.graph.nodes if undone else ():
        weight = equalise.layer(node)
        if weight is None or node.inputs[1].name not in rounded:
            continue
        rows, columns = undone.get(node.outputs[0].name), undone.get(node.inputs[0].name)
        if rows is not None or columns is not None:
            found[node.inputs[1].name] = _scaled(node, rounded[node.inputs[1].name], rows, columns)
    return found


def _scaled(node: gs.Node, before: Rounded, rows: np.ndarray | None, columns: np.ndarray | None) -> Rounded:
    """Integers whose real values are those of before times the rows, over the columns."""
    packed, shift = before.packed, before.shift
    weight = equalise.layer(node)
    assert weight is not None
    if rows is not None:
        packed = replace(packed, scale=(packed.scale * rows).astype(np.float32))
        shift = None if shift is None else shift * rows
    if columns is not None and weight.groups > 1:  # depthwise: a column is a row
        packed = replace(packed, scale=(packed.scale / columns).astype(np.float32))
    elif columns is not None:
        shape = [1] * packed.values.ndim
        shape[weight.in_axis] = -1
        packed = replace(packed, gain=(1 / columns).astype(np.float32).reshape(shape))
    return Rounded(packed, shift)
