"""`clean`: dead nodes, outputs nobody reads, operators that do nothing, and duplicates of nodes and constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...ir import Model, edit, order
from ..base import Context, Pass, PassResult
from ..rewrite import Rewriter
from . import duplicates, identity, unused


@dataclass(frozen=True)
class Clean(Pass):
    """Remove what does nothing: dead code, identities of every kind, duplicate nodes and duplicate constants."""

    name: ClassVar[str] = "clean"

    def run(self, model: Model, ctx: Context | None = None) -> PassResult:
        """Edit `model` in place."""
        did: dict[str, int | float | str] = {}
        rounds = [self._round(model)]
        while rounds[-1] and len(rounds) < 8:
            rounds.append(self._round(model))
        for counts in rounds:
            for key, value in counts.items():
                did[key] = int(did.get(key, 0)) + value
        return PassResult(bool(did), did)

    def _round(self, model: Model) -> dict[str, int]:
        swept = edit.sweep(model)
        dropped = unused.drop_outputs(model)
        order.sort(model)
        rewriter = Rewriter(model)
        constants = duplicates.merge_constants(rewriter)
        nodes = duplicates.merge_nodes(rewriter)
        counts, _ = rewriter.run(identity.rules())
        found = {
            "dead nodes removed": swept,
            "unused outputs left out": dropped,
            "duplicate constants merged": constants,
            "duplicate nodes merged": nodes,
            **counts,
        }
        return {key: value for key, value in found.items() if value}
