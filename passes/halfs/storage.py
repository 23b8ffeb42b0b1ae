"""16-bit storage of float constants that compute in float: half constant → Cast(float).

ONNX Runtime folds the Cast when it loads the model, in the main graph and in subgraphs, so that it runs the same
fused float graph as before from half the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from ...ir import Model, edit
from ..base import Skip
from . import formats
from .formats import Format

SMALLEST = 256  # elements; below, the node eats what is saved


def store(
    model: Model, half: Format, clamp: bool, excluded: Callable[[gs.Node], bool], share: float = 1.0
) -> tuple[dict[str, int], tuple[Skip, ...]]:
    """Store float32 constants of every level in 16 bits; returns counts and refusals.

    clamp: bring values beyond the format to its limits instead of leaving the constant. share: the part of the
    constants, least hurt first, that is stored.
    """
    if model.opset < half.cast_opset:
        return {}, (Skip("", f"opset {model.opset} has no Cast from {half.name} ({half.cast_opset} or later)"),)
    outputs, homes = edit.output_ids(model), edit.homes_of_constants(model)
    found, skips, beyond = [], [], 0
    for held, reader in _candidates(model):
        loss, over = formats.lost(held.values, half), formats.overflows(held.values, half)
        if id(held) in outputs:
            continue
        out = next((r for r in held.outputs if excluded(r)), None)
        if out is not None:
            why = "excluded by the user"
            why = why if out is reader else f"'{out.name}', which is excluded, reads '{held.name}' too"
            skips.append(Skip(reader.name, why))
        elif over and not clamp:
            skips.append(Skip(reader.name, f"'{held.name}' has values beyond {half.most:g}: stays float"))
        elif loss > half.noise and not over:
            skips.append(Skip(reader.name, f"'{held.name}' is too small for {half.name}: stays float"))
        else:
            found.append((loss, held.name, held, over))
    for _, _, held, over in sorted(found, key=lambda f: f[:2])[: round(share * len(found))]:
        beyond += over
        _restore(model, homes[id(held)], held, half)
    stored = round(share * len(found))
    counts = {f"weights stored in {half.name}": stored, "weights clamped": beyond}
    return {k: v for k, v in counts.items() if v}, tuple(skips)


def _candidates(model: Model) -> Iterator[tuple[gs.Constant, gs.Node]]:
    """Every float32 constant worth storing, once, with the first node that reads it."""
    seen: set[int] = set()
    for node in model.nodes():
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant) and id(tensor) not in seen and np.dtype(tensor.dtype) == np.float32:
                seen.add(id(tensor))
                if int(np.prod(tensor.shape)) >= SMALLEST:
                    yield tensor, node


def _restore(model: Model, graph: gs.Graph, held: gs.Constant, half: Format) -> None:
    """Put half → Cast in the place of a float constant, for all its readers."""
    values = edit.constant(model, f"{held.name}_{half.name}", formats.clamped(held.values, half))
    out = edit.variable(model, f"{held.name}_float", np.float32, list(held.shape))
    attrs = {"to": int(TensorProto.FLOAT)}
    edit.add(graph, edit.node(model, "Cast", [values], attrs, [out], f"{held.name}_Cast"))
    edit.replace(model, held, out, outputs=set())
