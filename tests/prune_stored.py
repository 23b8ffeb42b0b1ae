"""Networks whose weights are stored in another form than they are used in: few bits, half precision, turned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from prune_nets import Net

from onnxslim_opt import ir

Store = Callable[..., str]


class Stored(Net):
    """`stored` makes a weight as the form says: "int8" (a scale an output channel), "half", "scaled" or "turned"."""

    def __init__(self, form: str, opset: int = 17, **inputs: list[Any]):
        super().__init__(opset=opset, **inputs)
        self.form = form

    def stored(self, *shape: int, out: int = 0) -> str:
        """A weight of this shape; out: the axis of its output channels."""
        name = self.weight(*shape)
        values = self.weights[name]
        if self.form == "int8":
            scale = self.weight(shape[out])
            self.weights[name] = np.clip(np.round(values * 60), -127, 127).astype(np.int8)
            self.weights[scale] = np.abs(self.weights[scale]) / 100 + np.float32(0.01)
            return self.op("DequantizeLinear", name, scale, axis=out)
        if self.form == "turned":
            perm = [*range(1, len(shape)), 0]
            self.weights[name] = np.ascontiguousarray(np.moveaxis(values, -1, 0))
            return self.op("Transpose", name, perm=perm)
        self.weights[name] = values.astype(np.float16)
        cast = self.op("Cast", name, to=1)
        each = [n if a == out else 1 for a, n in enumerate(shape)]
        return self.op("Mul", cast, self.weight(*each)) if self.form == "scaled" else cast

    def bias(self, n: int) -> str:
        name = self.weight(n)
        if self.form not in ("half", "scaled"):
            return name
        self.weights[name] = self.weights[name].astype(np.float16)
        return self.op("Cast", name, to=1)

    def linear(self, x: str, cin: int, cout: int) -> str:
        return self.op("Add", self.op("MatMul", x, self.stored(cin, cout, out=1)), self.bias(cout))


def images(form: str) -> ir.Model:
    """Convolutions: plain, grouped, depthwise, transposed; a Gemm."""
    n = Stored(form, x=["N", 3, 6, 6])

    def conv(x: str, cin: int, cout: int, group: int = 1) -> str:
        return n.op("Conv", x, n.stored(cout, cin // group, 3, 3), n.bias(cout), pads=[1] * 4, group=group)

    a = n.op("Tanh", conv("x", 3, 8))
    a = n.op("Tanh", conv(a, 8, 8, group=8))
    a = n.op("Tanh", conv(a, 8, 12, group=4))
    a = n.op("Tanh", n.op("ConvTranspose", a, n.stored(12, 7, 2, 2, out=1), n.bias(7), strides=[2, 2]))
    flat = n.op("Flatten", n.op("GlobalAveragePool", conv(a, 7, 6)))
    n.op("Gemm", n.op("Tanh", n.op("Gemm", flat, n.stored(9, 6), n.bias(9), transB=1)), n.stored(9, 5, out=1))
    return n.model()


def sequence(form: str) -> ir.Model:
    """A table of embeddings, heads of attention, an Einsum, a linear layer."""
    n = Stored(form, x=[2, 5])
    most = n.weight()
    n.weights[most] = np.float32(19)
    h = n.op("Gather", n.stored(20, 12, out=1), n.op("Cast", n.op("Mul", n.op("Sigmoid", "x"), most), to=7), axis=0)
    q, k, v = (n.op("Reshape", n.linear(h, 12, 12), n.ints(0, 0, 3, 4)) for _ in range(3))
    q, v = (n.op("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, v))
    scores = n.op("MatMul", q, n.op("Transpose", k, perm=[0, 2, 3, 1]))
    mixed = n.op("Transpose", n.op("MatMul", n.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    h = n.op("Add", h, n.linear(n.op("Reshape", mixed, n.ints(0, 0, 12)), 12, 12))
    h = n.op("Tanh", n.op("Einsum", h, n.stored(12, 10, out=1), equation="bsd,de->bse"))
    n.linear(h, 10, 4)
    return n.model()


def recurrent(form: str, kind: str) -> ir.Model:
    """A layer in both directions, its weights stored so, behind a linear layer and before one."""
    n = Stored(form, x=[7, 2, 3])
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    a = n.op("Tanh", n.linear("x", 3, 5))
    w, r = n.stored(2, gates * 6, 5, out=1), n.stored(2, gates * 6, 6, out=1)
    a = n.op(kind, a, w, r, n.weight(2, 2 * gates * 6), hidden_size=6, direction="bidirectional")
    n.linear(n.op("Reshape", n.op("Transpose", a, perm=[0, 2, 1, 3]), n.ints(7, 2, 12)), 12, 4)
    return n.model()


def reshaped(form: str) -> ir.Model:
    """Weights that are flat in the file, or have fewer axes."""
    n = Stored(form, x=["N", 3, 6, 6])
    weight = n.op("Reshape", n.stored(8, 27), n.ints(8, 3, 3, 3))
    a = n.op("Tanh", n.op("Conv", "x", weight, n.bias(8), pads=[1] * 4))
    gate = n.op("Reshape", n.weight(8), n.ints(1, 8, 1, 1))
    a = n.op("Mul", a, n.op("Sigmoid", gate))
    weight = n.op("Unsqueeze", n.stored(6, 8), n.ints(2, 3))
    return n.head(n.op("Conv", a, weight), 6)


FORMS = ("int8", "half", "scaled", "turned")
STORED: dict[str, tuple[Any, tuple[int, ...], int]] = {  # name: (network, input, how many units may go)
    **{f"images_{f}": (lambda f=f: images(f), (2, 3, 6, 6), 31) for f in FORMS},
    **{f"sequence_{f}": (lambda f=f: sequence(f), (2, 5), 33) for f in FORMS},
    **{f"{k}_{f}": (lambda f=f, k=k: recurrent(f, k), (7, 2, 3), 11) for f in FORMS for k in ("LSTM", "GRU", "RNN")},
    **{f"reshaped_{f}": (lambda f=f: reshaped(f), (2, 3, 6, 6), 14) for f in FORMS},
}
