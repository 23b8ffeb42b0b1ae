"""Where two models begin to differ: every tensor that both have, on the same feeds, in the order of the first model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import ir
from ..runtime.numerics import Diff, OutputDiff
from ..runtime.session import Session

if TYPE_CHECKING:
    from ..ir import Model


@dataclass(frozen=True)
class Tensor:
    """One tensor of both models. op: what makes it in the first."""

    name: str
    op: str
    diff: OutputDiff


@dataclass(frozen=True)
class Divergence:
    """Inner tensors in the first model's order, and the graph outputs."""

    inner: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def compare(
    a: Model | Path, b: Model | Path, feeds: Iterable[Mapping[str, Any]], *, threads: int = 1, inner: bool = True
) -> Divergence:
    """Compare the tensors that both models have by name. Raises ModelError when a model does not run.

    Inner tensors are watched in the models as they stand (a session that hands out a tensor cannot fuse over it);
    differences of rounding between the two are therefore smaller than between the models as they run. A tensor whose
    shape changed (pruned channels) counts as broken.
    """
    first, second = (m if isinstance(m, ir.Model) else ir.load(m) for m in (a, b))
    makers = {t.name: n.op for n in first.graph.nodes for t in n.outputs if t.name}
    there = {t.name for n in second.graph.nodes for t in n.outputs if t.name}
    finals = [t.name for t in first.outputs]
    names = [n for n in makers if n in there and n not in finals] if inner else []
    sums = {n: Diff(n) for n in (*names, *finals)}
    sessions = [Session(m, threads=threads, outputs=list(sums), arena=False) for m in (first, second)]
    for feed in feeds:
        left, right = (s.run(feed) for s in sessions)
        for name, total in sums.items():
            total.add(left[name], right[name])
    rows = {n: Tensor(n, makers.get(n, "input"), d.result()) for n, d in sums.items()}
    return Divergence(tuple(rows[n] for n in names), tuple(rows[n] for n in finals))
