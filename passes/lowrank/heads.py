"""Attention heads split one by one: W_h ≈ A_h B_h for every head's rows of a projection, each at its own optimum.

    x → MatMul (D, H·r) → Reshape [..., H, r] → Transpose [B, H, S, r] → MatMul with a stack (H, r, d) → Add (H, 1, d)

A head's block has rank d at most, so at rank r the chain costs H·r·(D + d) a position where one SVD of all heads costs
R·(D + H·d): at equal MACs R is about half of H·r. Which loses less hangs on whether heads share what they read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ir import Model, edit
from .forms import LARGE, Form, Rank, Shapes, principal
from .layer import Layer, Stage
from .norm import Array, Norm
from .views import View, find, known


class Heads(Form):
    """One matmul to r values a head, and behind the layer's own Reshape and Transpose a batch of matmuls."""

    name = "heads"
    closed = True

    def refuse(self, layer: Layer) -> str | None:
        found = known(layer)
        views = [v for v in found if isinstance(v, View)]
        if len(views) < len(found):
            return next((v for v in found if isinstance(v, str)), "heads serves products that are read as heads")
        return None if len({v.size for v in views}) == 1 else "products of one input have heads of several sizes"

    def spec(self, layer: Layer) -> str:
        return "orh,rhc->oc"  # the first factor is zero but for each head's own outputs

    def full(self, layer: Layer) -> Rank:
        return (min(_size(layer), layer.inputs),)

    def shapes(self, layer: Layer, rank: Rank) -> Shapes:
        count = layer.outputs // _size(layer)
        return (layer.outputs, rank[0], count), (rank[0], count, layer.inputs)

    def start(self, layer: Layer, rank: Rank, norm: Norm) -> list[Array]:
        return self.components(layer, rank, norm)[:2]

    def components(self, layer: Layer, rank: Rank, norm: Norm) -> list[Array]:
        """The optimum of every head, and what each component explains of all of them together."""
        dtype = layer.dtype if layer.weight.size >= LARGE else np.float64
        one, two = self.shapes(layer, rank)
        outer, inner, energies = np.zeros(one, dtype), np.empty(two, dtype), np.zeros(rank[0])
        size = _size(layer)
        for h in range(one[2]):
            own = slice(h * size, (h + 1) * size)
            outer[own, :, h], inner[:, h], explained = principal(layer.flat[own], norm, rank[0], dtype)
            energies += explained
        return [outer, inner, energies]

    def stages(self, layer: Layer, factors: Sequence[Array]) -> list[Stage]:
        """The first weight (H·r, D), a head's rows together, and the stack (H, d, r)."""
        outer, inner = factors
        count = outer.shape[2]
        size = len(outer) // count
        stack = np.stack([outer[h * size : (h + 1) * size, :, h] for h in range(count)])
        return [Stage(np.swapaxes(inner, 0, 1).reshape(-1, inner.shape[2])), Stage(stack)]

    def cost(self, layer: Layer, rank: Rank) -> tuple[int, int]:
        size = _size(layer)
        params = layer.outputs // size * rank[0] * (layer.inputs + size)
        return math.prod(layer.size) // layer.inputs * params, params


def _size(layer: Layer) -> int:
    """Size of one head."""
    return next(v.size for v in known(layer) if isinstance(v, View))


def apart(layer: Layer, stages: Sequence[Stage]) -> bool:
    """Whether a chain is that of `Heads`."""
    return layer.op in ("MatMul", "Gemm") and stages[-1].weight.ndim == 3


def put(model: Model, layer: Layer, stages: Sequence[Stage], shift: Array | None, label: str) -> None:
    """Replace a layer, or all members of a joint one, up to the Transposes that make its heads batches.

    Each chain's last node writes what the Transpose wrote.
    """
    scale = np.broadcast_to(layer.scale, (layer.outputs,))
    moved = None if shift is None else shift * scale
    row = 0
    for member, chain in zip(layer.members or (layer,), each(layer, stages)):
        own = slice(row, row + member.outputs)
        row = own.stop
        view = find(model, member)
        assert isinstance(view, View)  # the form has seen it
        outer = chain[1].weight * scale[own].reshape(*chain[1].weight.shape[:2], 1)
        bias = _total(member, None if moved is None else moved[own])
        source, output = member.node.inputs[0], view.transpose.outputs[0]
        gone = [n for n in (member.node, member.slot, view.reshape, view.transpose) if n is not None]
        prefix, attrs = view.prefix, dict(view.reshape.attrs)
        edit.unlink(*gone)
        name = f"{member.node.name}_{label}"
        target = edit.constant(model, f"{name}_shape", np.array(view.target(outer.shape[2]), np.int64))
        made = []
        if prefix:
            joined = edit.variable(model, f"{name}_target", np.dtype(np.int64))
            made.append(edit.node(model, "Concat", [*prefix, target], {"axis": 0}, [joined], f"{name}_concat"))
            target = joined
        pair = chain[0], Stage(outer)
        made += nodes(model, view, pair, source, target, output, name, bias, member.dtype, attrs)
        place = next(i for i, n in enumerate(model.graph.nodes) if n is view.transpose)
        there = [*model.graph.nodes[:place], *made, *model.graph.nodes[place + 1 :]]
        model.graph.nodes = [n for n in there if not any(n is g for g in gone)]


def each(layer: Layer, stages: Sequence[Stage]) -> list[list[Stage]]:
    """The chain of each member of a joint layer."""
    inner, stack = (s.weight for s in stages)
    rank, size = stack.shape[2], stack.shape[1]
    ends = np.cumsum([m.outputs // size for m in layer.members], dtype=int)[:-1]
    firsts, lasts = np.split(inner, ends * rank), np.split(stack, ends)
    return [[Stage(a), Stage(b)] for a, b in zip(firsts, lasts)]


def shown(model: Model, layer: Layer, view: View, output: Any, name: str) -> Any:
    """A tensor to write the layer's own output to, and behind it the nodes that make heads of it, in the graph."""
    flat, split = (edit.variable(model, f"{name}_{k}", np.dtype(layer.dtype)) for k in ("flat", "heads"))
    target = edit.constant(model, f"{name}_shape", np.array(concrete(layer, view, view.size), np.int64))
    edit.add(
        model.graph,
        edit.node(model, "Reshape", [flat, target], {}, [split], f"{name}_reshape"),
        edit.node(model, "Transpose", [split], {"perm": list(view.order)}, [output], f"{name}_transpose"),
    )
    return flat


def concrete(layer: Layer, view: View, size: int) -> tuple[int, ...]:
    """What a Reshape to heads gives of the layer's own input; one batch of all rows where axes were put together."""
    lead = list(layer.size[:-1])
    if len(lead) != view.lead:
        lead = [1] * view.lead
        lead[next(a for a in view.order[-2:] if a < view.lead)] = -1
    return *lead, *view.heads, size


def nodes(
    model: Model,
    view: View,
    chain: Sequence[Stage],
    source: Any,
    target: Any,
    output: Any,
    name: str,
    bias: Array | None,
    dtype: Any,
    attrs: dict[str, Any],
) -> list[Any]:
    """The chain from `source` to `output`, (..., S, d) a head or (..., d, S); not yet in a graph.

    target: of the Reshape, with `attrs` its own. bias: (H·d,) or None.
    """
    kind = np.dtype(dtype)
    flat, split, turned, product = (edit.variable(model, f"{name}_{k}", kind) for k in ("0", "heads", "turned", "1"))
    inner = np.ascontiguousarray(chain[0].weight.T.astype(kind, copy=False))
    stack = chain[1].weight if view.flipped else np.swapaxes(chain[1].weight, 1, 2)
    outer = edit.constant(model, f"{name}1_weight", view.laid(stack).astype(kind, copy=False))
    factors = [outer, turned] if view.flipped else [turned, outer]
    made = [
        edit.node(model, "MatMul", [source, edit.constant(model, f"{name}0_weight", inner)], {}, [flat], f"{name}0"),
        edit.node(model, "Reshape", [flat, target], attrs, [split], f"{name}_reshape"),
        edit.node(model, "Transpose", [split], {"perm": list(view.order)}, [turned], f"{name}_transpose"),
        edit.node(model, "MatMul", factors, {}, [output if bias is None else product], f"{name}1"),
    ]
    if bias is not None:
        rows = np.asarray(bias).reshape(view.count, *((-1, 1) if view.flipped else (1, -1)))
        added = edit.constant(model, f"{name}_bias", view.laid(rows).astype(kind))
        made.append(edit.node(model, "Add", [product, added], {}, [output], f"{name}_add"))
    return made


def _total(member: Layer, shift: Array | None) -> Array | None:
    """The bias of all heads, with what it takes over."""
    if shift is None:
        return member.bias
    return shift if member.bias is None else member.bias + shift
