"""Detectors in the style of YOLOv5 (C3, anchors) and YOLOv8 (C2f, distribution heads), with random weights."""

from __future__ import annotations

import numpy as np
from prune_nets import Net

from onnxslim_opt import ir


class Yolo:
    """Blocks of both families. Tensors go by (name, channels)."""

    def __init__(self, size: int, seed: int = 0):
        self.net, self.size = Net(seed, x=["N", 3, size, size]), size

    def cbs(self, x: tuple[str, int], out: int, k: int = 1, stride: int = 1) -> tuple[str, int]:
        """Convolution, norm, SiLU."""
        n = self.net
        y = n.norm(n.conv(x[0], x[1], out, k, strides=[stride, stride], pads=[(k - 1) // 2] * 4), out)
        return n.op("Mul", y, n.op("Sigmoid", y)), out

    def join(self, *parts: tuple[str, int]) -> tuple[str, int]:
        return self.net.op("Concat", *(p[0] for p in parts), axis=1), sum(p[1] for p in parts)

    def bottleneck(self, x: tuple[str, int], shortcut: bool, k: int) -> tuple[str, int]:
        y = self.cbs(self.cbs(x, x[1], k), x[1], 3)
        return (self.net.op("Add", x[0], y[0]), x[1]) if shortcut else y

    def c3(self, x: tuple[str, int], out: int, depth: int, shortcut: bool = True) -> tuple[str, int]:
        y = self.cbs(x, out // 2)
        for _ in range(depth):
            y = self.bottleneck(y, shortcut, 1)
        return self.cbs(self.join(y, self.cbs(x, out // 2)), out)

    def c2f(self, x: tuple[str, int], out: int, depth: int, shortcut: bool = True) -> tuple[str, int]:
        half = out // 2
        y = self.cbs(x, out)
        a, b = self.net.op("Split", y[0], self.net.ints(half, half), outputs=2, axis=1)
        parts = [(a, half), (b, half)]
        for _ in range(depth):
            parts.append(self.bottleneck(parts[-1], shortcut, 3))
        return self.cbs(self.join(*parts), out)

    def sppf(self, x: tuple[str, int], out: int) -> tuple[str, int]:
        parts = [self.cbs(x, x[1] // 2)]
        for _ in range(3):
            pooled = self.net.op("MaxPool", parts[-1][0], kernel_shape=[5, 5], pads=[2] * 4, strides=[1, 1])
            parts.append((pooled, x[1] // 2))
        return self.cbs(self.join(*parts), out)

    def up(self, x: tuple[str, int]) -> tuple[str, int]:
        scales = self.net.weight(4)
        self.net.weights[scales] = np.array([1, 1, 2, 2], np.float32)
        return self.net.op("Resize", x[0], "", scales, mode="nearest", nearest_mode="floor"), x[1]

    def trunk(self, block: str, width: int, depth: int) -> list[tuple[str, int]]:
        """Backbone and path aggregation; levels of stride 8, 16 and 32."""
        make = getattr(self, block)
        x = self.cbs(self.cbs(("x", 3), width, 6 if block == "c3" else 3, 2), 2 * width, 3, 2)
        x = make(x, 2 * width, depth)
        p3 = make(self.cbs(x, 4 * width, 3, 2), 4 * width, 2 * depth)
        p4 = make(self.cbs(p3, 8 * width, 3, 2), 8 * width, 2 * depth)
        p5 = self.sppf(make(self.cbs(p4, 16 * width, 3, 2), 16 * width, depth), 16 * width)
        if block == "c3":
            p5 = self.cbs(p5, 8 * width)
        mid = make(self.join(self.up(p5), p4), 8 * width, depth, False)
        if block == "c3":
            mid = self.cbs(mid, 4 * width)
        n3 = make(self.join(self.up(mid), p3), 4 * width, depth, False)
        n4 = make(self.join(self.cbs(n3, n3[1], 3, 2), mid), 8 * width, depth, False)
        n5 = make(self.join(self.cbs(n4, n4[1], 3, 2), p5), 16 * width, depth, False)
        return [n3, n4, n5]

    def anchors(self, levels: list[tuple[str, int]], classes: int) -> ir.Model:
        """YOLOv5's head: 3 anchors a place, x y w h from a grid, objectness and classes."""
        n, each, found = self.net, classes + 5, []
        for k, (x, c) in enumerate(levels):
            side = self.size >> (3 + k)
            y = n.op("Reshape", n.conv(x, c, 3 * each, 1), n.ints(-1, 3, each, side, side))
            y = n.op("Sigmoid", n.op("Transpose", y, perm=[0, 1, 3, 4, 2]))
            xy, wh, rest = n.op("Split", y, n.ints(2, 2, each - 4), outputs=3, axis=4)
            xy = n.op("Mul", n.op("Add", xy, n.weight(1, 1, side, side, 2)), n.weight(1))
            wh = n.op("Mul", n.op("Mul", wh, wh), n.weight(1, 3, 1, 1, 2))
            found.append(n.op("Reshape", n.op("Concat", xy, wh, rest, axis=4), n.ints(-1, 3 * side * side, each)))
        n.op("Concat", *found, axis=1)
        return n.model()

    def distributions(self, levels: list[tuple[str, int]], classes: int, bins: int = 8) -> ir.Model:
        """YOLOv8's head: boxes as distributions over distances, classes apart."""
        n, places = self.net, sum((self.size >> k) ** 2 for k in (3, 4, 5))
        flat = []
        for x in levels:
            boxes, kinds = self.cbs(self.cbs(x, 16, 3), 16, 3), self.cbs(self.cbs(x, 24, 3), 24, 3)
            y = self.join((n.conv(boxes[0], 16, 4 * bins, 1), 4 * bins), (n.conv(kinds[0], 24, classes, 1), classes))
            flat.append(n.op("Reshape", y[0], n.ints(0, 4 * bins + classes, -1)))
        y = n.op("Concat", *flat, axis=2)
        box, kind = n.op("Split", y, n.ints(4 * bins, classes), outputs=2, axis=1)
        box = n.op("Transpose", n.op("Reshape", box, n.ints(-1, 4, bins, places)), perm=[0, 2, 1, 3])
        box = n.op("Conv", n.op("Softmax", box, axis=1), n.weight(1, bins, 1, 1), kernel_shape=[1, 1])
        box = n.op("Reshape", box, n.ints(-1, 4, places))
        low = n.op("Slice", box, n.ints(0), n.ints(2), n.ints(1))
        high = n.op("Slice", box, n.ints(2), n.ints(4), n.ints(1))
        a, b = n.op("Sub", n.weight(1, 2, places), low), n.op("Add", n.weight(1, 2, places), high)
        middle = n.op("Mul", n.op("Add", a, b), n.weight(1))
        box = n.op("Mul", n.op("Concat", middle, n.op("Sub", b, a), axis=1), n.weight(1, 1, places))
        n.op("Concat", box, n.op("Sigmoid", kind), axis=1)
        return n.model()


def yolov5(size: int = 64, width: int = 8, classes: int = 6) -> ir.Model:
    """C3 blocks and an anchor head."""
    yolo = Yolo(size)
    return yolo.anchors(yolo.trunk("c3", width, 1), classes)


def yolov8(size: int = 64, width: int = 8, classes: int = 6) -> ir.Model:
    """C2f blocks and a distribution head."""
    yolo = Yolo(size)
    return yolo.distributions(yolo.trunk("c2f", width, 1), classes)


def c2f_stack(size: int = 160) -> ir.Model:
    """A classifier of C2f blocks: the backbone of YOLOv8 n with a linear head."""
    yolo = Yolo(size)
    x = yolo.cbs(yolo.cbs(("x", 3), 16, 3, 2), 32, 3, 2)
    for out, depth in ((32, 1), (64, 2), (128, 2), (256, 1)):
        x = yolo.c2f(x if out == 32 else yolo.cbs(x, out, 3, 2), out, depth)
    return yolo.net.head(*yolo.sppf(x, 256))
