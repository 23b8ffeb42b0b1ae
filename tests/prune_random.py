"""Random networks for the twin tests of pruning: blocks of many kinds, one after the other, joined as chance has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from prune_nets import Net

from onnxslim_opt import ir


class Grower:
    """Grows a network of `[N, channels, 8, 8]` tensors; `tensors` are those made so far, with their channels."""

    def __init__(self, seed: int, opset: int = 17):
        self.rng = np.random.default_rng([seed, opset])
        self.net = Net(seed, opset, x=["N", 3, 8, 8])
        self.tensors = [(self.net.conv("x", 3, 12), 12)]

    def pick(self, *options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def some(self) -> tuple[str, int]:
        """A tensor made lately."""
        return self.pick(*self.tensors[-3:])

    def active(self, x: str) -> str:
        n, kind = self.net, self.pick("Relu", "Tanh", "SiLU", "LeakyRelu", "none")
        if kind == "SiLU":
            return n.op("Mul", x, n.op("Sigmoid", x))
        return x if kind == "none" else n.op(kind, x)

    def grow(self, blocks: int) -> ir.Model:
        """`blocks` random blocks and a head."""
        for _ in range(blocks):
            self.tensors.append(self.pick(*BLOCKS)(self, *self.some()))
        parts = [self.net.op("GlobalAveragePool", self.active(t)) for t, _ in self.tensors[-2:]]
        self.net.op(
            "Gemm",
            self.net.op("Flatten", self.net.op("Concat", *parts, axis=1)),
            self.net.weight(5, sum(c for _, c in self.tensors[-2:])),
            self.net.weight(5),
            transB=1,
        )
        return self.net.model()


def dense(g: Grower, x: str, c: int) -> tuple[str, int]:
    out = g.pick(6, 8, 12, 16)
    return g.active(g.net.conv(x, c, out, k=g.pick(1, 3))), out


def residual(g: Grower, x: str, c: int) -> tuple[str, int]:
    n, middle = g.net, g.pick(4, 6)
    y = n.conv(g.active(n.norm(n.conv(x, c, middle), middle)), middle, c)
    return g.active(n.op(g.pick("Add", "Mul", "Sub", "Max"), *((x, y) if g.pick(0, 1) else (y, x)))), c


def depthwise(g: Grower, x: str, c: int) -> tuple[str, int]:
    times = g.pick(1, 2)
    return g.active(g.net.conv(x, c, times * c, group=c)), times * c


def grouped(g: Grower, x: str, c: int) -> tuple[str, int]:
    group = g.pick(*[k for k in (2, 3, 4) if c % k == 0] or [1])
    out = group * g.pick(2, 3, 4)
    return g.active(g.net.conv(x, c, out, k=g.pick(1, 3), group=group)), out


def joined(g: Grower, x: str, c: int) -> tuple[str, int]:
    other, d = g.some()
    parts = [(x, c), (other, d), dense(g, x, c)][: g.pick(2, 3)]
    return g.net.op("Concat", *(t for t, _ in parts), axis=1), sum(k for _, k in parts)


def shuffled(g: Grower, x: str, c: int) -> tuple[str, int]:
    n, groups = g.net, 2 if c % 2 == 0 else 1
    y = n.op("Reshape", x, n.ints(-1, groups, c // groups, 8, 8))
    return n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1, 3, 4]), n.ints(-1, c, 8, 8)), c


def sliced(g: Grower, x: str, c: int) -> tuple[str, int]:
    n, start = g.net, g.pick(0, 1, 2)
    stop, step = g.pick(c, c - 1), g.pick(1, 1, 2)
    return n.op("Slice", x, n.ints(start), n.ints(stop), n.ints(1), n.ints(step)), len(range(start, stop, step))


def halves(g: Grower, x: str, c: int) -> tuple[str, int]:
    if c % 2:
        return dense(g, x, c)
    a, b = g.net.op("Split", x, g.net.ints(c // 2, c // 2), outputs=2, axis=1)
    return g.pick(
        lambda: (g.net.op("Mul", a, g.net.op("Sigmoid", b)), c // 2),
        lambda: (g.net.op("Concat", g.net.op("Tanh", b), g.net.conv(a, c // 2, 5), axis=1), c // 2 + 5),
    )()


def gated(g: Grower, x: str, c: int) -> tuple[str, int]:
    n = g.net
    pooled = n.op("GlobalAveragePool", x) if g.pick(0, 1) else n.op("ReduceMean", x, axes=[2, 3])
    s = n.conv(n.op("Relu", n.conv(pooled, c, 4, k=1)), 4, c, k=1)
    return n.op("Mul", x, n.op(g.pick("Sigmoid", "HardSigmoid"), s)), c


def last(g: Grower, x: str, c: int) -> tuple[str, int]:
    """Channels last, a linear layer, and back."""
    n, out = g.net, g.pick(6, 9)
    y = n.op("Transpose", x, perm=[0, 2, 3, 1])
    y = g.active(n.linear(n.op("Mul", y, n.weight(c)), c, out))
    return n.op("Transpose", y, perm=[0, 3, 1, 2]), out


def flat(g: Grower, x: str, c: int) -> tuple[str, int]:
    """One spatial axis, a 1-D convolution, and back."""
    n, out = g.net, g.pick(6, 10)
    y = n.op("Reshape", x, n.ints(0, c, -1))
    y = n.op("Conv", y, n.weight(out, c, 3), n.weight(out), pads=[1, 1], kernel_shape=[3])
    return n.op("Reshape", g.active(y), n.ints(-1, out, 8, 8)), out


def attention(g: Grower, x: str, c: int) -> tuple[str, int]:
    """Two heads over the rows of the image, the width of a head free."""
    n, width = g.net, 4
    y = n.op("Transpose", n.op("Reshape", x, n.ints(0, c, 64)), perm=[0, 2, 1])
    q, k, v = (n.op("Reshape", n.linear(y, c, 2 * width), n.ints(0, 64, 2, width)) for _ in range(3))
    scores = n.op("MatMul", n.op("Transpose", q, perm=[0, 2, 1, 3]), n.op("Transpose", k, perm=[0, 2, 3, 1]))
    mixed = n.op("MatMul", n.op("Softmax", scores, axis=-1), n.op("Transpose", v, perm=[0, 2, 1, 3]))
    mixed = n.op("Reshape", n.op("Transpose", mixed, perm=[0, 2, 1, 3]), n.ints(0, 64, 2 * width))
    y = n.op("Add", y, n.linear(mixed, 2 * width, c)) if g.pick(0, 1) else n.linear(mixed, 2 * width, c)
    return n.op("Reshape", n.op("Transpose", y, perm=[0, 2, 1]), n.ints(0, c, 8, 8)), c


def padded(g: Grower, x: str, c: int) -> tuple[str, int]:
    n = g.net
    y = n.op("Pad", x, n.ints(0, 2, 0, 0, 0, 1, 0, 0))
    other = n.conv(x, c, c + 3)
    return n.op("Add", y, other), c + 3


def scaled(g: Grower, x: str, c: int) -> tuple[str, int]:
    n = g.net
    y = g.pick(
        lambda: n.op("Add", n.op("Mul", x, n.weight(1, c, 1, 1)), n.weight(c, 1, 1)),
        lambda: n.op("PRelu", x, n.weight(c, 1, 1)),
        lambda: n.norm(x, c),
        lambda: n.op("InstanceNormalization", x, n.weight(c), n.weight(c)),
        lambda: n.op("Clip", x, n.weight(), ""),
    )()
    return y, c


def pooled(g: Grower, x: str, c: int) -> tuple[str, int]:
    n, kind = g.net, g.pick("MaxPool", "AveragePool")
    return n.op(kind, x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1]), c


def spread(g: Grower, x: str, c: int) -> tuple[str, int]:
    """Down and up again: a strided convolution and a transposed one, grouped or not."""
    n, out = g.net, 8
    y = g.active(n.conv(x, c, 8, strides=[2, 2]))
    group = g.pick(1, 2, 8)
    return g.active(
        n.op("ConvTranspose", y, n.weight(8, out // group, 2, 2), n.weight(out), strides=[2, 2], group=group)
    ), out


BLOCKS: tuple[Callable[[Grower, str, int], tuple[str, int]], ...] = (
    dense, dense, residual, residual, depthwise, grouped, joined, shuffled, sliced, halves, gated, last, flat,
    attention, padded, scaled, pooled, spread,
)  # fmt: skip
