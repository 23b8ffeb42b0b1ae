"""One step that turns a placement and its scales into QuantizeLinear/DequantizeLinear pairs and integer constants."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, edit, ops, order
from .calibrate import Scale, to_scale
from .eligible import activations, is_linear
from .placement import Placement
from .weights import Packed

_INT32 = 2**31 - 1


@dataclass(frozen=True)
class Recipe:
    """All that insertion needs: where, with which scales, which weights, and what to add to biases.

    scales: by tensor name. weights: by node name, of linear nodes with a constant weight. shifts: by node name, added
    to the float bias before it is rounded (bias correction), [output channels]. integer_biases: biases become int32.
    symmetric: zero points are 0, those of constants too.
    """

    placement: Placement
    scales: Mapping[str, Scale]
    weights: Mapping[str, Packed]
    shifts: Mapping[str, np.ndarray] = field(default_factory=dict)
    integer_biases: bool = True
    symmetric: bool = False


class Pool:
    """Scales and zero points of one model: equal ones are one constant, which keeps small models small."""

    def __init__(self, model: Model):
        self.model = model
        self.held: dict[tuple[Any, ...], gs.Constant] = {}

    def __call__(self, hint: str, values: Any) -> gs.Constant:
        array = np.asarray(values)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.held:
            self.held[key] = edit.constant(self.model, hint, array)
        return self.held[key]


def insert(model: Model, recipe: Recipe) -> dict[str, int]:
    """Edit `model` in place; returns counts for the report."""
    chosen = [n for n in model.graph.nodes if n.name in recipe.placement.nodes]
    done: dict[tuple[Any, ...], Any] = {}
    pool = Pool(model)
    for node in chosen:
        if node.name in recipe.weights:
            _weight(pool, node, recipe, done)
        elif not is_linear(node):
            _constant_operands(pool, node, recipe)
    tensors = model.tensors()
    for name in recipe.placement.quantized():
        _pair(pool, tensors[name], recipe.scales[name], recipe.placement)
    guarded = _guard_float_layers(pool, recipe.placement)
    order.sort(model)
    return {
        "layers in 8 bits": len(recipe.weights),
        "nodes in 8 bits": len(chosen),
        "tensors quantized": len(recipe.placement.quantized()),
        **({"float layers kept float": guarded} if guarded else {}),
    }


def _dequantize(pool: Pool, hint: str, values: Any, scale: Any, axis: int | None, zero: Any = None) -> gs.Variable:
    """A DequantizeLinear on a constant; returns its output. zero: the zero point, where there is one."""
    model, attrs = pool.model, {} if axis is None else {"axis": axis}
    inputs = [edit.constant(model, f"{hint}_q", values), pool(f"{hint}_scale", scale)]
    if zero is not None:
        inputs.append(pool("zero_point", zero))
    out = edit.variable(model, f"{hint}_dq", np.float32, list(values.shape))
    edit.add(model.graph, edit.node(model, "DequantizeLinear", inputs, attrs, [out], f"{hint}_DQ"))
    return out


def _weight(pool: Pool, node: gs.Node, recipe: Recipe, done: dict[tuple[Any, ...], Any]) -> None:
    """int8 weight and int32 bias of one layer; a weight with several readers is stored once where it rounds alike."""
    packed, held = recipe.weights[node.name], node.inputs[1]
    key = (id(held), packed.axis, hashlib.sha256(packed.values.tobytes() + packed.scale.tobytes()).digest())
    scale = packed.scale if packed.axis is not None else packed.scale.reshape(())
    if key not in done:
        zero = np.zeros(scale.shape, np.int8)
        done[key] = _dequantize(pool, held.name, packed.values, scale, packed.axis, zero)
    x_scale = recipe.scales[node.inputs[0].name].scale
    edit.set_input(node, 1, done[key])
    shift = recipe.shifts.get(node.name)
    if node.op != "MatMul" and recipe.integer_biases:
        _bias(pool, node, np.float64(x_scale) * packed.scale.astype(np.float64), shift)
    elif shift is not None:
        bias = edit.const(node, 2)
        total = shift if bias is None else bias.reshape(-1) + shift
        edit.set_input(node, 2, edit.constant(pool.model, f"{node.name}_bias", total.astype(np.float32)))


def _bias(pool: Pool, node: gs.Node, scale: np.ndarray, shift: np.ndarray | None) -> None:
    """The bias as int32 with the scale of the products, as the integer kernels add it."""
    bias = edit.const(node, 2)
    if bias is None and shift is None:
        return
    hint = node.inputs[2].name if bias is not None else f"{node.name}_bias"
    total = np.zeros(1) if bias is None else bias.astype(np.float64).reshape(-1)
    total = total + (0.0 if shift is None else shift.astype(np.float64))
    shape = np.broadcast_shapes(total.shape, scale.shape)
    total, scale = np.broadcast_to(total, shape), np.broadcast_to(scale, shape).astype(np.float32)
    values = np.clip(np.rint(total / scale.astype(np.float64)), -_INT32, _INT32).astype(np.int32)
    edit.set_input(node, 2, _dequantize(pool, hint, values, scale, 0))


def _constant_operands(pool: Pool, node: gs.Node, recipe: Recipe) -> None:
    """Constants in the place of activations (Add, Mul) get the activations' integer type and a range of their own."""
    kind = next(iter(recipe.scales.values())).kind
    for k in activations(node):
        held = node.inputs[k]
        if not isinstance(held, gs.Constant):
            continue
        values = np.asarray(held.values, np.float32)
        ends = float(values.min(initial=0.0)), float(values.max(initial=0.0))
        scale = to_scale(*ends, kind, recipe.symmetric)
        low, high = scale.limits
        integers = np.clip(np.rint(values / np.float32(scale.scale)) + scale.zero, low, high).astype(scale.dtype)
        zero: np.ndarray = np.asarray(scale.zero, scale.dtype)
        edit.set_input(node, k, _dequantize(pool, held.name, integers, np.float32(scale.scale), None, zero))


def _pair(pool: Pool, tensor: Any, scale: Scale, placement: Placement) -> None:
    """A quantize/dequantize pair behind a tensor.

    Where an integer kernel makes the tensor, everyone reads the dequantized one (another reader would keep the kernel
    from fusing); where floats make it, only the integer kernels do.
    """
    model, name = pool.model, tensor.name
    shape = None if tensor.shape is None else list(tensor.shape)
    real = pool(f"{name}_scale", np.float32(scale.scale))
    zero = pool("zero_point", np.asarray(scale.zero, scale.dtype))
    integers = edit.variable(model, f"{name}_q", scale.dtype, shape)
    back = edit.variable(model, f"{name}_dq", np.float32, shape)
    q = edit.node(model, "QuantizeLinear", [tensor, real, zero], None, [integers], f"{name}_Q")
    dq = edit.node(model, "DequantizeLinear", [integers, real, zero], None, [back], f"{name}_DQ")
    readers = [n for n in tensor.outputs if n is not q]
    edit.add(model.graph, q, dq)
    if name in placement.integers:
        edit.replace(model, tensor, back)
        edit.set_input(q, 0, tensor)
        return
    for reader in {id(n): n for n in readers if n.name in placement.nodes}.values():
        for k in activations(reader):
            if reader.inputs[k] is tensor:
                edit.set_input(reader, k, back)


def _guard_float_layers(pool: Pool, placement: Placement) -> int:
    """Keep float layers between two integer regions float.

    ONNX Runtime quantizes the weight of such a layer itself, per tensor, when its input comes from a dequantize with
    one scale and its output goes to a quantize. A dequantize with that scale repeated for every channel does not match.
    """
    model, count = pool.model, 0
    for node in list(model.graph.nodes):
        if (
            node.name in placement.nodes
            or node.op not in ("Conv", "ConvTranspose", "Gemm")
            or not node.inputs[0].inputs
        ):
            continue
        maker, held = node.inputs[0].inputs[0], node.inputs[1]
        if maker.op != "DequantizeLinear" or not isinstance(held, gs.Constant) or not _ends_in_quantize(node):
            continue
        weight = ops.facts(node).weight(node)
        if weight is None:
            continue
        width = int(held.shape[weight.in_axis]) * (1 if weight.transposed else weight.groups)
        per_channel = [np.broadcast_to(maker.inputs[k].values, (width,)).copy() for k in (1, 2)]
        hint = node.inputs[0].name
        out = edit.variable(model, f"{hint}_float", np.float32, node.inputs[0].shape)
        inputs = [maker.inputs[0], *(pool(f"{hint}_per_channel", a) for a in per_channel)]
        edit.add(model.graph, edit.node(model, "DequantizeLinear", inputs, {"axis": 1}, [out]))
        edit.set_input(node, 0, out)
        count += 1
    return count


def _ends_in_quantize(node: gs.Node) -> bool:
    """Whether the only path from a node, through Relu and Clip, is into a quantize."""
    while len(node.outputs[0].outputs) == 1:
        node = node.outputs[0].outputs[0]
        if node.op == "QuantizeLinear":
            return True
        if node.op not in ("Relu", "Clip"):
            return False
    return False
