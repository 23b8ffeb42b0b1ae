"""Groups: what lives and dies together, what each carries, and what is pinned and why.

A *unit* is one primitive atom (a channel with everything tied to it, a head, a head dimension). Units with the same
members form a *family*, which is what a user sees as one row: 64 channels tied over these nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ...ir import Model, cost, ops
from ...ir.flow import Flow
from ...ir.labels import Cells
from ..pace import samples
from .ledger import Ledger
from .sizes import Sizes, probed
from .unfitted import unlabelled


@dataclass(frozen=True)
class Family:
    """Units that share all members. units: atoms. members: (node, input index, axis) of constants they cut."""

    units: np.ndarray
    members: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Row:
    """One line of `inspect --groups`: `channels` positions over `members` (node, axis); macs: of one sample;
    `pinned`: why they stay. channels is 0 and the axis -1 for a node in a branch, or of an unknown op."""

    id: int
    channels: int
    members: tuple[tuple[str, int], ...]
    params: int
    macs: int
    pinned: str | None


@dataclass
class Groups:
    """Everything that may go from a model, and what hangs together. samples: that the ledger's MACs are for."""

    flow: Flow
    ledger: Ledger
    families: list[Family]
    samples: int = 1

    @property
    def units(self) -> np.ndarray:
        """All units that may go, ascending."""
        return np.sort(np.concatenate([f.units for f in self.families])) if self.families else np.zeros(0, np.int64)

    def describe(self) -> list[Row]:
        """Free families first, the largest in parameters on top; then what is pinned."""
        free = [self._free(f) for f in self.families]
        rows = sorted(free, key=lambda r: (-r.params, r.members)) + self._pinned()
        return [Row(i, r.channels, r.members, r.params, r.macs, r.pinned) for i, r in enumerate(rows)]

    def _free(self, family: Family) -> Row:
        params, macs = self.ledger.carried(family.units)
        members = tuple(dict.fromkeys((node, axis) for node, _, axis in family.members))
        return Row(0, len(family.units), members, params, macs // self.samples, None)

    def _pinned(self) -> list[Row]:
        reasons: dict[tuple[str, int, str], int] = {}
        vital, listed = self._vital(), set[int]()
        for origin in self.flow.origins:
            for atom in np.unique(origin.cells):
                if int(atom) in listed:  # a stored weight that several nodes read
                    continue
                listed.add(int(atom))
                why = self.flow.atoms.pinned(int(atom)) or self._needed(int(atom), vital)
                if why is not None:
                    key = (origin.node, origin.axis, why)
                    reasons[key] = reasons.get(key, 0) + 1
        rows = [Row(0, n, ((node, axis),), 0, 0, why) for (node, axis, why), n in reasons.items()]
        return rows + [Row(0, 0, ((node, -1),), 0, 0, why) for node, why in unlabelled(self.flow).items()]

    def _vital(self) -> dict[int, str]:
        """Why units stay that an axis cannot spare."""
        resolve, line = self.flow.atoms.resolve, self.ledger.line
        axes = [(line(resolve(c)), name) for name, labels in self.flow.labels.items() for c in labels]
        names = dict(reversed(axes))  # the first tensor that has such an axis
        count = "nothing is" if self.ledger.least == 1 else f"fewer than {self.ledger.least} channels are"
        return {u: f"without it {count} left of '{names.get(k, 'a weight')}'" for u, k in self.ledger.vital.items()}

    def _needed(self, atom: int, vital: dict[int, str]) -> str | None:
        """Why an atom stays of which no part may go: what pins a part of it says more than that an axis needs one."""
        why = [vital.get(unit) for unit in self.flow.atoms.members(atom)]
        return (self.flow.atoms.held(atom) or next(iter(why), None)) if all(why) else None


def find(
    model: Model,
    feed: Any = None,
    keep: Callable[[gs.Node], bool] = lambda node: False,
    norms: str = "pin",
    min_channels: int = 1,
) -> Groups:
    """Propagate labels through a model and collect what may go.

    feed: one real feed, for dynamic models. keep: nodes to leave alone. norms: "pin" or "allow" (`ir.flow`).
    """
    known, again = probed(model, feed)
    flow = Flow(model, known, keep, norms, again)
    free = _free_units(flow)
    whole = float(cost.parameters(model)), float(sum(n.macs for n in cost.by_node(model, known)))
    ledger = Ledger(flow, free, _weights(model, flow), _macs(model, flow, known), min_channels, whole)
    return Groups(flow, ledger, _families(flow, ledger), samples(model, known))


def _free_units(flow: Flow) -> np.ndarray:
    found = [flow.atoms.resolve(o.cells) for o in flow.origins]
    some = [np.unique(c) for c in found if c is not None]
    units = np.unique(np.concatenate(some)) if some else np.zeros(0, np.int64)
    return units[units > 0]


def _families(flow: Flow, ledger: Ledger) -> list[Family]:
    """Units by what they cut and by the lines they are on: heads and head dimensions cut the same constants."""
    members: dict[int, list[tuple[str, int, int]]] = {int(u): [] for u in ledger.units}
    for one in flow.cuts:
        cells = flow.atoms.resolve(one.cells)
        if cells is not None:
            for atom in np.unique(cells):
                if int(atom) in members:
                    members[int(atom)].append((one.node, one.index, one.axis))
    alike: dict[Any, list[int]] = {}
    for unit, where in members.items():
        lines = tuple(line for line, _ in ledger.places(unit))
        alike.setdefault((tuple(dict.fromkeys(where)), lines), []).append(unit)
    return [Family(np.array(sorted(units)), where) for (where, _), units in alike.items()]


def _weights(model: Model, flow: Flow) -> list[tuple[float, list[Cells]]]:
    """(elements, labels of its axes) of every constant that is cut, once each."""
    nodes = {n.name: n for n in model.graph.nodes}
    axes: dict[str, dict[int, Cells]] = {}
    for one in flow.cuts:
        tensor = nodes[one.node].inputs[one.index]
        cells = flow.atoms.resolve(one.cells)
        if cells is not None:
            axes.setdefault(tensor.name, {}).setdefault(one.axis, cells)
    constants = model.constants()
    return [(float(cost.size(constants[name])), list(found.values())) for name, found in axes.items()]


def _macs(model: Model, flow: Flow, sizes: Sizes) -> list[tuple[float, list[Cells]]]:
    """(MACs, labels of the axes that they multiply) of every product."""

    def size_of(tensor: Any) -> tuple[int, ...] | None:
        return tuple(tensor.shape) if isinstance(tensor, gs.Constant) else sizes.get(tensor.name)

    nodes = {n.name: n for n in model.graph.nodes}
    rows = []
    for product in flow.products:
        node = nodes[product.node]
        cells = [c for c in (flow.atoms.resolve(c) for c in product.sized) if c is not None]
        if cells:
            rows.append((product.share * float(ops.facts(node).macs(node, size_of)), cells))
    return rows
