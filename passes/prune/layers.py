"""Linear layers with a constant weight, as regressions y = W·x + b over sampled output positions (`runtime.unfold`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, cost, edit
from ...ir.edit import output_ids
from ...ir.order import reads
from ...runtime.contraction import contraction
from . import recurrent

Array = np.ndarray
CONVOLUTIONS = ("Conv", "ConvTranspose")
SERVED = (*CONVOLUTIONS, "Gemm", "MatMul", "Einsum")
COPIES = 0.02  # of the model's parameters, that copies of shared weights may add


@dataclass(frozen=True)
class Layer:
    """One Conv, ConvTranspose, Gemm or MatMul, an Einsum of data and a constant, or what LSTM, GRU or RNN make of their
    inputs and states (`recurrent`).

    x, y: names of data input and output. bias: where the bias is, (node, input), or None. A MatMul whose bias is an
    Add behind it ends with that Add. witness: the tensor that an error of the output is felt in (the sum of a residual
    block, or y itself); other: the summand that is added there. made: axes of y that count the layer's outputs.
    gates: how often a recurrent layer's outputs repeat its units; 0 for all others. states: its states and the first
    ones, where they are read too.
    """

    node: str
    op: str
    x: str
    y: str
    bias: tuple[str, int] | None
    witness: str
    other: str | None
    made: tuple[int, ...] = (-1,)
    gates: int = 0
    states: tuple[str, ...] = ()


def layers(model: Model, gates: bool = False, keep: Callable[[gs.Node], bool] = lambda node: False) -> list[Layer]:
    """Every layer that can be fitted, in the order of the graph.

    gates: those of recurrent layers too. keep: nodes to leave alone, a layer's own or that of its bias.
    """
    captured = {id(t) for n in model.graph.nodes for t in reads(n) if not any(t is own for own in n.inputs)}
    outputs = output_ids(model) | captured  # what a branch reads is seen as it is, too
    kept = {n.name for n in model.graph.nodes if keep(n)}
    every = (_layer(n, outputs, gates) for n in model.graph.nodes if n.name not in kept)
    found = [x for x in every if x is not None and (x.bias is None or x.bias[0] not in kept)]
    level = levels(model, [x.node for x in found])
    maker = {t.name: n.name for n in model.graph.nodes for t in n.outputs}
    return [_settled(x, level, maker) for x in found]


def levels(model: Model, fitted: Sequence[str]) -> dict[str, int]:
    """Level of every node by name: how many fitted layers lie on the longest way to its output, itself included."""
    names = set(fitted)
    level: dict[str, int] = {}
    made: dict[int, int] = {}
    for node in model.graph.nodes:
        above = max((made.get(id(t), 0) for t in reads(node)), default=0)
        level[node.name] = above + (node.name in names)
        for tensor in node.outputs:
            made[id(tensor)] = level[node.name]
    return level


def _settled(layer: Layer, level: dict[str, int], maker: dict[str, str]) -> Layer:
    """Without the sum behind it where the other summand is not settled before this layer."""
    if layer.other is None or level.get(maker.get(layer.other, ""), 0) < level[layer.node]:
        return layer
    return replace(layer, witness=layer.y, other=None)


def _layer(node: gs.Node, outputs: set[int], gates: bool) -> Layer | None:
    if unfit(node, gates):
        return None
    if node.op in recurrent.GATES:
        x, y = node.inputs[0].name, next(t.name for t in node.outputs if t.name)
        both = recurrent.states(node) if recurrent.joint(node) else ()
        return Layer(node.name, node.op, x, y, (node.name, 3), x, None, (-1,), recurrent.repeats(node), both)
    return _described(node, outputs)


def unfit(node: gs.Node, gates: bool = False) -> str:
    """Why a node is no layer that can be fitted; "" where it is one. gates: recurrent layers are, too."""
    served = (*SERVED, *recurrent.GATES) if gates else SERVED
    if node.domain not in (None, "", "ai.onnx") or node.op not in served:
        return f"op {node.op} is none whose weights are fitted"
    if node.op in recurrent.GATES:
        return "" if recurrent.fitting(node) else "the weights are no float32 constants"
    if node.op == "Einsum":
        product = contraction(node)
        if product is None:
            return "the Einsum is no product of data and one constant"
        return _unfit_type(node.inputs[product.w])
    weight = edit.get(node, 1)
    if not isinstance(weight, gs.Constant) or isinstance(node.inputs[0], gs.Constant):
        return "its second input is no constant weight"
    return _unfit_type(weight) or _unfit_form(node, weight)


def _unfit_type(weight: gs.Constant) -> str:
    return "" if weight.dtype == np.float32 else f"the weight is {np.dtype(weight.dtype).name}, not float32"


def _unfit_form(node: gs.Node, weight: gs.Constant) -> str:
    if node.op == "Gemm" and (
        node.attrs.get("transA", 0) or any(node.attrs.get(k, 1.0) != 1.0 for k in ("alpha", "beta"))
    ):
        return "Gemm with alpha, beta or transA"
    if node.op == "MatMul" and len(weight.shape) != 2:
        return "the weight is no matrix"
    third = edit.get(node, 2)
    if third is not None and (not isinstance(third, gs.Constant) or len(third.shape) != 1):
        return "the bias is no constant vector"
    if third is not None and node.op == "Gemm" and third.shape[0] != weight.shape[0 if node.attrs.get("transB") else 1]:
        return "the bias is one value for all outputs"
    return ""


def _described(node: gs.Node, outputs: set[int]) -> Layer:
    x, y = node.inputs[0], node.outputs[0]
    bias: tuple[str, int] | None = (node.name, 2)
    made: tuple[int, ...] = (1,) if node.op in CONVOLUTIONS else (-1,)
    if node.op == "MatMul":
        bias, y = _added_bias(y, outputs, (node.inputs[1].shape[1],))
    product = contraction(node)
    if product is not None:
        x, made, shape = node.inputs[product.x], product.made, node.inputs[product.w].shape
        sizes = [shape[a] for a in product.groups[1] + product.outputs[0]]
        rank = len(product.rows[0]) + len(made)
        last = made == tuple(range(rank - len(made), rank))
        bias, y = _added_bias(y, outputs, sizes) if last and made else (None, y)
    witness, other = _witness(y, outputs)
    return Layer(node.name, node.op, x.name, y.name, bias, witness.name, other, made)


def _only_user(tensor: Any, outputs: set[int]) -> gs.Node | None:
    users = {id(n): n for n in tensor.outputs}
    return next(iter(users.values())) if len(users) == 1 and id(tensor) not in outputs else None


def _added_bias(y: Any, outputs: set[int], sizes: Sequence[int]) -> tuple[tuple[str, int] | None, Any]:
    """The constant of the sizes of the last axes that is added to a product, and the sum."""
    user = _only_user(y, outputs)
    if user is None or user.op != "Add":
        return None, y
    index = 1 if user.inputs[0] is y else 0
    tensor = user.inputs[index]
    if not isinstance(tensor, gs.Constant) or tuple(tensor.shape) != tuple(sizes):
        return None, y
    return (user.name, index), user.outputs[0]


def _witness(y: Any, outputs: set[int]) -> tuple[Any, str | None]:
    user = _only_user(y, outputs)
    if user is not None and user.op == "Add" and len(user.inputs) == 2 and user.inputs[0] is not user.inputs[1]:
        other = user.inputs[1] if user.inputs[0] is y else user.inputs[0]
        known = other.shape is not None and y.shape is not None
        if not isinstance(other, gs.Constant) and known and list(other.shape) == list(y.shape):
            return user.outputs[0], other.name
    return y, None


def weights_of(node: gs.Node) -> tuple[int, ...]:
    """Positions of the weights among a layer's inputs."""
    product = contraction(node)
    if product is not None:
        return (product.w,)
    return (1, 2) if node.op in recurrent.GATES and recurrent.joint(node) else (1,)


def readers(node: gs.Node, index: int) -> frozenset[str]:
    """Names of the nodes that read the constant at an input, this one among them; none where there is no input."""
    tensor = edit.get(node, index)
    return frozenset() if tensor is None else frozenset(n.name for n in tensor.outputs)


def shares_weights(node: gs.Node) -> bool:
    """Whether other nodes read a layer's weights too."""
    return any(len(readers(node, k)) > 1 for k in weights_of(node))


def tied(model: Model, found: Sequence[Layer]) -> set[str]:
    """Names of the layers that keep weights which other nodes read too: new ones would be a copy for each.

    Copies of the smallest (gates of blocks, say) are worth it, up to a share of the model's parameters in all.
    """
    nodes = {n.name: n for n in model.graph.nodes}
    more: dict[str, int] = {}
    users: dict[str, set[str]] = {}
    for layer in found:
        for k in weights_of(nodes[layer.node]):
            weight, others = nodes[layer.node].inputs[k], len(readers(nodes[layer.node], k)) - 1
            if others > 0:
                more[weight.name] = others * cost.size(weight)
                users.setdefault(weight.name, set()).add(layer.node)
    room, kept = COPIES * cost.parameters(model), set[str]()
    for name in sorted(more, key=lambda n: (more[n], n)):
        room -= more[name]
        kept |= users[name] if room < 0 else set()
    return kept


def matrix(node: gs.Node) -> Array:
    """The weight as `[groups, M/groups, D]`."""
    product = contraction(node)
    if product is not None:
        return product.matrices(node.inputs[product.w].values)
    weight = node.inputs[1].values
    if node.op in recurrent.GATES:
        return recurrent.matrix(node)
    groups = int(node.attrs.get("group", 1))
    if node.op == "Conv":
        return weight.reshape(groups, weight.shape[0] // groups, -1)
    if node.op == "ConvTranspose":
        by_group = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return np.swapaxes(by_group, 1, 2).reshape(groups, weight.shape[1], -1)
    return (weight if node.op == "Gemm" and node.attrs.get("transB", 0) else weight.T)[None]


def layout(node: gs.Node) -> Callable[[Array], list[Array]]:
    """A function from matrices `[groups, M/groups, D]` to the layout of the node's weights, float32."""
    product, op, groups = contraction(node), node.op, int(node.attrs.get("group", 1))
    places = weights_of(node)
    shape = tuple(node.inputs[places[0]].shape)
    flipped = op == "MatMul" or not node.attrs.get("transB", 0)

    def laid(matrices: Array) -> list[Array]:
        if len(places) > 1:
            parts = (matrices[:, :, : shape[2]], matrices[:, :, shape[2] :])
            return [np.ascontiguousarray(p, dtype=np.float32) for p in parts]
        if product is not None:
            new = product.laid(matrices, shape)
        elif op == "Conv" or op in recurrent.GATES:
            new = matrices.reshape(shape)
        elif op == "ConvTranspose":
            new = np.swapaxes(matrices.reshape(groups, shape[1], shape[0] // groups, -1), 1, 2).reshape(shape)
        else:
            new = matrices[0].T if flipped else matrices[0]
        return [np.ascontiguousarray(new, dtype=np.float32)]

    return laid


def store(model: Model, layer: Layer, nodes: dict[str, gs.Node], matrices: Array | None, bias: Array | None) -> None:
    """Put fitted weights `[groups, M/groups, D]`, and a new bias, in place of the old; None: that one stays."""
    node = nodes[layer.node]
    old = node.inputs[weights_of(node)[0]]
    for index, new in zip(weights_of(node), [] if matrices is None else layout(node)(matrices)):
        edit.set_input(node, index, edit.constant(model, node.inputs[index].name, new))
    if bias is not None and layer.bias is not None:
        where, at = nodes[layer.bias[0]], layer.bias[1]
        present = edit.get(where, at)
        hint = f"{old.name}_bias" if present is None else present.name
        edit.set_input(
            where, at, edit.constant(model, hint, biased(layer, None if present is None else present.values, bias))
        )


def biased(layer: Layer, present: Array | None, bias: Array) -> Array:
    """A bias `[M]` in the layout of the one that is there, float32; a recurrent layer keeps its second half."""
    if layer.gates:
        bias = recurrent.whole(bias, present, layer.gates // recurrent.GATES[layer.op])
    return bias.reshape(bias.shape if present is None else present.shape).astype(np.float32)


def bias_of(layer: Layer, nodes: Mapping[str, gs.Node]) -> Array:
    """The bias `[M]` as it is; zeros where there is none."""
    present = None if layer.bias is None else edit.const(nodes[layer.bias[0]], layer.bias[1])
    count = int(np.prod(matrix(nodes[layer.node]).shape[:2]))
    if present is None:
        return np.zeros(count, np.float32)
    return recurrent.first_half(present) if layer.gates else present.reshape(-1)
