"""ConvTranspose output by output: which entry of the input each tap of the kernel meets there, if any.

Along an axis, tap k puts input i at output i·stride + k·dilation − pad. So output o sees, through tap k, the input at
(o + pad − k·dilation) / stride where that is a whole number inside, and nothing elsewhere: a convolution of the input
stuffed with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

Array = np.ndarray
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Spread:
    """kernel, strides, dilations, pads (begin, end) and output padding by spatial axis; shape: the attribute
    `output_shape`, or ()."""

    kernel: Sizes
    strides: Sizes
    dilations: Sizes
    pads: tuple[tuple[int, int], ...]
    extra: Sizes
    auto_pad: str = "NOTSET"
    shape: Sizes = ()

    @classmethod
    def of(cls, node: gs.Node) -> Spread:
        """Read off a ConvTranspose with a weight of known shape."""
        kernel = tuple(int(k) for k in node.inputs[1].shape[2:])
        ones, zeros = [1] * len(kernel), [0] * len(kernel)
        pads = node.attrs.get("pads", 2 * zeros)
        return cls(
            kernel,
            tuple(node.attrs.get("strides", ones)),
            tuple(node.attrs.get("dilations", ones)),
            tuple(zip(pads[: len(kernel)], pads[len(kernel) :])),
            tuple(node.attrs.get("output_padding", zeros)),
            str(node.attrs.get("auto_pad", "NOTSET") or "NOTSET"),
            tuple(node.attrs.get("output_shape", ())[-len(kernel) :]),
        )

    def sizes(self, sizes: Sizes) -> Sizes:
        """Of the output, for an input of these spatial sizes."""
        if self.shape:
            return self.shape
        if self.auto_pad.startswith("SAME"):
            return tuple(n * s for n, s in zip(sizes, self.strides))
        pads = self.pads if self.auto_pad == "NOTSET" else [(0, 0)] * len(sizes)
        return tuple(full - a - b for full, (a, b) in zip(self._full(sizes), pads))

    def begins(self, sizes: Sizes) -> Sizes:
        """Padding before each axis, as ONNX Runtime shares it out where only the output's shape is known."""
        if not self.shape and not self.auto_pad.startswith("SAME"):
            return tuple(a if self.auto_pad == "NOTSET" else 0 for a, _ in self.pads)
        totals = [max(0, full - out) for full, out in zip(self._full(sizes), self.sizes(sizes))]
        return tuple(t // 2 if self.auto_pad == "SAME_UPPER" else t - t // 2 for t in totals)

    def _full(self, sizes: Sizes) -> list[int]:
        """Sizes of the output without padding."""
        axes = zip(sizes, self.kernel, self.strides, self.dilations, self.extra)
        return [(n - 1) * s + (k - 1) * d + 1 + more for n, k, s, d, more in axes]

    def unfolded(self, x: Array, positions: Array) -> Array:
        """[P, C, *kernel] at flat positions over `[N, *output sizes]`: the input that each tap meets, or 0."""
        rank, sizes = len(self.kernel), x.shape[2:]
        where = np.unravel_index(positions, (len(x), *self.sizes(sizes)))
        at: list[Array] = [where[0].reshape(-1, *[1] * rank)]
        inside = np.ones((1, *[1] * rank), bool)
        for a, begin in enumerate(self.begins(sizes)):
            shifted = where[a + 1][:, None] + begin - np.arange(self.kernel[a]) * self.dilations[a]
            index, rest = np.divmod(shifted, self.strides[a])
            met = (rest == 0) & (index >= 0) & (index < sizes[a])
            laid = [-1, *[self.kernel[a] if k == a else 1 for k in range(rank)]]
            at.append(np.where(met, index, 0).reshape(laid))
            inside = inside & met.reshape(laid)
        patches = np.moveaxis(x, 1, -1)[tuple(at)]  # [P, *kernel, C]
        return np.moveaxis(np.where(inside[..., None], patches, 0), -1, 1)


__all__ = ["Spread"]
