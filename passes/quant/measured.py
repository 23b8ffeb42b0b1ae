"""What each node of this model costs in float and in integers, measured by profiling it twice: as it is, and with
everything quantized that can be. Where a node was not seen, the cost table answers.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_graphsurgeon as gs

from ...ir import Model
from ...runtime import profiling
from ..base import Context
from . import costs
from .eligible import is_linear

Costs = Mapping[str, tuple[float, float]]


def measure(base: Model, full: Model, able: Mapping[str, gs.Node], shapes: costs.Shapes, ctx: Context) -> Costs:
    """{node: nanoseconds in float and in integers}.

    base: the float model; full: the same with all of `able` in integers, nodes under their own names.
    """
    feed = ctx.fit.first()
    plain = _credited(base, profiling.kernels(base, feed, threads=ctx.threads, timings=ctx.timings))
    whole = profiling.kernels(full, feed, threads=ctx.threads, timings=ctx.timings)
    found = {}
    for name, node in able.items():
        table = costs.of(node, shapes)
        inside = _fused(node, plain)
        seen = plain.get(name, 0.0 if inside else table[0] / 1e3)
        found[name] = (1e3 * seen, 1e3 * whole[name] if name in whole else table[1])
    return found


def _credited(model: Model, kernels: Mapping[str, float]) -> dict[str, float]:
    """Kernel times with those of fused activations given to the linear node that they vanished into."""
    found = dict(kernels)
    for node in model.graph.nodes:
        if node.name not in found or is_linear(node):
            continue
        at, chain = node, [node.name]
        while at.inputs and at.inputs[0].inputs and not is_linear(at):
            maker = at.inputs[0].inputs[0]
            if maker.name in found or len(maker.outputs[0].outputs) != 1:
                break
            at = maker
            chain.append(at.name)
        if is_linear(at) and len(chain) > 1:
            found[at.name] = found.pop(node.name)
    return found


def _fused(node: gs.Node, kernels: Mapping[str, float]) -> bool:
    """Whether a node without a kernel of its own lies next to one that has: it became a part of it."""
    near = [r for t in node.outputs for r in t.outputs] + [m for t in node.inputs for m in t.inputs]
    return any(n.name in kernels for n in near)
