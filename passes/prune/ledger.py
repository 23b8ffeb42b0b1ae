"""The ledger of a removal: what every unit would save now, and whether an axis would be left without positions.

Every distinct labelled axis of the model is one *line* of positions; a position dies with the first of its units. The
parameters of a constant and the MACs of a product are its full amount times the living fraction of each of its lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ...ir.flow import Flow
from ...ir.labels import Cells

Amounts = Sequence[tuple[float, Sequence[Cells]]]
Table = tuple[np.ndarray, np.ndarray]  # full amounts [R], lines that they hang on [R, L] (-1: none)


class Ledger:
    """Lines, and the amounts that hang on them, of one propagated model.

    whole: parameters and MACs of the model, what hangs on no line included: what shares are shares of.
    vital: units that can never go, with a line that cannot spare them.
    """

    def __init__(
        self,
        flow: Flow,
        units: np.ndarray,
        params: Amounts,
        macs: Amounts,
        least: int = 1,
        whole: tuple[float, float] = (0.0, 0.0),
    ):
        self.least = least
        self.units = units
        self._free = np.zeros(flow.atoms.count, bool)
        self._free[units] = True
        self._lines: dict[bytes, int] = {}
        self._length: list[int] = []
        self._where: dict[int, list[tuple[int, np.ndarray]]] = {int(u): [] for u in units}
        for labels in flow.labels.values():
            for cells in labels:
                self.line(flow.atoms.resolve(cells))
        self.params, self.macs = self.table(params), self.table(macs)
        self.reset()
        self._full = (self.amount(self.params), self.amount(self.macs))
        self.whole = (max(whole[0], self._full[0], 1.0), max(whole[1], self._full[1], 1.0))
        short = {int(u): self._short(int(u)) for u in units}
        self.vital = {u: line for u, line in short.items() if line is not None}
        self.units = np.array([u for u in units if int(u) not in self.vital], np.int64)

    def line(self, cells: Cells | None) -> int:
        """The line of these cells; -1 where nothing can go. One that is new counts from the next `reset` on."""
        if cells is None or not self._free[cells].any():
            return -1
        cells = np.where(self._free[cells], cells, 0)
        key = np.ascontiguousarray(cells).tobytes() + b"%d" % cells.shape[1]
        if key not in self._lines:
            line = self._lines[key] = len(self._length)
            self._length.append(len(cells))
            flat, position = cells.reshape(-1), np.repeat(np.arange(len(cells)), cells.shape[1])
            order = np.argsort(flat, kind="stable")
            atoms, starts = np.unique(flat[order], return_index=True)
            for atom, places in zip(atoms, np.split(position[order], starts[1:])):
                if atom:
                    self._where[int(atom)].append((line, places))
        return self._lines[key]

    def reset(self) -> None:
        """Everything lives again."""
        self.total = np.array(self._length, np.int64)
        self.left = self.total.copy()
        self._dead = [np.zeros(n, bool) for n in self._length]
        self.gone: list[int] = []

    def _short(self, unit: int) -> int | None:
        """The first line that would keep fewer positions than it must without a unit."""
        for line, places in self._where[unit]:
            left = self.left[line] - int((~self._dead[line][places]).sum())
            if left < min(self.least, self.total[line]) or left < 1:
                return line
        return None

    def remove(self, unit: int) -> bool:
        """Let a unit go, unless an axis would keep fewer positions than it must; whether it went."""
        if self._short(unit) is not None:
            return False
        for line, places in self._where[unit]:
            dead = self._dead[line]
            self.left[line] -= int((~dead[places]).sum())
            dead[places] = True
        self.gone.append(unit)
        return True

    def table(self, amounts: Amounts) -> Table:
        """Amounts that go with the living fractions of lines."""
        lines = [[self.line(c) for c in cells] for _, cells in amounts]
        width = max((len(x) for x in lines), default=1)
        index = np.full((len(lines), max(width, 1)), -1)
        for row, found in zip(index, lines):
            row[: len(found)] = found
        return np.array([a for a, _ in amounts], np.float64), index

    def fractions(self) -> np.ndarray:
        """Living fraction of every line; 1 for the line that is not there (index -1)."""
        return np.append(self.left / np.maximum(self.total, 1), 1.0)

    def amount(self, table: Table) -> float:
        """What is left of params or macs."""
        full, index = table
        return float((full * self.fractions()[index].prod(1)).sum())

    def gone_shares(self) -> tuple[float, float]:
        """Shares of the model's parameters and MACs that are gone."""
        tables = zip((self.params, self.macs), self._full, self.whole)
        params, macs = ((full - self.amount(table)) / whole for table, full, whole in tables)
        return params, macs

    @property
    def lines(self) -> int:
        """How many distinct labelled axes there are."""
        return len(self._length)

    def places(self, unit: int) -> list[tuple[int, np.ndarray]]:
        """(line, positions) that a unit holds."""
        return self._where[unit]

    def span(self, unit: int) -> int:
        """How many channels of a layer a unit is: a head is all of its dimensions."""
        weights = set(self.params[1].reshape(-1).tolist())
        return min((len(places) for line, places in self._where[unit] if line in weights), default=1)

    def living(self, unit: int) -> list[tuple[int, int]]:
        """(line, how many living positions) that a unit holds."""
        return [(line, int((~self._dead[line][places]).sum())) for line, places in self._where[unit]]

    def savings(self, table: Table) -> np.ndarray:
        """For every line: what one position of it is worth now."""
        full, index = table
        now = full * self.fractions()[index].prod(1)
        each = now[:, None] / np.maximum(np.append(self.left, 1), 1)[index]
        worth = np.zeros(len(self._length) + 1)
        np.add.at(worth, index, each)
        return worth[:-1]

    def carried(self, units: Iterable[int]) -> tuple[int, int]:
        """(parameters, MACs) that units carry in the whole model, to first order."""
        totals = []
        for full, index in (self.params, self.macs):
            worth = np.zeros(len(self._length) + 1)
            np.add.at(worth, index, full[:, None] / np.append(self.total, 1)[index])
            totals.append(sum(worth[x] * len(p) for u in units for x, p in self._where[int(u)]))
        return round(float(totals[0])), round(float(totals[1]))
