"""Where two models begin to differ: every tensor that both have, on the same feeds, in the order of the first model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import ir
from ..ir.errors import ModelError
from ..runtime.differences import compare_tensors
from ..runtime.numerics import OutputDiff
from ..runtime.taps import outer_tensors

if TYPE_CHECKING:
    from ..ir import Model


@dataclass(frozen=True)
class Tensor:
    """One tensor of both models. op: what makes it in the first; "input" or "constant" where no node does."""

    name: str
    op: str
    diff: OutputDiff


@dataclass(frozen=True)
class Divergence:
    """Inner tensors in the first model's order, and the graph outputs. missing: outputs of the first alone."""

    inner: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    missing: tuple[str, ...] = ()


def compare(
    a: Model | Path, b: Model | Path, feeds: Iterable[Mapping[str, Any]], *, threads: int = 1, inner: bool = True
) -> Divergence:
    """Compare the tensors that both models have by name. Raises ModelError when a model does not run, or
    none of the first one's outputs is in the second.

    Models run without ONNX Runtime's fusions, so that a difference is where it seems to be. A tensor whose shape
    changed (pruned channels) counts as broken. `feeds` must be re-iterable.
    """
    first, second = (m if isinstance(m, ir.Model) else ir.load(m) for m in (a, b))
    makers = {t.name: n.op for n in first.graph.nodes for t in n.outputs if t.name}
    makers |= {t.name: "input" for t in first.graph.inputs}
    finals = [t.name for t in first.outputs]
    missing = _missing(finals, second)
    diffs = compare_tensors(first, second, feeds, None if inner else finals, threads=threads)
    rows = {d.name: Tensor(d.name, makers.get(d.name, "constant"), d) for d in diffs}
    return Divergence(
        tuple(row for name, row in rows.items() if name not in finals),
        tuple(rows[name] for name in finals if name in rows),
        missing,
    )


def _missing(finals: Sequence[str], other: Model) -> tuple[str, ...]:
    """Outputs that the other model lacks. Raises ModelError when it lacks all: nothing would be compared."""
    theirs = [t.name for t in other.outputs]
    known = {*outer_tensors(other), *theirs}
    missing = tuple(name for name in finals if name not in known)
    if len(missing) == len(finals):
        raise ModelError(f"A and B share no output: A has {', '.join(finals)}, B has {', '.join(theirs)}")
    return missing
