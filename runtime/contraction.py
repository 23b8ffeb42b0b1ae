"""An Einsum of data and a constant, read as matrix products: which axes are rows, groups, columns and outputs.

Letters that all of data, weight and output have count groups (one product each), those of data and output rows, of data
and weight what is summed over (the columns of a row), of weight and output the outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ..ir.equations import terms

Array = np.ndarray
Axes = tuple[int, ...]


@dataclass(frozen=True)
class Contraction:
    """x, w: positions of data and weight among the node's inputs. rows: axes of x and of y. groups: of x, w and y.
    columns: of x and w. outputs: of w and y. All in the order of the output; columns in that of the data."""

    x: int
    w: int
    rows: tuple[Axes, Axes]
    groups: tuple[Axes, Axes, Axes]
    columns: tuple[Axes, Axes]
    outputs: tuple[Axes, Axes]

    def matrices(self, weight: Array) -> Array:
        """The weight as `[G, M / G, K]`."""
        return weight.transpose(sum(self._of_weight, ())).reshape(self.counts(weight.shape))

    def counts(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Groups, outputs of a group and columns of a weight of this shape."""
        groups, outputs, columns = (int(np.prod([shape[a] for a in axes])) for axes in self._of_weight)
        return groups, outputs, columns

    def laid(self, matrices: Array, shape: tuple[int, ...]) -> Array:
        """The inverse of `matrices`, for a weight of this shape."""
        order = sum(self._of_weight, ())
        return matrices.reshape([shape[a] for a in order]).transpose(np.argsort(order))

    @property
    def made(self) -> Axes:
        """Axes of the output that count groups and outputs."""
        return self.groups[2] + self.outputs[1]

    @property
    def _of_weight(self) -> tuple[Axes, Axes, Axes]:
        return self.groups[1], self.outputs[0], self.columns[1]

    def unfolded(self, x: Array, positions: Array) -> Array:
        """[G, P, K]: what is multiplied at flat positions of the rows."""
        groups = int(np.prod([x.shape[a] for a in self.groups[0]], dtype=np.int64))
        picked = picked_rows(x, self.groups[0] + self.columns[0], positions, self.rows[0])
        return picked.reshape(len(positions), groups, -1).transpose(1, 0, 2)

    def count(self, shape: tuple[int, ...]) -> int:
        """Rows of data of this shape."""
        return int(np.prod([shape[a] for a in self.rows[0]], dtype=np.int64))


def picked_rows(tensor: Array, made: Axes, positions: Array, rest: Axes | None = None) -> Array:
    """Rows `[P, M]` of a tensor whose axes `made` are its columns, at flat positions over the others (in the order of
    `rest`)."""
    made = tuple(a % tensor.ndim for a in made)
    rest = tuple(a for a in range(tensor.ndim) if a not in made) if rest is None else rest
    moved = tensor.transpose(*rest, *made)
    if not rest:  # a vector is the one row there is
        return moved.reshape(1, -1)[positions]
    at = np.unravel_index(positions, moved.shape[: len(rest)])
    return moved[at].reshape(len(positions), -1)


def contraction(node: gs.Node) -> Contraction | None:
    """How an Einsum multiplies data with a constant; None where it is no such product.

    That is: not two operands of known rank of which one is constant, a letter twice in a term, a sum over letters of
    one operand alone, sizes that broadcast, or no rows.
    """
    if node.op != "Einsum" or len(node.inputs) != 2:
        return None
    constants = [k for k, t in enumerate(node.inputs) if isinstance(t, gs.Constant)]
    if len(constants) != 1 or any(t.shape is None for t in node.inputs):
        return None
    w = constants[0]
    (*both, y) = _letters(node)
    data, weight = both[1 - w], both[w]
    alone = (set(data) ^ set(weight)) - set(y)
    if alone or any(len(set(t)) != len(t) for t in (data, weight, y)) or not _alike(node, 1 - w, w, data, weight):
        return None
    groups = [c for c in y if c in data and c in weight]
    rows = [c for c in y if c in data and c not in weight]
    outputs = [c for c in y if c not in data]
    columns = [c for c in data if c not in y]
    if not rows or not columns:
        return None
    return Contraction(
        1 - w,
        w,
        (_at(rows, data), _at(rows, y)),
        (_at(groups, data), _at(groups, weight), _at(groups, y)),
        (_at(columns, data), _at(columns, weight)),
        (_at(outputs, weight), _at(outputs, y)),
    )


def _letters(node: gs.Node) -> list[str]:
    found, right = terms(node.attrs.get("equation", ""), [len(t.shape) for t in node.inputs])
    return [*found, right]


def _at(letters: list[str], term: str) -> Axes:
    return tuple(term.index(c) for c in letters)


def _alike(node: gs.Node, x: int, w: int, data: str, weight: str) -> bool:
    """Whether shared letters have one size as far as that is known."""
    pairs: list[tuple[Any, Any]] = [
        (node.inputs[x].shape[data.index(c)], node.inputs[w].shape[weight.index(c)]) for c in data if c in weight
    ]
    return all(int(b) == a if isinstance(a, (int, np.integer)) else int(b) > 1 for a, b in pairs)


__all__ = ["Contraction", "contraction", "picked_rows"]
