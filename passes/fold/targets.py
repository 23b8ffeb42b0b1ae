"""What is known of shapes put to use: constants, and targets of Reshape, Expand, Slice that are known but for symbols.

Exact wherever the original runs and no size is 0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit
from . import control
from .partial import Entry, Follower


def fold_known(model: Model, tried: dict[str, Any] | None = None) -> tuple[int, int, int]:
    """Replace what is wholly known by constants, and partly known targets by constants that mean the same.

    An If that is decided on the way is replaced by its branch, and the walk goes on through that.
    tried: what single nodes were inferred with before (see `refine`), where the same shapes are followed again.
    Returns how many tensors became constants, how many targets were rewritten, and how many branches moved out.
    """
    follower = Follower(model, tried)
    outputs, better = follower.view.outputs, follower.refiner.better
    made = rewritten = moved = 0
    for graph in model.graphs():
        pending, kept = deque(graph.nodes), []
        while pending:
            node = pending.popleft()
            if control.decided(node) and not any(id(t) in outputs for t in node.outputs):
                inner, results = control.opened(model, node, outputs)
                pending.extendleft(reversed(inner))
                better.update(id(t) for t in results)
                moved += 1
                continue
            kept.append(node)
            rewritten += _rewrite(follower, model, node)
            tensor = follower.step(node)
            if tensor is not None and (tensor.outputs or id(tensor) in outputs):
                better.add(id(_store(model, tensor, follower.known[id(tensor)].array(), outputs)))
                made += 1
        graph.nodes = kept
    if made or rewritten or moved:
        edit.sweep(model)
    return made, rewritten, moved


def _store(model: Model, tensor: gs.Variable, value: np.ndarray, outputs: set[int]) -> gs.Constant:
    """Let readers have the value; a graph output becomes the constant itself. Returns the constant."""
    if id(tensor) not in outputs:
        made = edit.constant(model, tensor.name, value)
        edit.replace(model, tensor, made, outputs)
        return made
    edit.unlink(*tensor.inputs)
    tensor.to_constant(value)
    tensor.__dict__.setdefault("_export_dtype", None)
    return tensor  # type: ignore[return-value]


def _rewrite(f: Follower, model: Model, node: gs.Node) -> bool:
    if node.domain:
        return False
    if node.op == "Reshape" and len(node.inputs) == 2:
        return _aim(f, model, node, _reshape_target)
    if node.op == "Expand":
        return _aim(f, model, node, _expand_target)
    if node.op == "Slice" and len(node.inputs) > 2:
        return _open_ends(f, model, node)
    return False


def _aim(f: Follower, model: Model, node: gs.Node, solve: Callable[..., list[int] | None]) -> bool:
    target = f.of(node.inputs[1])
    if isinstance(node.inputs[1], gs.Constant) or target is None or target.rank != 1 or target.complete:
        return False
    solved = solve(target.values, f.sizes(node.inputs[0]), node)
    if solved is None:
        return False
    return _give(f, node, 1, edit.constant(model, f"{node.name}_shape", np.array(solved, np.int64)))


def _give(f: Follower, node: gs.Node, index: int, value: gs.Constant) -> bool:
    edit.set_input(node, index, value)
    f.refiner.better.add(id(value))
    return True


def _reshape_target(target: Sequence[Entry], data: list[Entry] | None, node: gs.Node) -> list[int] | None:
    """Exact wherever the original runs and no size is 0; sizes copied with 0 keep their names."""
    if node.attrs.get("allowzero", 0) or any(v == 0 for v in target if not isinstance(v, str)):
        return None
    solved, free = [], 0
    for k, v in enumerate(target):
        if isinstance(v, str) and data is not None and k < len(data) and data[k] == v:
            solved.append(0)
        elif v is None or isinstance(v, str) or v < 0:
            solved.append(-1)
            free += 1
        else:
            solved.append(int(v))
    return solved if free <= 1 else None


def _expand_target(target: Sequence[Entry], data: list[Entry] | None, node: gs.Node) -> list[int] | None:
    if data is None:
        return None
    solved = []
    for k, v in enumerate(target):
        at = k + len(data) - len(target)
        if isinstance(v, str) and at >= 0 and data[at] == v:
            solved.append(1)
        elif isinstance(v, int):
            solved.append(v)
        else:
            return None
    return solved


def _open_ends(f: Follower, model: Model, node: gs.Node) -> bool:
    """`x[0:size]` with the size as a symbol is `x[0:]`."""
    ends, data = f.of(node.inputs[2]), f.sizes(node.inputs[0])
    axes, starts = f.of(edit.get(node, 3)), f.of(node.inputs[1])
    steps = f.of(edit.get(node, 4))
    if isinstance(node.inputs[2], gs.Constant) or ends is None or ends.complete or data is None or starts is None:
        return False
    if not starts.complete or any(s is not None and not s.complete for s in (axes, steps)):
        return False
    if (edit.get(node, 3) is not None and axes is None) or (edit.get(node, 4) is not None and steps is None):
        return False
    where = axes.values if axes else range(len(ends.values))
    stride = steps.values if steps else (1,) * len(ends.values)
    solved = []
    for v, axis, step in zip(ends.values, where, stride):
        if isinstance(v, str) and step > 0 and data[int(axis)] == v:  # type: ignore[operator, arg-type, call-overload]
            solved.append(np.iinfo(ends.dtype).max)
        elif isinstance(v, int):
            solved.append(v)
        else:
            return False
    return _give(f, node, 2, edit.constant(model, f"{node.name}_ends", np.array(solved, ends.dtype)))
