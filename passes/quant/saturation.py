"""Where u8 × s8 products saturate: CPUs with AVX2 or AVX512 but without VNNI add pairs of products in int16.

Two neighbours along the contraction, each up to 255 · 127, make 64,770 and int16 ends at 32,767. A layer is at risk
when activations that really occur and neighbouring weights of one sign can reach that; only such layers get 7-bit
weights, which cannot: 255 · 2 · 63 = 32,130.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from .calibrate import Scale, Seen
from .weights import Packed

SAFE = 63  # greatest 7-bit weight
_INT16 = 32767
_RARE = 1e-4  # share of activations that may be larger than the one counted with


def at_risk(node: gs.Node, packed: Packed, seen: Seen | None, x: Scale) -> bool:
    """Whether pairs of products of this layer can leave int16."""
    if x.kind != "u8":
        return False
    return largest_pair(node, packed.values) * _activation(seen, x) > _INT16


def _activation(seen: Seen | None, x: Scale) -> int:
    """The integer that all but one in ten thousand activations stay within."""
    if seen is None or seen.counts.sum() <= 0:
        return 255
    share = np.cumsum(seen.counts) / seen.counts.sum()
    top = seen.centers[min(int(np.searchsorted(share, 1 - _RARE)), len(share) - 1)]
    return int(np.clip(np.rint(top / x.scale) + x.zero, 0, 255))


def largest_pair(node: gs.Node, values: np.ndarray) -> int:
    """Largest |w0 + w1| of neighbours of one sign along the contraction, as the kernels pack it (channels last).

    Depthwise kernels widen before they add, so that they have no such pairs.
    """
    if node.op == "Conv":
        if values.shape[1] == 1:
            return 0
        rows = np.moveaxis(values, 1, -1).reshape(values.shape[0], -1)
    elif node.op == "Gemm" and node.attrs.get("transB", 0):
        rows = values
    else:
        rows = np.swapaxes(values, -1, -2).reshape(-1, values.shape[-2])
    rows = rows.astype(np.int32)
    if rows.shape[1] % 2:
        rows = np.pad(rows, ((0, 0), (0, 1)))
    pairs = rows.reshape(rows.shape[0], -1, 2)
    up = np.maximum(pairs, 0).sum(axis=-1).max(initial=0)
    down = np.maximum(-pairs, 0).sum(axis=-1).max(initial=0)
    return int(max(up, down))
