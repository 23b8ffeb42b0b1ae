"""How loud each layer is alone, with all of them in one session: each stands there in float and in its dynamic form,
and an extra boolean input chooses between the two."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit
from .layers import Layer


def add(model: Model, layers: Mapping[str, Layer]) -> dict[str, str]:
    """Put a float twin beside every layer; what read the layer reads, as its switch says, the one or the other.

    Returns {layer: name of the graph input that turns it on}. The layers may then be rewritten where they stand.
    """
    switches = {}
    for name, layer in layers.items():
        switch = edit.variable(model, f"{name}_switch", np.bool_, [])
        model.graph.inputs.append(switch)
        switches[name] = str(switch.name)
        _twin(model, layer, switch)
    return switches


def _twin(model: Model, layer: Layer, switch: gs.Variable) -> None:
    node, graph = layer.node, layer.graph
    plain = [edit.variable(model, f"{t.name}_float", t.dtype, t.shape) if t.name else None for t in node.outputs]
    outputs = [gs.Variable.empty() if t is None else t for t in plain]
    edit.add(graph, edit.node(model, node.op, node.inputs, dict(node.attrs), outputs, f"{node.name}_float"))
    for out, other in zip(list(node.outputs), plain):
        if other is None:
            continue
        chosen = edit.variable(model, f"{out.name}_chosen", out.dtype, out.shape)
        where = edit.node(model, "Where", [switch, out, other], outputs=[chosen])
        edit.add(graph, where)
        edit.replace(model, out, chosen)
        edit.set_input(where, 1, out)
