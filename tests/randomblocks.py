"""Blocks of networks for `randomgraphs`: heads of a product and their scale, residuals and norms, rolls, expansions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from randomgraphs import Builder


def _heads(b: Builder) -> None:
    """A product taken apart into heads, or into queries, keys and values, of which some are scaled."""
    x, s = b.tensor(3)
    parts, heads = int(b.rng.integers(1, 4)), 2
    width = 2 * heads * parts
    if s[2] > 64:
        return
    y = b.emit("MatMul", [x, b.random((s[2], width))], (*s[:2], width))[0]
    if b.chance(0.6):
        y = b.emit("Add", [y, b.random(width)], (*s[:2], width))[0]
    apart = (s[0], s[1], parts, heads, 2)
    y = b.emit("Reshape", [y, b.ints([0 if b.chance(0.5) else -1, *apart[1:]])], apart)[0]
    y = b.emit("Transpose", [y], (parts, s[0], heads, s[1], 2), perm=[2, 0, 3, 1, 4])[0]
    one = (s[0], heads, s[1], 2)
    found = [b.emit("Gather", [y, b.const(np.int64(k))], one, axis=0)[0] for k in range(parts)]
    scaled = b.emit(b.pick(["Mul", "Div"]), [found[0], b.const(np.float32(0.3))], one)[0]
    if parts > 1 and s[1] <= 16:
        turned = b.emit("Transpose", [found[1]], (s[0], heads, 2, s[1]), perm=[0, 1, 3, 2])[0]
        scores = b.emit("MatMul", [scaled, turned], (s[0], heads, s[1], s[1]))[0]
        b.emit("Mul", [scores, b.const(np.float32(0.25))], (s[0], heads, s[1], s[1]))


def _residual(b: Builder) -> None:
    """Sums of three, of which a LayerNormalization may be the only reader."""
    x, s = b.tensor()
    if not s or s[-1] > 64:
        return
    y = b.emit("MatMul", [x, b.random((s[-1], s[-1]))], s)[0] if len(s) > 1 else x
    y = b.emit("Add", [y, b.random(s[-1])], s)[0]
    y = b.emit("Add", [x, y] if b.chance(0.5) else [y, x], s)[0]
    if b.opset >= 17 and b.chance(0.5):
        b.emit("LayerNormalization", [y, b.random(s[-1]), b.random(s[-1])], s, epsilon=0.1)


def _rolled(b: Builder) -> None:
    """torch.roll, as exporters write it."""
    x, s = b.tensor()
    axis = int(b.rng.integers(len(s))) if s else 0
    if not s or s[axis] < 2:
        return
    cut, axes = b.ints([int(b.rng.integers(1, s[axis]))]), b.ints([axis])
    end = b.ints([np.iinfo(np.int64).max])
    parts = [b.side("Slice", [x, cut, end, axes]), b.side("Slice", [x, b.ints([0]), cut, axes])]
    b.emit("Concat", parts, s, axis=axis)


def _expanded(b: Builder) -> None:
    """A tensor of ones and full sizes, repeated to the shape of another that it meets."""
    x, s = b.tensor()
    if not s:
        return
    y = b.emit("ReduceMax", [x], (*s[:-1], 1), axes=[-1]) if b.opset < 18 else None
    small = y[0] if y is not None else b.random([d if b.chance(0.5) else 1 for d in s])
    wide = b.side("Expand", [small, b.side("Shape", [x])])
    if b.chance(0.4):
        wide = b.side("Tanh", [wide])
    b.emit(b.pick(["Add", "Mul", "Max"]), [x, wide], s)


def _repeated(b: Builder) -> None:
    """Every element, or the whole, several times along the last axes, by Expand or Tile between Reshapes."""
    x, s = b.tensor(3)
    times = [int(b.rng.integers(1, 4)) for _ in s[1:]]
    if np.prod(s) * np.prod(times) > 4096 or b.opset < 13:
        return
    after = b.chance(0.7)
    repeated = [k for k, t in enumerate(times) if t > 1]
    ones, many, tiled = [0], [1], [1]  # the batch stays as it is
    for k, (size, t) in enumerate(zip(s[1:], times)):
        pair = [(size, size, 1), (1, t, t)] if k in repeated else [(size, size, 1)]
        for one, wide, tile in pair if after else pair[::-1]:
            ones.append(one)
            many.append(wide)
            tiled.append(tile)
    y = b.side("Reshape", [x, b.ints(ones)])
    y = b.side("Expand", [y, b.ints(many)]) if b.chance(0.5) else b.side("Tile", [y, b.ints(tiled)])
    end = [d * t for d, t in zip(s[1:], times)]
    b.emit("Reshape", [y, b.ints([0, *end])], (s[0], *end))


def _windows(b: Builder) -> None:
    """Windows of two along an axis that is padded to fit, all of it computed from the shape of what is there."""
    x, s = b.tensor(3)
    if s[1] > 64:
        return
    full = s[1] + s[1] % 2
    two, zero, one = b.const(np.int64(2)), b.ints([0]), b.const(np.int64(1))
    if b.opset >= 13:
        size = b.side("Gather", [b.side("Shape", [x]), one])
        over = b.side("Unsqueeze", [b.side("Mod", [size, two]), zero])
        y = b.side("Pad", [x, b.side("Concat", [zero, zero, zero, zero, over, zero], axis=0)])
        half = b.side("Div", [b.side("Gather", [b.side("Shape", [y]), one]), two])
        target = [b.ints([s[0]]), b.side("Unsqueeze", [half, zero]), b.ints([2]), b.ints([s[2]])]
        y = b.side("Reshape", [y, b.side("Concat", target, axis=0)])
        b.emit("Transpose", [y], (s[0], 2, full // 2, s[2]), perm=[0, 2, 1, 3])


def _layer_scale(b: Builder) -> None:
    """A product with its bias, maybe turned, and a factor for each channel."""
    x, s = b.tensor(3)
    if s[2] > 64:
        return
    y = b.emit("MatMul", [x, b.random((s[2], 3))], (*s[:2], 3))[0]
    if b.chance(0.7):
        y = b.emit("Add", [y, b.random(3)], (*s[:2], 3))[0]
    if b.chance(0.5):
        y = b.emit("Transpose", [y], (s[0], 3, s[1]), perm=[0, 2, 1])[0]
        b.emit(b.pick(["Mul", "Div"]), [y, b.random((3, 1))], (s[0], 3, s[1]))
    else:
        b.emit(b.pick(["Mul", "Div"]), [y, b.random(3)], (*s[:2], 3))


BLOCKS: list[Callable[[Builder], None]] = [
    _heads,
    _heads,
    _residual,
    _residual,
    _rolled,
    _expanded,
    _repeated,
    _windows,
]
