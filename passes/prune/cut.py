"""From what lives to a smaller model: constants are cut along their labelled axes, repeated sizes are recomputed."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit, shapes
from ...ir.flow import Flow
from ...ir.labels import Cells
from ...ir.resizing import Alive, Cut


def alive_after(flow: Flow, gone: np.ndarray) -> Alive:
    """Which positions live when these atoms (primitive roots) went: a function from cells to a mask."""
    dead = np.zeros(flow.atoms.count, bool)
    dead[gone] = True

    def alive(cells: Cells) -> np.ndarray:
        found = flow.atoms.resolve(cells)
        return np.ones(len(cells), bool) if found is None else ~dead[found].any(1)

    return alive


def cut(model: Model, flow: Flow, gone: np.ndarray) -> int:
    """Remove the positions of these atoms everywhere; returns how many constants were cut.

    `model` is the flow's model or a copy of it. A constant is copied only where its users need different cuts.
    """
    alive = alive_after(flow, gone)
    nodes = {n.name: n for n in model.graph.nodes}
    count = _cut_constants(model, flow, nodes, alive)
    for fix in flow.fixes:
        fix.apply(model, nodes[fix.node], alive)
    shapes.refresh(model)
    return count


def _cut_constants(model: Model, flow: Flow, nodes: dict[str, gs.Node], alive: Alive) -> int:
    masks: dict[tuple[str, int], dict[int, np.ndarray]] = {}
    for one in flow.cuts:
        mask = alive(one.cells)
        if not mask.all():
            known = masks.setdefault((one.node, one.index), {})
            known[one.axis] = known[one.axis] & mask if one.axis in known else mask
    made: dict[tuple[str, bytes], gs.Constant] = {}
    for (name, index), axes in masks.items():
        tensor = nodes[name].inputs[index]
        key = (tensor.name, b"|".join(b"%d:" % a + axes[a].tobytes() for a in sorted(axes)))
        if key not in made:
            values = tensor.values
            for axis, mask in axes.items():
                values = np.compress(mask, values, axis)
            made[key] = edit.constant(model, tensor.name, np.ascontiguousarray(values))
        edit.set_input(nodes[name], index, made[key])
    return len(made)


__all__ = ["Cut", "alive_after", "cut"]
