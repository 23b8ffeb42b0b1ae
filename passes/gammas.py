"""Scales of the batch norms of a model as the user gave it, which `simplify` fuses before other passes can see them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..ir import Model, edit


def gammas(model: Model) -> Mapping[str, np.ndarray]:
    """|gamma|, [C] in double precision, by the tensors before and after each BatchNormalization of the main graph.

    Both names, since the operator that takes the norm in keeps one of them. Nothing where the scale is not constant.
    """
    found: dict[str, np.ndarray] = {}
    for node in model.graph.nodes:
        scale = edit.const(node, 1) if node.op == "BatchNormalization" else None
        if scale is not None and scale.ndim == 1:
            size = np.abs(scale.astype(np.float64))
            found |= {t.name: size for t in (node.inputs[0], node.outputs[0])}
    return found
