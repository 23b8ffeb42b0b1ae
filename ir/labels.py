"""Atoms: the small booleans that say which positions of a tensor's axis live, and how they are tied.

A position along an axis (a channel) carries a set of atoms and lives while all of them live. A plain channel has one
atom; a channel that is also a cell of a grid (head × head dimension, group × position) has one for each axis of the
grid, so that whatever is removed, tensors stay rectangular. The labels of an axis of n positions are an int array
`[n, K]` ("cells"): one row a position, K slots for atoms, 0 for an empty slot.

Three relations are kept: two atoms are *united* (live and die together), an atom is *defined* as a set of others (a
channel that turned out to be a grid's cell), an atom is *pinned* (always lives, with a reason).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

Cells = np.ndarray


class Atoms:
    """Union-find over atoms, with definitions and pins. Atom 0 stands for "always alive"."""

    def __init__(self) -> None:
        self.parent = np.zeros(1024, np.int64)
        self.count = 1
        self.definition: dict[int, tuple[int, ...]] = {}
        self.reasons: dict[int, str] = {}
        self._flags = np.zeros(1024, bool)  # roots that are defined or pinned
        self._flags[0] = True
        self._known: dict[int, tuple[int, ...]] = {}  # members of roots, until something changes
        self._resolved: dict[int, tuple[Cells, Cells | None]] = {}  # by id of the cells, which are held

    def _changed(self) -> None:
        if self._known or self._resolved:
            self._known, self._resolved = {}, {}

    def fresh(self, n: int) -> Cells:
        """`n` new atoms as cells `[n, 1]`."""
        while self.count + n > len(self.parent):
            self.parent = np.concatenate([self.parent, np.zeros_like(self.parent)])
            self._flags = np.concatenate([self._flags, np.zeros_like(self._flags)])
        made = np.arange(self.count, self.count + n)
        self.parent[made] = made
        self.count += n
        return made[:, None]

    def find(self, atoms: np.ndarray) -> np.ndarray:
        """The roots of an array of atoms."""
        roots = self.parent[atoms]
        while True:
            above = self.parent[roots]
            if np.array_equal(above, roots):
                return roots
            roots = above

    def _root(self, atom: int) -> int:
        parent = self.parent
        while parent[atom] != atom:
            parent[atom] = parent[parent[atom]]
            atom = parent[atom]
        return int(atom)

    def members(self, atom: int) -> tuple[int, ...]:
        """The primitive atoms that an atom stands for, pinned ones left out."""
        top = self._root(atom)
        if top not in self.definition:  # most atoms, asked for most often
            return (top,) if top and top not in self.reasons else ()
        found = self._known.get(top)
        if found is None:
            seen: dict[int, None] = {}
            queue = [top]
            while queue:
                root = self._root(queue.pop())
                if root in self.definition:
                    queue.extend(self.definition[root])
                elif root and root not in self.reasons:
                    seen[root] = None
            found = self._known[top] = tuple(sorted(seen))
        return found

    def held(self, atom: int) -> str | None:
        """Why some of what an atom stands for is pinned; None where nothing of it is."""
        seen, queue = set[int](), [atom]
        while queue:
            root = self._root(queue.pop())
            if root in self.reasons:
                return self.reasons[root]
            if root not in seen:
                seen.add(root)
                queue.extend(self.definition.get(root, ()))
        return None

    def pinned(self, atom: int) -> str | None:
        """Why an atom can never go; None when it can (or when it is a cell whose atoms can)."""
        seen, queue, reason = set(), [atom], None
        while queue:
            root = self._root(queue.pop())
            if root in seen:
                continue
            seen.add(root)
            if root in self.definition:
                queue.extend(self.definition[root])
            elif root not in self.reasons and root:
                return None
            else:
                reason = reason or self.reasons.get(root, "always needed")
        return reason

    def pin(self, cells: Cells | None, reason: str) -> None:
        """These positions always live."""
        if cells is None:
            return
        for atom in np.unique(cells):
            self._hold(self.members(int(atom)), reason)

    def _hold(self, roots: Iterable[int], reason: str) -> None:
        for root in roots:
            self.reasons[root] = reason
            self._flags[root] = True
            self._changed()

    def unite(self, a: int, b: int) -> None:
        """Two atoms live and die together; sets where one of them is defined."""
        left, right = self.members(a), self.members(b)
        if not left or not right:  # one of them always lives
            reason = self.pinned(a) or self.pinned(b) or "tied to what is always needed"
            self._hold((*left, *right), reason)
        elif len(left) == 1 and len(right) == 1:
            self._link(left[0], right[0])
        elif len(left) == 1:
            self._define(left[0], right)
        elif len(right) == 1:
            self._define(right[0], left)
        elif len(left) == len(right):
            for x, y in zip(left, right):  # both ascending: the older kind first, as they were made
                self.unite(x, y)
        else:
            self._tie((*left, *right))

    def _link(self, a: int, b: int) -> None:
        if a != b:
            keep, gone = (a, b) if a < b else (b, a)
            self.parent[gone] = keep
            self._changed()

    def _tie(self, atoms: Iterable[int]) -> None:
        first, *rest = atoms
        for other in rest:
            self.unite(first, other)

    def _define(self, atom: int, parts: tuple[int, ...]) -> None:
        """atom := all of `parts`; tied together where it would define itself."""
        if atom in parts:
            self._tie(parts)
            return
        self.definition[atom] = parts
        self._flags[atom] = True
        self._changed()

    def resolve(self, cells: Cells | None) -> Cells | None:
        """Cells in terms of primitive, free atoms, with equal and empty slots dropped; None when all always live."""
        if cells is None:
            return None
        known = self._resolved.get(id(cells))
        if known is None:
            roots = self.find(cells)
            if self._flags[roots].any():
                roots = self._expand(roots)
            known = self._resolved[id(cells)] = (cells, _tidy(roots))
        return known[1]

    def _expand(self, roots: np.ndarray) -> np.ndarray:
        unique, back = np.unique(roots, return_inverse=True)
        sets = [self.members(int(a)) for a in unique]
        table = np.zeros((len(sets), max(1, *(len(s) for s in sets)) if sets else 1), np.int64)
        for row, members in zip(table, sets):
            row[: len(members)] = members
        return table[back.reshape(-1)].reshape(len(roots), -1)

    def unify(self, a: Cells, b: Cells, reason: str) -> None:
        """Positions of `a` and `b` `[n, ·]` are the same positions: they live and die together.

        Slots are matched by what they partition alike (heads with heads, head dimensions with head dimensions);
        where nothing matches, everything that meets is tied.
        """
        left, right = self.resolve(a), self.resolve(b)
        if left is None or right is None:
            self.pin(left, reason)
            self.pin(right, reason)
            return
        if left.shape == right.shape and np.array_equal(left, right):
            return
        n_left, n_right = (left > 0).sum(1), (right > 0).sum(1)
        kind = n_left * (right.shape[1] + 1) + n_right
        for k in np.unique(kind):
            rows = np.flatnonzero(kind == k)
            self._unify_class(left[rows], right[rows], int(n_left[rows[0]]), int(n_right[rows[0]]), reason)

    def _unify_class(self, a: Cells, b: Cells, ka: int, kb: int, reason: str) -> None:
        if ka == 0 or kb == 0:
            self.pin(a, reason)
            self.pin(b, reason)
            return
        a, b = _pack(a, ka), _pack(b, kb)
        if ka > 1 or kb > 1:
            a, b = self._match_slots(a, b)
            if not a.size or not b.size:
                self.pin(a if a.size else b, reason)
                return
        pairs = np.unique(np.concatenate([a, b], 1), axis=0)
        for row in pairs:
            self._unify_cell(row[: a.shape[1]], row[a.shape[1] :])

    def _unify_cell(self, a: np.ndarray, b: np.ndarray) -> None:
        if len(a) == 1 and len(b) == 1:
            self.unite(int(a[0]), int(b[0]))
        elif len(a) == 1 or len(b) == 1:
            one, many = (a, b) if len(a) == 1 else (b, a)
            parts = tuple(sorted({m for x in many for m in self.members(int(x))}))
            mine = self.members(int(one[0]))
            if len(mine) == 1 and parts:
                self._define(mine[0], parts) if len(parts) > 1 else self._link(mine[0], parts[0])
            elif mine != parts:
                self._join(mine, parts)
        else:
            self._tie([int(x) for x in (*a, *b)])

    def _join(self, a: tuple[int, ...], b: tuple[int, ...]) -> None:
        """Two sets are one: atom by atom where they are as many, else all tied."""
        if a and len(a) == len(b):
            for x, y in zip(a, b):
                self.unite(x, y)
        elif a and b:
            self._tie((*a, *b))
        else:
            self.pin(np.array(a or b), "tied to what is always needed")

    def _match_slots(self, a: Cells, b: Cells) -> tuple[Cells, Cells]:
        """Unite the slots that partition the positions alike; what is left of both comes back."""
        left, right = list(range(a.shape[1])), list(range(b.shape[1]))
        kinds = {j: _partition(b[:, j]) for j in right}
        for i in list(left):
            mine = _partition(a[:, i])
            for j in right:
                if np.array_equal(mine, kinds[j]):
                    for x, y in np.unique(np.stack([a[:, i], b[:, j]], 1), axis=0):
                        self.unite(int(x), int(y))
                    left.remove(i)
                    right.remove(j)
                    break
        return a[:, left], b[:, right]

    def factor(self, cells: np.ndarray, where: str) -> list[Cells | None]:
        """Cells over a grid `[n1, …, nm, K]` as cells of each axis: whole slices live or die.

        A slot that varies along several axes is defined anew as one atom for each of them.
        """
        *sizes, slots = cells.shape
        parts: list[list[np.ndarray]] = [[] for _ in sizes]
        for k in range(slots):
            values = cells[..., k]
            varies = [p for p, n in enumerate(sizes) if n > 1 and (values != values.take([0], axis=p)).any()]
            if not varies:
                self.pin(values.reshape(-1)[:1], f"without it nothing is left of {where}")
            elif len(varies) == 1:
                line = values[tuple(slice(None) if p == varies[0] else 0 for p in range(len(sizes)))]
                parts[varies[0]].append(line[:, None])
            else:
                for p, made in zip(varies, self._split(values, varies)):
                    parts[p].append(made)
        return [self.resolve(np.concatenate(found, 1)) if found else None for found in parts]

    def _split(self, values: np.ndarray, axes: Sequence[int]) -> list[Cells]:
        """Fresh atoms along each of `axes`; every atom in `values` becomes the set of its coordinates' atoms."""
        made = [self.fresh(values.shape[p]) for p in axes]
        values = values[tuple(slice(None) if p in axes else 0 for p in range(values.ndim))]
        coordinates = np.meshgrid(*(cells[:, 0] for cells in made), indexing="ij")
        rows = np.stack([values, *coordinates], -1).reshape(-1, 1 + len(made))
        rows = rows[np.argsort(rows[:, 0], kind="stable")]  # by atom, then by coordinates
        self.pin(rows[rows[:, 0] == 0, 1:], "grid with a part that is always needed")
        rows = rows[rows[:, 0] != 0]
        _, first, back = np.unique(rows[:, 0], return_index=True, return_inverse=True)
        for i in range(len(axes)):  # an atom in several cells: their rows are one row, their columns one column
            pairs = np.unique(np.stack([rows[first[back], i + 1], rows[:, i + 1]], 1), axis=0)
            for x, y in pairs[pairs[:, 0] != pairs[:, 1]]:
                self.unite(int(x), int(y))
        for atom, *parts in rows[first]:
            self._unify_cell(np.array([atom]), np.array(parts))
        return made


def _partition(column: np.ndarray) -> np.ndarray:
    """Which positions share a value, by the first one that has it."""
    _, first, back = np.unique(column, return_index=True, return_inverse=True)
    return first[back.reshape(-1)]


def _pack(cells: Cells, k: int) -> Cells:
    """The k filled slots of each row, in order."""
    if cells.shape[1] == k:
        return cells
    order = np.argsort(cells == 0, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cells, order, 1)


def _tidy(cells: np.ndarray) -> Cells | None:
    """Drop repeated atoms of a row, then empty slots; None when nothing is left."""
    if cells.shape[1] > 1:
        cells = cells.copy()
        for j in range(1, cells.shape[1]):
            cells[(cells[:, :j] == cells[:, j : j + 1]).any(1), j] = 0
        width = int((cells > 0).sum(1).max(initial=0))
        if width == 0:
            return None
        filled = cells.any(0)
        cells = cells[:, filled] if filled.sum() == width else _pack(cells, width)
        return cells
    return cells if cells.any() else None


def join(*parts: Cells | None) -> Cells | None:
    """Cells of positions that need all of several: slots side by side."""
    some = [p for p in parts if p is not None]
    return np.concatenate(some, 1) if some else None


def stack(parts: Sequence[Cells | None], sizes: Sequence[int]) -> Cells | None:
    """Cells one after the other along an axis (Concat); parts without labels always live."""
    width = max((p.shape[1] for p in parts if p is not None), default=0)
    if not width:
        return None
    out = np.zeros((sum(sizes), width), np.int64)
    at = 0
    for part, size in zip(parts, sizes):
        if part is not None:
            out[at : at + size, : part.shape[1]] = part
        at += size
    return out
