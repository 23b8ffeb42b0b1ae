"""Products that read one tensor, such as queries, keys and values: split together, with a first factor in common.

At rank r three products D → O cost r·(D + 3·O) instead of 3·r·(D + O), and the rows of all of them lie in what the
input spans. On vit_pgd_2_3_16 at half of the MACs the mean output error of the three is 0.027 and 0.110 in its two
blocks, where each split by itself loses 0.067 and 0.158; the clock finds both alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit
from ..bands import energy, mapped
from . import emit, heads
from .layer import Layer, Stage, read
from .norm import Array

SERVED = ("MatMul", "Gemm")


def bundled(layers: Sequence[Layer]) -> list[Layer]:
    """The layers in order, those that can share a first factor joined at the place of the first of them."""
    found: dict[tuple[object, ...], list[Layer]] = {}
    for k, layer in enumerate(layers):
        flipped = bool(layer.node.attrs.get("transB", 0))
        own = (layer.op, id(layer.node.inputs[0]), np.dtype(layer.dtype), layer.adjustable, flipped)
        found.setdefault(own if layer.op in SERVED else (k,), []).append(layer)
    return [joined(some) for some in found.values()]


def joined(layers: Sequence[Layer]) -> Layer:
    """One layer whose outputs are those of all: each over the size of its weights, so that their errors count alike."""
    if len(layers) == 1:
        return layers[0]
    scales = [float(np.sqrt(energy(m.weight) / m.weight.size)) or 1.0 for m in layers]
    biases = [(np.zeros(m.outputs) if m.bias is None else m.bias) / s for m, s in zip(layers, scales)]
    return replace(
        layers[0],
        weight=_over(layers, scales),
        bias=None if all(m.bias is None for m in layers) else np.concatenate(biases),
        slot=None,
        members=tuple(layers),
        scale=np.repeat(scales, [m.outputs for m in layers]),
    )


def _over(layers: Sequence[Layer], scales: Sequence[float]) -> Array:
    """The weights one below the other, each over its scale."""
    out, row = np.empty((sum(m.outputs for m in layers), layers[0].inputs), layers[0].dtype), 0
    for m, s in zip(layers, scales):
        out[row : row + m.outputs] = mapped(lambda w, s=s: w / np.float64(s), m.weight, dtype=m.dtype)
        row += m.outputs
    return out


def reader(model: Model) -> Callable[[Sequence[str], Sequence[int]], Layer]:
    """Reads layers again, by the names of their nodes and the size of their input, from another copy of the model."""
    nodes, results = {n.name: n for n in model.graph.nodes}, edit.output_ids(model)
    return lambda names, size: joined([read(nodes[name], size, results) for name in names])


def put(
    model: Model, layer: Layer, stages: Sequence[Stage], shift: Array | None, label: str
) -> list[tuple[Layer, gs.Node]]:
    """Replace a layer, or all members of a joint one, by the chain; each with the node that now writes its output.

    Nothing is given back for chains of single heads, which write something else.
    """
    if heads.apart(layer, stages):
        heads.put(model, layer, stages, shift, label)
        return []
    if not layer.members:
        return [(layer, emit.put(model, layer, stages, shift, label)[-1])]
    source, common = layer.node.inputs[0], layer.node.inputs[0]
    if len(stages) > 1:
        common = edit.variable(model, f"{layer.node.name}_{label}_shared", np.dtype(layer.dtype))
        made = emit.chain(model, replace(layer, adjustable=True), stages[:-1], source, common, label, None)
        place = next(i for i, n in enumerate(model.graph.nodes) if n is layer.node)
        model.graph.nodes = [*model.graph.nodes[:place], *made, *model.graph.nodes[place:]]
    lasts = []
    for member, weight, moved in zip(layer.members, *_unscaled(layer, stages[-1].weight, shift)):
        lasts.append((member, emit.put(model, member, [Stage(weight)], moved, f"{label}_last", common)[-1]))
    return lasts


def _unscaled(layer: Layer, weight: Array, shift: Array | None) -> tuple[list[Array], list[Array | None]]:
    """Rows of a joint layer's last factor and shift, member by member, at the size of each member's own weights."""
    ends = np.cumsum([m.outputs for m in layer.members])[:-1]
    moved: list[Array | None] = [None] * len(layer.members)
    if shift is not None:
        moved = list(np.split(shift * layer.scale, ends))
    return np.split(weight * layer.scale[:, None], ends), moved
