"""More steps for `randomgraphs`: operators that a rewriter seldom edits and must not trip over, and longer patterns.

What jumps (ArgMax, TopK, comparisons, quantization) is applied to inputs alone, where float rounding cannot move it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from randomgraphs import Builder, Shape

ACTIVATIONS = {"Selu": 6, "Celu": 12, "Sin": 7, "Cos": 7, "Atan": 7, "Asinh": 9, "Softsign": 1, "ThresholdedRelu": 10}
ACTIVATIONS |= {"HardSwish": 14, "Mish": 18, "Gelu": 20, "LogSoftmax": 13}
SUMS = ["ReduceSumSquare", "ReduceLogSumExp", "ReduceL1"]


def _given(b: Builder) -> tuple[str, Shape]:
    """One of the inputs."""
    return b.floats[int(b.rng.integers(2))]


def _activation(b: Builder) -> None:
    op = b.pick([k for k, since in ACTIVATIONS.items() if since <= b.opset])
    x, s = _given(b) if op == "ThresholdedRelu" else b.tensor()
    if s:
        b.emit(op, [x], s)


def _axes(b: Builder, op: str, x: str, s: Shape) -> str:
    since = 13 if op == "ReduceSum" else 18
    inputs, attrs = ([x], {"axes": [-1]}) if b.opset < since else ([x, b.ints([-1])], {})
    return b.emit(op, inputs, (*s[:-1], 1), **attrs)[0]


def _softmax(b: Builder) -> None:
    """Softmax or LogSoftmax spelled out, with its maximum subtracted or not."""
    x, s = b.tensor()
    if not s:
        return
    if b.chance(0.7):
        x, _ = b.emit("Sub", [x, _axes(b, "ReduceMax", x, s)], s)
    else:
        x, _ = b.emit("Tanh", [x], s)
    e = b.emit("Exp", [x], s)[0]
    total = _axes(b, "ReduceSum", e, s)
    if b.chance(0.5):
        b.emit("Div", [e, total], s)
    else:
        b.emit("Sub", [x, b.emit("Log", [total], (*s[:-1], 1))[0]], s)


def _rms(b: Builder) -> None:
    x, s = b.tensor()
    if not s or s[-1] < 2:
        return
    mean = _axes(b, "ReduceMean", b.emit("Mul", [x, x], s)[0], s)
    root = b.emit("Sqrt", [b.emit("Add", [mean, b.const(np.float32(0.1))], (*s[:-1], 1))[0]], (*s[:-1], 1))[0]
    if b.chance(0.5):
        y, _ = b.emit("Div", [x, root], s)
    else:
        y, _ = b.emit("Mul", [x, b.emit("Reciprocal", [root], (*s[:-1], 1))[0]], s)
    if b.chance(0.6):
        b.emit("Mul", [y, b.random(s[-1])], s)


def _attention(b: Builder) -> None:
    """Heads taken apart, softmax(q·kᵀ)·v, heads together; or a tensor of four axes attending to itself."""
    x, s = b.tensor()
    if len(s) == 3 and s[2] % 2 == 0 and b.chance(0.7):
        heads = (s[0], s[1], 2, s[2] // 2)
        parts = [b.emit("Reshape", [x, b.ints([0, 0, *heads[2:]])], heads)[0] for _ in range(3)]
        four, turn = (heads[0], 2, heads[1], heads[3]), [0, 2, 1, 3]
        q, v = (b.emit("Transpose", [p], four, perm=turn)[0] for p in (parts[0], parts[2]))
        k = b.emit("Transpose", [parts[1]], (four[0], 2, four[3], four[2]), perm=[0, 2, 3, 1])[0]
    elif len(s) == 4:
        four, q, v, heads = s, x, x, None
        k = b.emit("Transpose", [x], (s[0], s[1], s[3], s[2]), perm=[0, 1, 3, 2])[0]
    else:
        return
    rows = (*four[:3], four[2])
    a = b.emit("MatMul", [q, k], rows)[0]
    if b.chance(0.7):
        a = b.emit(b.pick(["Mul", "Div"]), [a, b.const(np.float32(0.5))], rows)[0]
    if b.chance(0.4):
        a = b.emit("Add", [a, b.random((1, 1, *rows[2:]))], rows)[0]
    y = b.emit("MatMul", [b.emit("Softmax", [a], rows, axis=-1)[0], v], four)[0]
    if heads is not None:
        y = b.emit("Transpose", [y], (heads[0], heads[1], heads[2], heads[3]), perm=[0, 2, 1, 3])[0]
        b.emit("Reshape", [y, b.ints([0, 0, s[2]])], s)


def _curve(b: Builder) -> None:
    """Swish, Gelu by tanh, and Mish by log, spelled out."""
    x, s = b.tensor()
    kind, num = b.rng.integers(3), lambda v: b.const(np.float32(v))
    if kind == 0:
        a = b.emit("Mul", [x, num(b.pick([1.0, 1.702]))], s)[0] if b.chance(0.5) else x
        b.emit("Mul", [x, b.emit("Sigmoid", [a], s)[0]], s)
    elif kind == 1:
        cube = b.emit("Mul", [b.emit("Pow", [x, num(3)], s)[0], num(0.044715)], s)[0]
        arg = b.emit("Mul", [b.emit("Add", [x, cube], s)[0], num((2 / np.pi) ** 0.5)], s)[0]
        gate = b.emit("Add", [b.emit("Tanh", [arg], s)[0], num(1)], s)[0]
        b.emit("Mul", [b.emit("Mul", [num(0.5), x], s)[0], gate], s)
    else:
        x, s = _given(b)
        soft = b.emit("Log", [b.emit("Add", [b.emit("Exp", [x], s)[0], num(1)], s)[0]], s)[0]
        b.emit("Mul", [x, b.emit("Tanh", [soft], s)[0]], s)


def _norms(b: Builder) -> None:
    x, s = b.tensor(4)
    kind = b.rng.integers(4)
    if kind == 0:
        b.emit("InstanceNormalization", [x, b.random(s[1]), b.random(s[1])], s, epsilon=0.1)
    elif kind == 1:
        b.emit("LRN", [x], s, size=3)
    elif kind == 2 and b.opset >= 17:
        b.emit("LayerNormalization", [x, b.random(s[-1]), b.random(s[-1])], s, epsilon=0.1)
    else:
        b.emit("PRelu", [x, b.random((s[1], 1, 1))], s)


def _space(b: Builder) -> None:
    x, s = b.tensor(4)
    kind = b.rng.integers(3)
    if kind == 0 and s[2] % 2 == s[3] % 2 == 0:
        b.emit("SpaceToDepth", [x], (s[0], 4 * s[1], s[2] // 2, s[3] // 2), blocksize=2)
    elif kind == 1 and s[1] % 4 == 0:
        b.emit("DepthToSpace", [x], (s[0], s[1] // 4, 2 * s[2], 2 * s[3]), blocksize=2)
    elif s[2] * s[3] <= 64:
        scale = b.pick([1.0, 2.0])
        attrs = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        scales = b.const(np.array([1, 1, scale, scale], np.float32))
        b.emit("Resize", [x, "", scales], (*s[:2], int(s[2] * scale), int(s[3] * scale)), **attrs)


def _select(b: Builder) -> None:
    """Positions found by value, in the inputs alone."""
    x, s = _given(b)
    kind = b.rng.integers(4)
    if kind == 0:
        best = b.side("ArgMax", [x], axis=1, keepdims=1)
        b.emit("Cast", [best], (s[0], 1, *s[2:]), to=int(TensorProto.FLOAT))
    elif kind == 1:
        values, where = b.name(), b.name()
        b.nodes.append(helper.make_node("TopK", [x, b.ints([2])], [values, where], axis=1))
        b.floats.append((values, (s[0], 2, *s[2:])))
        if b.chance(0.5):
            b.emit("Cast", [where], (s[0], 2, *s[2:]), to=int(TensorProto.FLOAT))
    elif kind == 2:
        tests = [b.side(b.pick(["Less", "Greater"]), [x, b.const(np.float32(0))]) for _ in range(2)]
        both = b.side(b.pick(["And", "Or", "Xor", "Equal"]), tests)
        b.emit("Cast", [both], s, to=int(TensorProto.FLOAT))
    else:
        scale, zero = b.const(np.float32(0.05)), b.const(np.uint8(128))
        b.emit("DequantizeLinear", [b.side("QuantizeLinear", [x, scale, zero]), scale, zero], s)


def _moves(b: Builder) -> None:
    x, s = b.tensor()
    if not s:
        return
    kind, axis = b.rng.integers(6), int(b.rng.integers(len(s)))
    if kind == 0:
        b.emit("CumSum", [x, b.const(np.array(axis, np.int64))], s)
    elif kind == 1:
        index = b.const(b.rng.integers(s[axis], size=s).astype(np.int64)) if np.prod(s) <= 512 else None
        if index is not None:
            b.emit("GatherElements", [x, index], s, axis=axis)
    elif kind == 2:
        b.emit("GatherND", [x, b.const(np.array([[0], [s[0] - 1]], np.int64))], (2, *s[1:]))
    elif kind == 3 and len(s) >= 2 and b.opset >= 14:
        b.emit("Trilu", [x], s, upper=int(b.rng.integers(2)))
    elif kind == 4 and len(s) >= 2:
        axes = "abcdef"[: len(s)]
        turned = axes[:-2] + axes[-1] + axes[-2]
        b.emit("Einsum", [x], (*s[:-2], s[-1], s[-2]), equation=f"{axes}->{turned}")
    else:
        index = b.const(np.zeros((1, *s[1:]), np.int64)) if np.prod(s) <= 512 else None
        if index is not None:
            b.emit("ScatterElements", [x, index, b.random((1, *s[1:]))], s, axis=0)


def _counted(b: Builder) -> None:
    """Integers made from shapes: Range, Mod, Size, NonZero, OneHot."""
    x, s = b.tensor()
    kind = b.rng.integers(4)
    if not s:
        return
    if kind == 0:
        last = b.side("Squeeze", [b.side("Shape", [x], **({"start": -1} if b.opset >= 15 else {}))])
        if b.opset < 15 and len(s) > 1:
            return
        steps = b.side("Range", [b.const(np.int64(0)), last, b.const(np.int64(1))])
        odd = b.side("Mod", [steps, b.ints([2])])
        b.emit("Add", [x, b.emit("Cast", [odd], (s[-1],), to=int(TensorProto.FLOAT))[0]], s)
    elif kind == 1:
        size = b.side("Cast", [b.side("Size", [x])], to=int(TensorProto.FLOAT))
        b.emit("Div", [x, size], s)
    elif kind == 2:
        hits = b.const(np.array([0.0, 1.0, 0.0, 2.0], np.float32))
        b.emit("Cast", [b.side("NonZero", [hits])], (1, 2), to=int(TensorProto.FLOAT))
    else:
        index = b.ints([0, min(1, s[-1] - 1)])
        hot = b.side("OneHot", [index, b.const(np.int64(s[-1])), b.const(np.array([0, 1], np.float32))])
        if len(s) >= 2:
            b.emit("MatMul", [x, b.side("Transpose", [hot], perm=[1, 0])], (*s[:-1], 2))


def _sums(b: Builder) -> None:
    x, s = b.tensor()
    if s:
        _axes(b, b.pick(SUMS), x, s)


def _loop(b: Builder) -> None:
    """A few turns of Loop that carry a tensor along, with a capture from outside and a scanned output."""
    x, s = b.tensor()
    if not s:
        return
    extra = b.random(s[-1])
    names = {k: b.name() for k in ("i", "go", "v", "on", "w", "t", "scan")}
    nodes = [
        helper.make_node("Identity", [names["go"]], [names["on"]]),
        helper.make_node("Add", [names["v"], extra], [names["t"]]),
        helper.make_node(b.pick(["Tanh", "Sigmoid", "Neg"]), [names["t"]], [names["w"]]),
        helper.make_node("Identity", [names["w"]], [names["scan"]]),
    ]
    info = helper.make_tensor_value_info
    inputs = [info(names["i"], TensorProto.INT64, []), info(names["go"], TensorProto.BOOL, [])]
    inputs.append(info(names["v"], TensorProto.FLOAT, None))
    outputs = [info(names["on"], TensorProto.BOOL, [])]
    outputs += [info(names[k], TensorProto.FLOAT, None) for k in ("w", "scan")]
    body = helper.make_graph(nodes, "body", inputs, outputs)
    turns, last, every = int(b.rng.integers(1, 4)), b.name(), b.name()
    feeds = [b.const(np.int64(turns)), b.const(np.array(True)), x]
    b.nodes.append(helper.make_node("Loop", feeds, [last, every], body=body))
    b.floats.append((last, s))
    if b.chance(0.5):
        b.floats.append((every, (turns, *s)))


def _sequence(b: Builder) -> None:
    x, s = b.tensor()
    if not s:
        return
    pair = b.side("SequenceConstruct", [x, x])
    if b.chance(0.5):
        b.emit("SequenceAt", [pair, b.const(np.int64(1))], s)
    else:
        b.emit("ConcatFromSequence", [pair], (2 * s[0], *s[1:]), axis=0)


def _recurrent(b: Builder) -> None:
    """An LSTM or GRU over a tensor of three axes: [steps, batch, features]."""
    x, s = b.tensor(3)
    if s[2] > 32 or s[0] > 12:
        return
    op, gates, hidden = b.pick([("LSTM", 4, 2), ("GRU", 3, 2), ("RNN", 1, 2)])
    w, r = (numpy_helper.from_array(b.rng.standard_normal((1, gates * hidden, n)).astype(np.float32), b.name())
            for n in (s[2], hidden))  # fmt: skip
    b.weights += [w, r]
    b.emit(op, [x, w.name, r.name], (s[0], 1, s[1], hidden), hidden_size=hidden)


def _sandwich(b: Builder) -> None:
    """Transpose, something that speaks of axes, and a Transpose back (or elsewhere)."""
    x, s = b.tensor()
    if len(s) < 2 or np.prod(s) > 4096:
        return
    perm = [int(k) for k in b.rng.permutation(len(s))]
    y, t = b.emit("Transpose", [x], tuple(s[k] for k in perm), perm=perm)
    kind = b.rng.integers(3)
    if kind == 0:
        pads = [int(b.rng.integers(3)) for _ in range(2 * len(t))]
        fill = [b.const(np.float32(1.5))] if b.chance(0.5) else []
        t = tuple(d + pads[k] + pads[k + len(t)] for k, d in enumerate(t))
        y, t = b.emit("Pad", [y, b.ints(pads), *fill], t)
    elif kind == 1:
        axis = int(b.rng.integers(len(t)))
        op, t = b.pick(["ReduceMax", "ReduceMean"]), tuple(1 if k == axis else d for k, d in enumerate(t))
        inputs, attrs = ([y], {"axes": [axis]}) if b.opset < 18 else ([y, b.ints([axis - len(t)])], {})
        y, t = b.emit(op, inputs, t, **attrs)
    else:
        y, t = b.emit("Mul", [y, b.random([d if b.chance(0.5) else 1 for d in t])], t)
    back = [perm.index(k) for k in range(len(s))] if b.chance(0.7) else perm
    b.emit("Transpose", [y], tuple(t[k] for k in back), perm=back)


MORE: list[Callable[[Builder], None]] = [
    _activation, _activation, _softmax, _rms, _attention, _curve, _norms, _space, _select, _moves, _moves, _counted,
    _sums, _loop, _sequence, _recurrent, _sandwich, _sandwich,
]  # fmt: skip
