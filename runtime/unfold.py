"""The rows that a linear layer multiplies: its input cut into patches, at chosen output positions.

For any Conv, Gemm or MatMul with a constant right operand, y[p] = W x[p] (+ b) for every output position p, with
x[p] of K = channels per group · kernel entries in the order of `weight.reshape(M, K)`. The same holds for a
ConvTranspose, whose row has the input where a tap of the kernel meets it and zeros elsewhere, and for an Einsum of data
and a constant. Only the rows asked for are ever formed.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ..ir.errors import PassError
from .contraction import Contraction, contraction, picked_rows
from .transposed import Spread

OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Geometry:
    """How a layer reads its input.

    width: K. groups: G. kernel, strides, dilations, pads (begin, end) per spatial axis; empty for Gemm and MatMul.
    auto_pad: Conv's attribute. transposed: Gemm's transA. spread: of a ConvTranspose that is taken output by output.
    einsum: how an Einsum multiplies.
    """

    width: int
    groups: int = 1
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[tuple[int, int], ...] = ()
    auto_pad: str = "NOTSET"
    transposed: bool = False
    spread: Spread | None = None
    einsum: Contraction | None = None

    @property
    def source(self) -> int:
        """Position of the data among the node's inputs."""
        return 0 if self.einsum is None else self.einsum.x


def geometry(node: gs.Node) -> Geometry:
    """Read off a node; of a ConvTranspose each input position by itself is a row (C / G entries).

    Raises PassError for one that has no constant-size weight or is of another operator.
    """
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    shape = None if weight is None or weight.shape is None else tuple(weight.shape)
    if node.op not in OPS or shape is None or not all(isinstance(d, int) for d in shape):
        raise PassError(f"node '{node.name}' ({node.op}) is no linear layer with a weight of known shape")
    if node.op == "Gemm":
        width = shape[1] if node.attrs.get("transB", 0) else shape[0]
        return Geometry(width, transposed=bool(node.attrs.get("transA", 0)))
    if node.op == "MatMul":
        if len(shape) not in (1, 2):
            raise PassError(f"node '{node.name}' (MatMul) multiplies a stack of matrices; its rows are not one layer's")
        return Geometry(shape[0])
    if node.op == "ConvTranspose":
        single, groups = (1,) * (len(shape) - 2), int(node.attrs.get("group", 1))
        return Geometry(shape[0] // groups, groups, single, single, single, ((0, 0),) * len(single))
    kernel = shape[2:]
    ones, zeros = [1] * len(kernel), [0] * (2 * len(kernel))
    pads = node.attrs.get("pads", zeros)
    return Geometry(
        int(np.prod(shape[1:])),
        int(node.attrs.get("group", 1)),
        kernel,
        tuple(node.attrs.get("strides", ones)),
        tuple(node.attrs.get("dilations", ones)),
        tuple(zip(pads[: len(kernel)], pads[len(kernel) :])),
        str(node.attrs.get("auto_pad", "NOTSET") or "NOTSET"),
    )


def regression(node: gs.Node) -> Geometry:
    """As `geometry`, but with a row for every output position of a ConvTranspose too, and of an Einsum, and for every
    step and sample that a recurrent layer reads.

    Raises PassError.
    """
    if node.op in ("LSTM", "GRU", "RNN"):
        return Geometry(int(node.inputs[1].shape[2]))
    if node.op == "Einsum":
        found = contraction(node)
        if found is None:
            raise PassError(f"node '{node.name}' (Einsum) is no product of data and a constant matrix")
        groups, _, width = found.counts(node.inputs[found.w].shape)
        return Geometry(width, groups, einsum=found)
    if node.op != "ConvTranspose":
        return geometry(node)
    plain, kernel = geometry(node), tuple(node.inputs[1].shape[2:])
    return replace(plain, width=plain.width * int(np.prod(kernel)), kernel=kernel, spread=Spread.of(node))


def count(geo: Geometry, shape: tuple[int, ...]) -> int:
    """Output positions (rows) for an input of this shape."""
    if geo.einsum is not None:
        return geo.einsum.count(shape)
    if geo.kernel:
        return int(shape[0] * np.prod(_output_sizes(geo, shape[2:]), dtype=np.int64))
    if geo.transposed:
        return int(shape[1])
    return int(np.prod(shape[:-1], dtype=np.int64))


def choose(total: int, most: int, seed: int, name: str, index: int) -> np.ndarray:
    """At most `most` of `total` positions, sorted; the same for the same seed, layer and feed."""
    if total <= most:
        return np.arange(total)
    rng = np.random.default_rng([seed, index, zlib.crc32(name.encode())])
    return np.sort(rng.choice(total, most, replace=False, shuffle=False))


def rows(geo: Geometry, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """[G, P, K] float32: what the layer multiplies at flat output positions, counted over [N, *output sizes]."""
    if geo.einsum is not None:
        return np.asarray(geo.einsum.unfolded(x, positions), np.float32)
    if geo.spread is not None:
        met = np.asarray(geo.spread.unfolded(x, positions), np.float32)
        return met.reshape(len(positions), geo.groups, geo.width).transpose(1, 0, 2)
    if not geo.kernel:
        flat = x.T if geo.transposed else x.reshape(-1, x.shape[-1])
        return np.asarray(flat[positions], np.float32)[None]
    sizes = _output_sizes(geo, x.shape[2:])
    where = np.unravel_index(positions, (x.shape[0], *sizes))
    padded = np.pad(x, [(0, 0), (0, 0), *pads(geo, x.shape[2:])])
    spans = tuple((k - 1) * d + 1 for k, d in zip(geo.kernel, geo.dilations))
    axes = tuple(range(2, x.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axes)
    steps = tuple(slice(None, None, s) for s in (1, 1, *geo.strides, *geo.dilations))
    at: Any = (where[0], slice(None), *where[1:])
    patches = windows[steps][at]  # [P, C, *kernel], the only copy
    grouped = np.asarray(patches, np.float32).reshape(len(positions), geo.groups, geo.width)
    return grouped.transpose(1, 0, 2)


def targets(geo: Geometry, y: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """[G, P, M / G] float32: the layer's outputs at the positions (bias included, if the layer has one)."""
    if geo.einsum is not None:
        made = np.asarray(picked_rows(y, geo.einsum.made, positions, geo.einsum.rows[1]), np.float32)
        return made.reshape(len(positions), geo.groups, -1).transpose(1, 0, 2)
    if not geo.kernel:
        return np.asarray(y.reshape(-1, y.shape[-1])[positions], np.float32)[None]
    where = np.unravel_index(positions, (y.shape[0], *y.shape[2:]))
    at: Any = (where[0], slice(None), *where[1:])
    picked = np.asarray(y[at], np.float32)
    return picked.reshape(len(positions), geo.groups, -1).transpose(1, 0, 2)


def pads(geo: Geometry, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    """(begin, end) by spatial axis for an input of these sizes."""
    if geo.auto_pad in ("NOTSET", ""):
        return list(geo.pads)
    if geo.auto_pad == "VALID":
        return [(0, 0)] * len(sizes)
    found = []
    for size, k, s, d in zip(sizes, geo.kernel, geo.strides, geo.dilations):
        total = max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
        small = total // 2
        found.append((small, total - small) if geo.auto_pad == "SAME_UPPER" else (total - small, small))
    return found


def _output_sizes(geo: Geometry, sizes: Any) -> tuple[int, ...]:
    if geo.spread is not None:
        return geo.spread.sizes(tuple(sizes))
    margins = pads(geo, tuple(sizes))
    return tuple(
        (size + a + b - (k - 1) * d - 1) // s + 1
        for size, (a, b), k, s, d in zip(sizes, margins, geo.kernel, geo.strides, geo.dilations)
    )


__all__ = ["OPS", "Geometry", "choose", "count", "geometry", "pads", "regression", "rows", "targets"]
