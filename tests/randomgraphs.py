"""Random graphs over some seventy operators, for property tests: everything a rewriter may trip over, at small sizes.

Tensors are tracked with their true shapes. The first axis of the inputs is symbolic (`N`, which is 3 when run), so that
shape arithmetic, Reshapes that copy sizes and broadcasts meet unknown sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BATCH = 3
Shape = tuple[int, ...]

# fmt: off
UNARY = ["Relu", "Sigmoid", "Tanh", "Abs", "Neg", "Identity", "Softplus", "Erf", "HardSigmoid", "LeakyRelu", "Elu"]
# fmt: on
STEPPED = ["Floor", "Ceil", "Round", "Sign"]
REDUCE = ["ReduceMax", "ReduceMin", "ReduceMean", "ReduceProd", "ReduceL2"]


class Builder:
    """Grows one graph."""

    def __init__(self, rng: Any, opset: int = 17):
        self.rng = rng
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self.floats: list[tuple[str, Shape]] = []
        self.count = 0

    def pick(self, items: Any) -> Any:
        return items[int(self.rng.integers(len(items)))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def name(self) -> str:
        self.count += 1
        return f"t{self.count}"

    def tensor(self, rank: int | None = None) -> tuple[str, Shape]:
        """A float tensor made so far, mostly a recent one."""
        fit = [t for t in self.floats if rank is None or len(t[1]) == rank]
        if not fit:
            return self.floats[0] if rank is None else self.reshaped(self.floats[0], rank)
        return self.pick(fit[-4:]) if self.chance(0.7) else self.pick(fit)

    def reshaped(self, t: tuple[str, Shape], rank: int) -> tuple[str, Shape]:
        size, shape = int(np.prod(t[1])), [1] * rank
        shape[-1] = size
        return self.emit("Reshape", [t[0], self.ints(shape)], tuple(shape))

    def const(self, array: Any) -> str:
        """A constant: an initializer, or a Constant node."""
        name, array = self.name(), np.asarray(array)
        if self.chance(0.3):
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
        else:
            self.weights.append(numpy_helper.from_array(array, name))
        return name

    def ints(self, values: Any) -> str:
        return self.const(np.array(values, np.int64))

    def random(self, shape: Any) -> str:
        kind = self.rng.integers(6)
        if kind == 0:
            return self.const(np.zeros(shape, np.float32))
        if kind == 1:
            return self.const(np.ones(shape, np.float32))
        return self.const(self.rng.standard_normal(shape).astype(np.float32))

    def emit(self, op: str, inputs: list[str], shape: Shape, **attrs: Any) -> tuple[str, Shape]:
        out = self.name()
        self.nodes.append(helper.make_node(op, inputs, [out], **attrs))
        self.floats.append((out, tuple(shape)))
        return out, tuple(shape)

    def side(self, op: str, inputs: list[str], **attrs: Any) -> str:
        """A node whose output is no float tensor of the pool."""
        out = self.name()
        self.nodes.append(helper.make_node(op, inputs, [out], **attrs))
        return out


def _unary(b: Builder) -> None:
    x, s = b.tensor()
    b.emit(b.pick(UNARY), [x], s)


def _stepped(b: Builder) -> None:
    """Operators that jump, on inputs only: elsewhere float rounding would be enough to change their results."""
    x, s = b.floats[int(b.rng.integers(2))]
    x, _ = b.emit(b.pick(STEPPED), [x], s)
    b.emit(b.pick(STEPPED), [x], s)


def _binary(b: Builder) -> None:
    x, s = b.tensor()
    op = b.pick(["Add", "Mul", "Sub", "Max", "Min", "Div"])
    if b.chance(0.4):
        same = [t for t in b.floats if t[1] == s]
        b.emit("Add" if op == "Div" else op, [x, b.pick(same)[0]], s)
        return
    keep = int(b.rng.integers(len(s) + 1))
    shape = [d if b.chance(0.5) else 1 for d in s[keep:]]
    c = b.random(shape) if op != "Div" else b.const(np.asarray(b.rng.random(shape) + 0.5, np.float32))
    out = tuple(np.broadcast_shapes(s, tuple(shape)))
    pair = [x, c] if op == "Div" or b.chance(0.5) else [c, x]
    b.emit(op, pair, out)


def _pair(b: Builder) -> None:
    """There and back, or the same twice."""
    x, s = b.tensor()
    kind = b.rng.integers(5)
    if kind == 0 and len(s) > 1:
        perm = [int(k) for k in b.rng.permutation(len(s))]
        y, t = b.emit("Transpose", [x], tuple(s[k] for k in perm), perm=perm)
        if b.chance(0.6):
            y, t = b.emit(b.pick(UNARY), [y], t)
        back = [perm.index(k) for k in range(len(s))] if b.chance(0.7) else [int(k) for k in b.rng.permutation(len(s))]
        b.emit("Transpose", [y], tuple(t[k] for k in back), perm=back)
    elif kind == 1:
        y, _ = b.emit("Reshape", [x, b.ints([-1])], (int(np.prod(s)),))
        b.emit("Reshape", [y, b.ints(s)], s)
    elif kind == 2:
        y = b.side("Cast", [x], to=int(b.pick([TensorProto.DOUBLE, TensorProto.INT32, TensorProto.FLOAT16])))
        b.emit("Cast", [y], s, to=int(TensorProto.FLOAT))
    elif kind == 3:
        y, _ = b.emit("Neg", [x], s)
        b.emit(b.pick(["Neg", "Abs"]), [y], s)
    else:
        op = b.pick(UNARY)
        y, z = b.emit(op, [x], s), b.emit(op, [x], s)
        b.emit("Sub", [y[0], z[0]], s)


def _transpose(b: Builder) -> None:
    x, s = b.tensor()
    perm = [int(k) for k in b.rng.permutation(len(s))]
    b.emit("Transpose", [x], tuple(s[k] for k in perm), **({"perm": perm} if perm else {}))


def _reshape(b: Builder) -> None:
    x, s = b.tensor()
    if not s:
        return
    k = int(b.rng.integers(len(s)))
    merged = (*s[:k], int(np.prod(s[k:])))
    target = [(0 if b.chance(0.5) else d) for d in s[:k]] + [-1 if b.chance(0.7) else merged[-1]]
    b.emit("Reshape", [x, b.ints(target)], merged)


def _shape_reshape(b: Builder) -> None:
    """The flatten that exporters write: Shape, Gather, Unsqueeze, Concat, Reshape."""
    x, s = b.tensor()
    if len(s) < 2:
        return
    shape = b.side("Shape", [x])
    first = b.side("Gather", [shape, b.const(np.array(0))], axis=0)
    first = b.side("Unsqueeze", [first, b.ints([0])])
    if b.chance(0.5):
        target, out = b.side("Concat", [first, b.ints([-1])], axis=0), (s[0], int(np.prod(s[1:])))
    else:
        tail = b.side("Slice", [shape, b.ints([1]), b.ints([2])])
        rest = int(np.prod(s[2:]))
        target, out = b.side("Concat", [tail, first, b.ints([rest])], axis=0), (s[1], s[0], rest)
    b.emit("Reshape", [x, target], out)


def _expand(b: Builder) -> None:
    x, s = b.tensor()
    if not s:
        return
    if b.chance(0.5):
        b.emit("Expand", [x, b.side("Shape", [x])], s)
    else:
        like = b.side("ConstantOfShape", [b.side("Shape", [x])])
        b.emit("Add", [x, like], s)


def _squeeze(b: Builder) -> None:
    x, s = b.tensor()
    axis = int(b.rng.integers(len(s) + 1))
    y, t = b.emit("Unsqueeze", [x, b.ints([axis])], (*s[:axis], 1, *s[axis:]))
    if b.chance(0.6):
        ones = [k for k, d in enumerate(t) if d == 1 and k > 0] or [axis]
        k = b.pick(ones)
        b.emit("Squeeze", [y, b.ints([k if b.chance(0.5) else k - len(t)])], t[:k] + t[k + 1 :])


def _slice(b: Builder) -> None:
    x, s = b.tensor()
    if not s:
        return
    axis = int(b.rng.integers(len(s)))
    start, step = int(b.rng.integers(s[axis])), b.pick([1, 1, 2])
    if b.chance(0.3):
        start, step = 0, 1
    end = b.pick([2**63 - 1, s[axis], max(s[axis] - 1, start + 1)])
    size = len(range(s[axis])[start : min(end, s[axis]) : step])
    y, t = b.emit(
        "Slice", [x, b.ints([start]), b.ints([end]), b.ints([axis]), b.ints([step])], (*s[:axis], size, *s[axis + 1 :])
    )
    if b.chance(0.4) and len(t) > 1:
        other = (axis + 1) % len(t)
        b.emit(
            "Slice",
            [y, b.ints([0]), b.ints([1]), b.ints([other])],
            tuple(1 if k == other else d for k, d in enumerate(t)),
        )


def _gather(b: Builder) -> None:
    x, s = b.tensor()
    if not s:
        return
    axis = int(b.rng.integers(len(s)))
    if b.chance(0.5):
        b.emit("Gather", [x, b.const(np.array(int(b.rng.integers(s[axis]))))], s[:axis] + s[axis + 1 :], axis=axis)
    else:
        index = np.arange(s[axis]) if b.chance(0.4) else b.rng.integers(s[axis], size=2)
        b.emit("Gather", [x, b.ints(index)], (*s[:axis], len(index), *s[axis + 1 :]), axis=axis)


def _concat(b: Builder) -> None:
    _, s = b.tensor()
    if not s:
        return
    axis = int(b.rng.integers(len(s)))
    parts = [t for t in b.floats if len(t[1]) == len(s) and t[1][:axis] + t[1][axis + 1 :] == s[:axis] + s[axis + 1 :]]
    chosen = [b.pick(parts) for _ in range(int(b.rng.integers(1, 4)))]
    if sum(p[1][axis] for p in chosen) > 24:
        return
    shape = (*s[:axis], sum(p[1][axis] for p in chosen), *s[axis + 1 :])
    b.emit("Concat", [p[0] for p in chosen], shape, axis=axis if b.chance(0.5) else axis - len(s))


def _split(b: Builder) -> None:
    x, s = b.tensor()
    axes = [k for k, d in enumerate(s) if d % 2 == 0]
    if not axes:
        return
    axis = b.pick(axes)
    one, two = b.name(), b.name()
    half = (*s[:axis], s[axis] // 2, *s[axis + 1 :])
    b.nodes.append(helper.make_node("Split", [x, b.ints([s[axis] // 2] * 2)], [one, two], axis=axis))
    b.floats += [(one, half), (two, half)]
    if b.chance(0.5):
        b.emit("Concat", [one, two] if b.chance(0.7) else [two, one], s, axis=axis)


def _image(b: Builder) -> tuple[str, Shape]:
    return b.tensor(4)


def _conv(b: Builder) -> None:
    x, s = _image(b)
    if min(s[2:]) < 1 or s[1] > 16:
        return
    group = b.pick([g for g in (1, 2, s[1]) if s[1] % g == 0])
    out, kernel = group * int(b.rng.integers(1, 3)), b.pick([1, 3])
    if kernel > min(s[2:]):
        kernel = 1
    if b.chance(0.3):
        p = [0, 0, 1, 1, 0, 0, 1, 0]
        x, s = b.emit("Pad", [x, b.ints(p)], (s[0], s[1], s[2] + 2, s[3] + 1))
    pad = int(b.rng.integers(2)) if kernel > 1 else 0
    args = [x, b.random((out, s[1] // group, kernel, kernel))] + ([b.random(out)] if b.chance(0.5) else [])
    size = tuple(d + 2 * pad - kernel + 1 for d in s[2:])
    y, t = b.emit("Conv", args, (s[0], out, *size), group=group, pads=[pad] * 4)
    for _ in range(int(b.rng.integers(3))):
        y, t = _norm(b, y, t)


def _norm(b: Builder, x: str, s: Shape) -> tuple[str, Shape]:
    if b.chance(0.5):
        rest = [b.random(s[1]) for _ in range(3)]
        variance = b.const((b.rng.random(s[1]) + 0.5).astype(np.float32))
        return b.emit("BatchNormalization", [x, *rest, variance], s)
    op = b.pick(["Mul", "Add", "Sub"])
    c = b.random((s[1], *[1] * (len(s) - 2)))
    return b.emit(op, [x, c] if b.chance(0.5) else [c, x], s)


def _bn(b: Builder) -> None:
    x, s = b.tensor()
    if len(s) >= 2:
        _norm(b, x, s)


def _transposed_conv(b: Builder) -> None:
    x, s = _image(b)
    if s[1] > 16:
        return
    group = b.pick([g for g in (1, 2) if s[1] % g == 0])
    y, t = b.emit("ConvTranspose", [x, b.random((s[1], 2, 2, 2))], (s[0], 2 * group, s[2] + 1, s[3] + 1), group=group)
    if b.chance(0.7):
        _norm(b, y, t)


def _pool(b: Builder) -> None:
    x, s = _image(b)
    op = b.pick(["MaxPool", "AveragePool"])
    if b.chance(0.4):
        if b.chance(0.5):
            x, s = b.emit("Relu", [x], s)
        x, s = b.emit("Pad", [x, b.ints([0, 0, 1, 1, 0, 0, 1, 1])], (s[0], s[1], s[2] + 2, s[3] + 2))
    k = b.pick([1, 2]) if min(s[2:]) >= 2 else 1
    if b.chance(0.3):
        b.emit(b.pick(["GlobalAveragePool", "GlobalMaxPool"]), [x], (s[0], s[1], 1, 1))
        return
    b.emit(op, [x], (s[0], s[1], s[2] - k + 1, s[3] - k + 1), kernel_shape=[k, k], strides=[1, 1])


def _matmul(b: Builder) -> None:
    x, s = b.tensor()
    if len(s) < 2 or s[-1] > 32:
        return
    n = int(b.rng.integers(1, 5))
    if b.chance(0.3):
        x, s = _norm(b, x, s) if len(s) == 2 else b.emit("Mul", [x, b.random(s[-1])], s)
    y, t = b.emit("MatMul", [x, b.random((s[-1], n))], (*s[:-1], n))
    if b.chance(0.7):
        b.emit(b.pick(["Add", "Mul", "Sub"]), [y, b.random(n)], t)


def _gemm(b: Builder) -> None:
    x, s = b.tensor(2)
    if s[1] > 64:
        return
    n, turned = int(b.rng.integers(1, 5)), int(b.rng.integers(2))
    w = b.random((n, s[1]) if turned else (s[1], n))
    y, t = b.emit("Gemm", [x, w] + ([b.random(n)] if b.chance(0.6) else []), (s[0], n), transB=turned)
    if b.chance(0.6):
        _norm(b, y, t)


def _reduce(b: Builder) -> None:
    x, s = b.tensor()
    if not s:
        return
    axes = sorted({int(k) for k in b.rng.integers(len(s), size=int(b.rng.integers(1, 3)))})
    keep = int(b.rng.integers(2))
    shape = tuple(1 if k in axes else d for k, d in enumerate(s))
    shape = shape if keep else tuple(d for k, d in enumerate(s) if k not in axes)
    if b.chance(0.3):
        b.emit("ReduceSum", [x, b.ints(axes)], shape, keepdims=keep)
    else:
        op = b.pick(REDUCE)
        attrs = {"axes": axes} if b.opset < 18 else {}
        b.emit(op, [x] if attrs else [x, b.ints(axes)], shape, keepdims=keep, **attrs)


def _clip(b: Builder) -> None:
    x, s = b.tensor()
    low, high = sorted(float(v) for v in b.rng.standard_normal(2) * 2)
    if b.chance(0.5):
        x, s = b.emit("Relu", [x], s)
    ends = [b.const(np.float32(low)) if b.chance(0.8) else "", b.const(np.float32(high)) if b.chance(0.8) else ""]
    y, _ = b.emit("Clip", [x, *ends], s)
    if b.chance(0.4):
        b.emit("Relu", [y], s)


def _spelled(b: Builder) -> None:
    """Activations and normalizations spelled out."""
    x, s = b.tensor()
    kind, num = b.rng.integers(6), lambda v: b.const(np.float32(v))
    if kind == 0:
        y = b.emit("Clip", [b.emit("Add", [x, num(3)], s)[0], num(0), num(6)], s)[0]
        b.emit("Mul", [x, b.emit("Div", [y, num(6)], s)[0]], s)
    elif kind == 1:
        y = b.emit("Add", [b.emit("Erf", [b.emit("Div", [x, num(2**0.5)], s)[0]], s)[0], num(1)], s)[0]
        b.emit("Mul", [b.emit("Mul", [x, y], s)[0], num(0.5)], s)
    elif kind == 2:
        b.emit("Mul", [x, b.emit("Tanh", [b.emit("Softplus", [x], s)[0]], s)[0]], s)
    elif kind == 3:
        y = b.emit("Exp", [b.emit("Neg", [b.emit("Tanh", [x], s)[0]], s)[0]], s)[0]
        b.emit("Div", [num(1), b.emit("Add", [y, num(1)], s)[0]], s)
    elif len(s) >= 2 and s[-1] > 1:
        mean = _mean(b, x, s)
        d = b.emit("Sub", [x, mean], s)[0]
        v = _mean(b, b.emit("Mul", [d, d], s)[0], s)
        r = b.emit("Sqrt", [b.emit("Add", [v, num(0.01)], (*s[:-1], 1))[0]], (*s[:-1], 1))[0]
        y = b.emit("Div", [d, r], s)[0]
        if b.chance(0.7):
            b.emit("Add", [b.emit("Mul", [y, b.random(s[-1])], s)[0], b.random(s[-1])], s)


def _mean(b: Builder, x: str, s: Shape) -> str:
    attrs = {"axes": [-1]} if b.opset < 18 else {}
    return b.emit("ReduceMean", [x] if attrs else [x, b.ints([-1])], (*s[:-1], 1), **attrs)[0]


def _where(b: Builder) -> None:
    x, s = b.tensor()
    same = [t for t in b.floats if t[1] == s]
    if b.chance(0.4):
        test = b.const(np.full([1] * len(s), b.chance(0.5)))
    else:
        test = b.side(b.pick(["Less", "Greater"]), [x, b.const(np.float32(0))])
        test = b.side("Not", [b.side("Not", [test])]) if b.chance(0.3) else test
    b.emit("Where", [test, x, b.pick(same)[0]], s)


def _branch(b: Builder) -> None:
    """If, sometimes with a condition that is known."""
    x, s = b.tensor()
    known = b.chance(0.5)
    test = (
        b.const(np.array(b.chance(0.5)))
        if known
        else b.side(
            "Less",
            [b.side("ReduceSum", ["v"], keepdims=0), b.const(np.float32(0))],  # far from 0, unlike what is computed
        )
    )
    graphs = []
    for _ in range(2):
        mid, out, c = b.name(), b.name(), b.name()
        value = numpy_helper.from_array(b.rng.standard_normal(s[-1:]).astype(np.float32), c)
        nodes = [helper.make_node(b.pick(UNARY), [x], [mid]), helper.make_node(b.pick(["Add", "Mul"]), [mid, c], [out])]
        info = helper.make_tensor_value_info(out, TensorProto.FLOAT, None)
        graphs.append(helper.make_graph(nodes, "branch", [], [info], [value]))
    b.emit("If", [test], s, then_branch=graphs[0], else_branch=graphs[1])


def _misc(b: Builder) -> None:
    x, s = b.tensor()
    if not s:
        return
    kind = b.rng.integers(7)
    if kind == 0:
        b.emit("Softmax", [x], s, axis=int(b.rng.integers(len(s))))
    elif kind == 1:
        b.emit("Flatten", [x], (s[0], int(np.prod(s[1:]))))
    elif kind == 2:
        b.emit("Tile", [x, b.ints([1] * len(s))], s)
    elif kind == 3:
        b.emit("Dropout", [x], s)
    elif kind == 4:
        b.emit("Pow", [x, b.const(np.float32(b.pick([1, 2])))], s)
    elif kind == 5:
        b.emit("Pad", [x, b.ints([0] * (2 * len(s)))], s)
    else:
        b.emit("Sum", [x] * int(b.rng.integers(1, 3)), s)


STEPS: list[Callable[[Builder], None]] = [
    _unary, _unary, _stepped, _binary, _binary, _pair, _pair, _transpose, _reshape, _shape_reshape, _expand, _squeeze,
    _slice, _gather, _concat, _split, _conv, _conv, _bn, _transposed_conv, _pool, _matmul, _gemm, _reduce, _clip,
    _spelled, _where, _branch, _misc, _misc,
]  # fmt: skip


def build(seed: int, opset: int = 17) -> onnx.ModelProto:
    """One random model; run it with the feeds of `feeds(seed)`."""
    b = Builder(np.random.default_rng(seed), opset)
    return grow(b, 5, 45, STEPS)


def grow(b: Builder, least: int, most: int, steps: list[Callable[[Builder], None]]) -> onnx.ModelProto:
    """A model of `least` to about `most` nodes; its outputs are what nobody reads, and a few more."""
    inputs = [("x", (BATCH, 4, 6, 5)), ("v", (BATCH, 8))]
    b.floats += inputs
    wanted = int(b.rng.integers(least, most))
    while len(b.nodes) < wanted:
        b.pick(steps)(b)
    made = b.floats[2:]
    read = {name for node in b.nodes for name in node.input}
    leaves = [t for t in made if t[0] not in read]
    ends = {t[0]: t for t in leaves} | {t[0]: t for t in (b.pick(made) for _ in range(int(b.rng.integers(3))))}
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", *s[1:]]) for n, s in inputs]
    outs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * len(s)) for n, s in ends.values()]
    graph = helper.make_graph(b.nodes, "random", infos, outs, b.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", b.opset)], ir_version=10)


def feeds(seed: int) -> dict[str, np.ndarray]:
    """Inputs of `build(seed)`."""
    rng = np.random.default_rng(seed + 1)
    return {
        "x": rng.standard_normal((BATCH, 4, 6, 5)).astype(np.float32),
        "v": rng.standard_normal((BATCH, 8)).astype(np.float32),
    }
