"""8-bit storage of weights that stay float, at every level: int8 constant → Cast(float) → Mul(scale).

ONNX Runtime folds the two operators when it loads the model, in subgraphs too, so it runs the same fused float graph
as before from a file that is nearly four times smaller; a DequantizeLinear on a constant would not be folded and would
cost time at every run. Valid from opset 7 on, with no operator newer than the model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from ...ir import Model, edit, ops, order
from ..bands import bands
from ..base import Skip
from .rounding import Rounded
from .weights import Packed, nearest

OPSET = 7  # the first whose Mul broadcasts as it does today
SMALLEST = 512  # elements; below, scale and nodes eat what is saved
WIDE = 32767  # greatest integer in 16 bits
QUIET_DB = 40.0  # below the signal: noise of stored weights that no 8-bit activation would notice
EXTRA = 0.10  # share of the 8-bit bytes that may be spent on 16-bit weights
LEAST = 0.002  # share of the noise: what makes less is not worth 16 bits
RECURRENT = 99  # the channel axes of a recurrent weight: directions and gates


def _nobody(node: gs.Node) -> bool:
    return False


def places(node: gs.Node) -> list[tuple[int, int | None]]:
    """(input position, channel axis) of every weight of a node that may be stored in 8 bits."""
    facts = ops.facts(node)
    if facts.kind == "recurrent":
        return [(k, RECURRENT) for k in (1, 2)]
    if node.op == "Gather" and node.inputs and isinstance(node.inputs[0], gs.Constant):
        return [(0, 0)]
    weight = facts.weight(node)
    return [] if weight is None else [(weight.index, weight.out_axis)]


@dataclass(frozen=True)
class Stored:
    """A constant that may be stored in 8 bits: the first node that reads it, its integers, and what that node's bias
    takes up of their error (see `rounding`)."""

    held: gs.Constant
    reader: gs.Node
    axis: int | None
    packed: Packed
    shift: np.ndarray | None = None


def weights(
    model: Model,
    rounded: Mapping[str, Rounded],
    skip: Collection[str] = (),
    excluded: Callable[[gs.Node], bool] = _nobody,
) -> dict[str, Stored]:
    """Weights of every level that may be stored in 8 bits, by name. rounded: integers made with knowledge of the
    inputs, by weight; the others are rounded to nearest. skip: nodes to leave alone. excluded: nodes that are to read
    their weights as they are, whoever reads them too."""
    found: dict[str, Stored] = {}
    results = edit.output_ids(model)  # a branch may hand out a constant
    for node in model.nodes():
        if node.name in skip or excluded(node):
            continue
        for index, axis in places(node):
            held = edit.get(node, index)
            if not isinstance(held, gs.Constant) or any(excluded(r) for r in held.outputs):
                continue
            if held.name not in found and _fits(held) and id(held) not in results:
                known = rounded.get(held.name)
                packed, shift = (pack(held.values, axis), None) if known is None else (known.packed, known.shift)
                found[held.name] = Stored(held, node, axis, packed, shift)
    return found


def store(
    model: Model,
    skip: Collection[str],
    excluded: Callable[[gs.Node], bool],
    share: float = 1.0,
    loud: Mapping[str, float] | None = None,
    rounded: Mapping[str, Rounded] | None = None,
    floor_db: float = 0.0,
) -> tuple[dict[str, int], tuple[Skip, ...]]:
    """Store float32 weights of the nodes of every level in 8 bits, or 16; returns counts, and refusals.

    skip: names of nodes to leave alone. share: the part of the elements, quietest for their number first, that goes
    into 8 bits; the rest goes into 16, which hurts nothing. loud: {weight: relative noise at the outputs}: the loudest
    of that part are stored in 16 bits too (see `wide`).
    """
    if model.opset < OPSET:
        return {}, (Skip("", f"opset {model.opset} is too old to store weights in 8 bits ({OPSET} or later)"),)
    skips = _refused(model, skip, excluded)
    homes = edit.homes_of_constants(model)
    found, levels = weights(model, rounded or {}, skip, excluded), dict(loud or {})
    narrow = _quiet(found, levels, share)
    fine = found.keys() - narrow.keys() | wide(narrow, levels, floor_db)
    for f in found.values():
        if f.held.name in fine:
            _restore(model, homes[id(f.held)], f.held, pack(f.held.values, f.axis, WIDE))
        else:
            _restore(model, homes[id(f.held)], f.held, f.packed)
            _shift_bias(model, f)
    order.sort(model)
    counts = {"weights stored in 8 bits": len(found) - len(fine), "weights stored in 16 bits": len(fine)}
    return {k: v for k, v in counts.items() if v}, tuple(skips)


def _refused(model: Model, skip: Collection[str], excluded: Callable[[gs.Node], bool]) -> list[Skip]:
    """Excluded nodes with weights, and those that read the weight of one."""
    skips = []
    for node in model.nodes():
        held = [edit.get(node, k) for k, _ in places(node)]
        with_them = [(t, r) for t in held if isinstance(t, gs.Constant) and _fits(t) for r in t.outputs if excluded(r)]
        if held and excluded(node):
            skips.append(Skip(node.name, "excluded by the user"))
        elif with_them and node.name not in skip:
            tensor, reader = with_them[0]
            skips.append(Skip(node.name, f"'{reader.name}', which is excluded, reads '{tensor.name}' too"))
    return skips


def _quiet(found: Mapping[str, Stored], levels: Mapping[str, float], share: float) -> dict[str, int]:
    """{weight: elements} of the weights that make least noise for their size, up to `share` of all elements."""
    sizes = {name: f.held.values.size for name, f in found.items()}
    ranked = sorted(sizes, key=lambda n: (levels.get(n, noise(found[n])) / sizes[n], n))
    ends = np.cumsum([sizes[n] for n in ranked])
    return {n: sizes[n] for n, end in zip(ranked, ends) if end <= share * ends[-1] + 0.5}


def wide(sizes: Mapping[str, int], levels: Mapping[str, float], floor_db: float = 0.0) -> set[str]:
    """Weights worth 16 bits (a few small layers often make most of the noise).

    The loudest, whatever they weigh, until the rest is `floor_db` below the signal; then those with the most noise a
    byte, until the rest is `QUIET_DB` below it or `EXTRA` of the bytes of all is spent.
    """
    left, total = EXTRA * sum(sizes.values()), sum(levels.get(n, 0.0) for n in sizes)
    chosen: set[str] = set()
    for name in sorted(sizes, key=lambda n: (-levels.get(n, 0.0), n)):
        if total <= 10 ** (-floor_db / 10) or levels.get(name, 0.0) < 0.01 * total:
            break
        chosen.add(name)
        left -= sizes[name]
        total -= levels[name]
    for name in sorted(sizes, key=lambda n: (-levels.get(n, 0.0) / sizes[n], n)):
        level = levels.get(name, 0.0)
        if name in chosen or sizes[name] > left or level < LEAST * total or total <= 10 ** (-QUIET_DB / 10):
            continue
        chosen.add(name)
        left -= sizes[name]
        total -= level
    return chosen


def pack(weight: np.ndarray, axis: int | None, top: int = 127) -> Packed:
    """Integers per channel; axes before the channel axis of a recurrent weight, [directions, gates, inputs], share
    nothing. top: the greatest integer; above 127 they are int16."""
    if axis == RECURRENT and weight.ndim == 3:
        flat = nearest(weight.reshape(-1, weight.shape[2]), 0, top)
        return Packed(flat.values.reshape(weight.shape), flat.scale.reshape(*weight.shape[:2], 1), None)
    axis = 1 if axis == RECURRENT else axis
    return nearest(weight, axis if axis is None or axis >= 0 else axis + weight.ndim, top)


def _fits(held: gs.Constant) -> bool:
    return np.dtype(held.dtype) == np.float32 and int(np.prod(held.shape)) >= SMALLEST and len(held.shape) >= 2


def noise(stored: Stored) -> float:
    """Relative squared error of a stored weight."""
    real, packed = np.asarray(stored.held.values), stored.packed
    scale = np.broadcast_to(_scale(packed), real.shape)
    gain = None if packed.gain is None else np.broadcast_to(packed.gain, real.shape)
    lost = power = 0.0
    for part in bands(real.shape):
        error = _floats(packed.values[part], scale[part], None if gain is None else gain[part]) - real[part]
        lost += float(np.vdot(error, error))
        power += float(np.vdot(real[part], real[part]))
    return lost / max(power, 1e-30)


def _scale(packed: Packed) -> np.ndarray:
    return packed.scale if packed.scale.ndim > 1 else packed.broadcast()


def restored(packed: Packed) -> np.ndarray:
    """The float32 weight that Cast and Mul make again."""
    return _floats(packed.values, _scale(packed), packed.gain)


def _floats(values: np.ndarray, scale: np.ndarray, gain: np.ndarray | None) -> np.ndarray:
    wide = values.astype(np.float32)
    wide *= scale
    if gain is not None:
        wide *= gain
    return wide


def _restore(model: Model, graph: gs.Graph, held: gs.Constant, packed: Packed) -> None:
    """Put int8 → Cast → Mul (→ Mul) in the place of a float constant, in the graph that its readers stand in."""
    values = edit.constant(model, f"{held.name}_int{8 * packed.values.itemsize}", packed.values)
    scale = edit.constant(model, f"{held.name}_scale", _scale(packed))
    shape = list(packed.values.shape)
    wide = edit.variable(model, f"{held.name}_wide", np.float32, shape)
    out = edit.variable(model, f"{held.name}_float", np.float32, shape)
    cast = edit.node(model, "Cast", [values], {"to": int(TensorProto.FLOAT)}, [wide], f"{held.name}_Cast")
    mul = edit.node(model, "Mul", [wide, scale], None, [out], f"{held.name}_Mul")
    edit.add(graph, cast, mul)
    if packed.gain is not None:
        gain, even = edit.constant(model, f"{held.name}_gain", packed.gain), out
        out = edit.variable(model, f"{held.name}_float", np.float32, shape)
        edit.add(graph, edit.node(model, "Mul", [even, gain], None, [out], f"{held.name}_Mul"))
    edit.replace(model, held, out)


def _shift_bias(model: Model, stored: Stored) -> None:
    """Let the layer's bias take up the mean of its weight's error."""
    if stored.shift is None:
        return
    bias = edit.const(stored.reader, 2)
    shifted = stored.shift if bias is None else bias.reshape(-1).astype(np.float64) + stored.shift
    hint = f"{stored.reader.name}_bias" if bias is None else stored.reader.inputs[2].name
    edit.set_input(stored.reader, 2, edit.constant(model, hint, shifted.astype(np.float32)))
