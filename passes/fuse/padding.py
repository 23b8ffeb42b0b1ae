"""Pad into the operator that pads anyway. Exact: the same numbers stand at the same places."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import edit
from ..clean.computing import NOT_NEGATIVE
from ..rewrite import Outcome, Rewriter, Rule


def pads_of(rw: Rewriter, node: gs.Node, rank: int) -> tuple[list[int], list[int], float] | None:
    """Pads before and after each axis and the value, of a constant-mode Pad."""
    if node.attrs.get("mode", "constant") != "constant":
        return None
    if "pads" in node.attrs or "paddings" in node.attrs:
        pads = list(node.attrs.get("pads", node.attrs.get("paddings")))
        value: Any = node.attrs.get("value", 0.0)
    else:
        found = rw.ints(edit.get(node, 1))
        value = 0.0 if edit.get(node, 2) is None else rw.scalar(edit.get(node, 2))
        if found is None or value is None:
            return None
        pads = found
    begin, end = [0] * rank, [0] * rank
    axes: list[int] | None = list(range(rank))
    if edit.get(node, 3) is not None:
        axes = rw.ints(edit.get(node, 3))
    if axes is None or len(pads) != 2 * len(axes):
        return None
    for k, axis in enumerate(axes):
        begin[axis], end[axis] = pads[k], pads[k + len(axes)]
    return begin, end, float(value)


def _spatial(rw: Rewriter, node: gs.Node, pad: gs.Node, rank: int) -> tuple[list[int], float] | None:
    """The pads that `node` would have with those of `pad` added: begins, then ends; and the fill."""
    if node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    found = pads_of(rw, pad, rank)
    if found is None:
        return None
    begin, end, value = found
    if any(begin[:2]) or any(end[:2]) or min(begin + end) < 0:
        return None
    own = list(node.attrs.get("pads", [0] * (2 * (rank - 2))))
    if len(own) != 2 * (rank - 2):
        return None
    return [a + b for a, b in zip(own, begin[2:] + end[2:])], value


def _take(rw: Rewriter, node: gs.Node, pad: gs.Node, pads: list[int]) -> bool:
    node.attrs["pads"] = pads
    node.attrs.pop("auto_pad", None)
    return rw.rewire(node, [pad.inputs[0], *list(node.inputs)[1:]])


def _into_conv(rw: Rewriter, node: gs.Node) -> Outcome:
    """A convolution pads with zeros itself."""
    pad = rw.maker(node.inputs[0], "Pad")
    if pad is None or not isinstance(node.inputs[1], gs.Constant):
        return None
    found = _spatial(rw, node, pad, len(node.inputs[1].shape))
    if found is None:
        return None
    return _take(rw, node, pad, found[0]) if found[1] == 0 else "the Pad does not fill with zeros"


def _windows_reach(node: gs.Node, pads: list[int]) -> bool:
    """Whether every window holds at least one real element, as ONNX Runtime demands."""
    kernel = node.attrs["kernel_shape"]
    return all(p < kernel[k % len(kernel)] for k, p in enumerate(pads))


def _into_max_pool(rw: Rewriter, node: gs.Node) -> Outcome:
    """MaxPool ignores its padding: the same as filling with -inf, or with 0 where nothing is negative."""
    pad = rw.maker(node.inputs[0], "Pad")
    if pad is None or node.attrs.get("ceil_mode", 0) or any(t.name for t in node.outputs[1:]):
        return None
    if any(d != 1 for d in node.attrs.get("dilations", ())):
        return None  # a window could then hold nothing but padding
    found = _spatial(rw, node, pad, len(node.attrs["kernel_shape"]) + 2)
    if found is None or not _windows_reach(node, found[0]):
        return None
    x = pad.inputs[0]
    dtype = None if x.dtype is None else np.dtype(x.dtype)
    lowest = dtype is not None and dtype.kind == "f" and found[1] <= float(np.finfo(dtype).min)
    if lowest or (found[1] == 0 and rw.maker(x, *NOT_NEGATIVE) is not None):
        return _take(rw, node, pad, found[0])
    return "the fill of the Pad could win over the values"


def _into_average_pool(rw: Rewriter, node: gs.Node) -> Outcome:
    """Zeros that count in the average."""
    pad = rw.maker(node.inputs[0], "Pad")
    if pad is None or node.attrs.get("ceil_mode", 0):
        return None
    counted = node.attrs.get("count_include_pad", 0) or not any(node.attrs.get("pads", [0]))
    found = _spatial(rw, node, pad, len(node.attrs["kernel_shape"]) + 2)
    if found is None or found[1] != 0 or not counted or not _windows_reach(node, found[0]):
        return None
    node.attrs["count_include_pad"] = 1
    return _take(rw, node, pad, found[0])


RULES = (
    Rule("pads absorbed", ("Conv",), _into_conv),
    Rule("pads absorbed", ("MaxPool",), _into_max_pool),
    Rule("pads absorbed", ("AveragePool",), _into_average_pool, since=7),
)
