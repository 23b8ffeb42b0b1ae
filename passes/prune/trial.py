"""Trials: the original with the weights of some layers exchanged, and what that does to its outputs.

One session serves all trials, since the weights that may change are its inputs. What is compared are the *heads*: the
graph outputs, or what they are put together from by operators that only move data. A detector concatenates boxes,
objectness and classes of several strides; each is a head of its own, so that none drowns in the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import helper

from ...ir import Model, edit, ops, order
from ...runtime.session import Session
from .energy import ZEROS
from .layers import Layer, bias_of, biased, layout, weights_of

Array = np.ndarray


@dataclass(frozen=True)
class Change:
    """Weights `[G, M/G, D]` of a layer, and what is added to its bias `[M]`."""

    weights: Array
    shift: Array


def heads(model: Model) -> list[gs.Variable]:
    """What the outputs are put together from, in the order in which it is found from the outputs backwards."""
    queue: list[Any] = list(model.graph.outputs)
    found: dict[str, gs.Variable] = {}
    while queue:
        tensor = queue.pop(0)
        maker = tensor.inputs[0] if tensor.inputs else None
        if maker is not None and ops.facts(maker).kind == "move":
            queue += maker.inputs if maker.op == "Concat" else maker.inputs[:1]
        elif isinstance(tensor, gs.Variable) and maker is not None:
            found.setdefault(tensor.name, tensor)
    return list(found.values())


class Trials:
    """Runs a model with other weights, or with positions of two contracted activations set to zero.

    layers: whose weights may be exchanged. masked: (node, its input, axis, positions) that may be masked.
    """

    def __init__(
        self,
        model: Model,
        layers: Sequence[Layer],
        masked: Iterable[tuple[str, int, int, int]],
        feeds: Iterable[Mapping[str, Any]],
        threads: int,
    ):
        copy = model.copy()
        nodes = {n.name: n for n in copy.graph.nodes}
        self.names: dict[str, tuple[list[str], str]] = {}
        self.given: dict[str, Array] = {}
        self.shifted: dict[str, Callable[[Array], Array]] = {}
        self.forms = {x.node: layout(nodes[x.node]) for x in layers}
        for layer in layers:
            node = nodes[layer.node]
            bias, self.shifted[layer.node] = _open_bias(copy, nodes, layer, self.given)
            places = weights_of(node)
            weights = [_open(copy, node, k, node.inputs[k].values, self.given) for k in places]
            self.names[layer.node] = (weights, bias)
        self.masks = {n: _open_mask(copy, nodes[n], k, axis, size, self.given) for n, k, axis, size in masked}
        copy.graph.outputs = heads(copy)
        copy.header.input_order, copy.header.protos = (), copy.header.non_tensors
        order.sort(copy)
        self.feeds = list(feeds) if copy.graph.outputs else []  # outputs that only move inputs feel no change
        self.session = Session(copy, threads=threads) if self.feeds else None
        self.reference = [self._run({**f, **self.given}) for f in self.feeds]
        self.spread = spreads(self.reference)

    def error(self, changes: Mapping[str, Change], masks: Mapping[str, Array] | None = None) -> float:
        """Squared error of the heads, each relative to its variance over the feeds, and averaged over the heads."""
        given = dict(self.given)
        for node, change in changes.items():
            weights, bias = self.names[node]
            given.update(zip(weights, self.forms[node](change.weights)))
            if bias:
                given[bias] = self.shifted[node](change.shift)
        for node, mask in (masks or {}).items():
            whole = given[self.masks[node]]
            given[self.masks[node]] = mask.reshape(whole.shape).astype(whole.dtype)
        total = dict.fromkeys(self.spread, 0.0)
        for feed, reference in zip(self.feeds, self.reference):
            found = self._run({**feed, **given})
            for head in total:
                apart = np.subtract(found[head], reference[head], dtype=np.float64)
                total[head] += float(np.square(apart).mean()) / len(self.feeds)
        return float(np.mean([e / self.spread[k] for k, e in total.items()])) if total else 0.0

    def _run(self, feed: Mapping[str, Any]) -> dict[str, Any]:
        assert self.session is not None
        return self.session.run(feed)


def spreads(reference: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Variance of every head of floats over feeds."""
    first = reference[0].items() if reference else ()
    floats = [h for h, v in first if isinstance(v, np.ndarray) and v.dtype.kind == "f"]
    return {h: _spread([r[h] for r in reference]) for h in floats}


def _spread(values: Sequence[Array]) -> float:
    """Variance over feeds and samples, position by position, averaged: a constant offset of a position is no signal."""
    each = [v if v.ndim else v[None] for v in values]
    if len({v.shape[1:] for v in each}) > 1 or sum(len(v) for v in each) < 2:
        return max(float(np.concatenate([v.reshape(-1) for v in each]).var(dtype=np.float64)), 1e-30)
    return max(float(np.concatenate(each).var(0, dtype=np.float64).mean()), 1e-30)


def _open(model: Model, node: gs.Node, index: int, value: Array, given: dict[str, Array]) -> str:
    tensor = edit.variable(model, f"{node.name}_{index}", np.float32, value.shape)
    edit.set_input(node, index, tensor)
    model.graph.inputs.append(tensor)
    given[tensor.name] = np.ascontiguousarray(value, dtype=np.float32)
    return str(tensor.name)


def _open_bias(
    model: Model, nodes: Mapping[str, gs.Node], layer: Layer, given: dict[str, Array]
) -> tuple[str, Callable[[Array], Array]]:
    """Name of the new input, and a function from what is added to the bias `[M]` to what the input is then."""
    if layer.bias is None:
        return "", np.asarray
    node, index = nodes[layer.bias[0]], layer.bias[1]
    present, flat = edit.const(node, index), bias_of(layer, nodes)
    return _open(model, node, index, biased(layer, present, flat), given), lambda s: biased(layer, present, flat + s)


def _open_mask(model: Model, node: gs.Node, index: int, axis: int, count: int, given: dict[str, Array]) -> str:
    tensor = node.inputs[index]
    floats = tensor.dtype is None or np.dtype(tensor.dtype).kind == "f"
    dtype = tensor.dtype if floats and tensor.dtype is not None else np.float32
    mask = edit.variable(model, f"{node.name}_mask", dtype, [count] + [1] * (len(tensor.shape) - axis - 1))
    masked = edit.variable(model, f"{node.name}_masked", tensor.dtype, tensor.shape)
    if floats:
        edit.add(model.graph, edit.node(model, "Mul", [tensor, mask], outputs=[masked]))
    else:
        _open_choice(model, node, index, mask, masked)
    edit.set_input(node, index, masked)
    model.graph.inputs.append(mask)
    given[mask.name] = np.ones(mask.shape, dtype)
    return str(mask.name)


def _open_choice(model: Model, node: gs.Node, index: int, mask: Any, masked: Any) -> None:
    """An integer operand of which masked positions are its zero point."""
    tensor, place = node.inputs[index], ZEROS.get(node.op, {}).get(index)
    zero = None if place is None else edit.get(node, place)
    wide = [_cast(model, t, np.int32) for t in (tensor, zero) if t is not None]
    if zero is None:
        wide.append(edit.constant(model, "zero", np.zeros((), np.int32)))
    chosen = edit.variable(model, f"{node.name}_chosen", np.int32, tensor.shape)
    edit.add(model.graph, edit.node(model, "Where", [_cast(model, mask, np.bool_), *wide], outputs=[chosen]))
    _cast(model, chosen, tensor.dtype, masked)


def _cast(model: Model, tensor: Any, dtype: Any, out: Any = None) -> Any:
    out = edit.variable(model, "cast", np.dtype(dtype), tensor.shape) if out is None else out
    to = int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    edit.add(model.graph, edit.node(model, "Cast", [tensor], {"to": to}, [out]))
    return out
