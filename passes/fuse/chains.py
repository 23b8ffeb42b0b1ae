"""Chains of equal recurrent steps, found from the last: each reads the state of the one before and the next slice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ..operands import given_axes, slice_bounds
from ..rewrite import Rewriter, same_sizes
from .cells import Product, Step, gru, lstm, rnn

_PARSERS = {"LSTM": lstm, "GRU": gru, "RNN": rnn}


@dataclass(frozen=True)
class Place:
    """The slice at one index of a tensor's axis, the axis gone."""

    source: Any
    axis: int
    index: int


@dataclass
class Chain:
    """Steps in order, each fed with the state of the one before it.

    gates: products of x and of h, a pair a gate. at: where the x of each step comes from. h, c: first states; None
    for zeros.
    """

    steps: list[Step]
    gates: list[tuple[Product, Product]]
    at: list[Place]
    h: Any = None
    c: Any = None
    inside: set[int] = field(default_factory=set)

    @property
    def size(self) -> int:
        """Number of units."""
        return self.gates[0][0].size


def steps_at(rw: Rewriter, node: gs.Node) -> Iterator[Step]:
    """What this Tanh may be part of: the end of an LSTM's step, the new state of a GRU, an RNN."""
    ends = [("RNN", node.outputs[0])]
    for user in rw.readers(node.outputs[0]):
        ends += [(op, user.outputs[0]) for op, by in (("LSTM", "Mul"), ("GRU", "Add")) if user.op == by]
        if user.op == "Mul":
            ends += [("GRU", u.outputs[0]) for u in rw.readers(user.outputs[0]) if u.op == "Add"]
    for op, h in ends:
        step = _PARSERS[op](rw, h)
        if step is not None:
            yield step


def goes_on(rw: Rewriter, step: Step) -> bool:
    """Whether the next step reads this one's state: the chain is found from its last."""
    weights = {id(p.weight) for g in step.gates for p in g.products}
    users = rw.readers(step.h)
    users += [u for user in users if user.op == "Concat" for u in rw.readers(user.outputs[0])]
    return any(u.op in ("Gemm", "MatMul") and id(u.inputs[1]) in weights for u in users)


def chain_before(rw: Rewriter, last: Step) -> Chain | None:
    """The longest chain that ends with a step; None when that is the step alone."""
    step = _before(rw, last)
    gates = None if step is None else _divided(last, step.h)
    place = None if gates is None else _place(rw, gates[0][0].input)
    if step is None or gates is None or place is None:
        return None
    chain = Chain([last], gates, [place])
    while True:
        earlier = _before(rw, step)
        pairs = None if earlier is None else _divided(step, earlier.h)
        first = pairs is None
        pairs = _first(step, chain) if pairs is None else pairs
        place = None if pairs is None else _place(rw, pairs[0][0].input)
        if pairs is None or place is None or not _same(chain, step, pairs, place):
            break
        chain.steps.append(step)
        chain.at.append(place)
        if earlier is None or first:
            chain.h = pairs[0][1].input
            break
        step = earlier
    if chain.h is None:
        chain.h = step.h  # the step before is another one, whose state is the first
    chain.steps.reverse()
    chain.at.reverse()
    chain.c = chain.steps[0].c_before
    return chain if len(chain.steps) > 1 else None


def _before(rw: Rewriter, step: Step) -> Step | None:
    """The step whose state this one reads."""
    for tensor in {id(p.input): p.input for p in step.gates[0].products}.values():
        found = _PARSERS[step.op](rw, tensor)
        said = step.h_before is None or step.h_before is tensor
        if found is not None and found.c is step.c_before and said:
            return found
    return None


def _divided(step: Step, h: Any) -> list[tuple[Product, Product]] | None:
    """For each gate its product of x and its product of the state `h`."""
    pairs = []
    for gate in step.gates:
        of_h = [p for p in gate.products if p.input is h]
        of_x = [p for p in gate.products if p.input is not h]
        if len(of_h) != 1 or len(of_x) != 1:
            return None
        pairs.append((of_x[0], of_h[0]))
    alike = len({id(x.input) for x, _ in pairs}) == 1 and len({x.size for x, _ in pairs}) == 1
    return pairs if alike else None


def _first(step: Step, chain: Chain) -> list[tuple[Product, Product]] | None:
    """The same for a step that nothing of the kind comes before: its state is what the known weights multiply.

    Where that was zero, its product has been folded away.
    """
    known = {h.key for _, h in chain.gates}
    states = {id(p.input): p.input for g in step.gates for p in g.products if p.key in known}
    if len(states) == 1:
        return _divided(step, next(iter(states.values())))
    if states or any(len(g.products) != 1 for g in step.gates):
        return None
    zero = gs.Variable.empty()
    if step.h_before is not None and not is_zero(step.h_before):
        return None
    return [(g.products[0], replace(h, input=zero)) for g, (_, h) in zip(step.gates, chain.gates)]


def _same(chain: Chain, step: Step, pairs: list[tuple[Product, Product]], place: Place) -> bool:
    """Whether a step has the weights of the chain, and its x the place before."""
    known, last = chain.steps[0], chain.at[-1]
    keys = [(x.key, h.key) for x, h in chain.gates]
    if keys != [(x.key, h.key) for x, h in pairs] or place.source is not last.source or place.axis != last.axis:
        return False
    move = last.index - place.index
    if abs(move) != 1 or (len(chain.at) > 1 and chain.at[-2].index - last.index != move):
        return False
    return _equal(bias_of(known), bias_of(step))


def bias_of(step: Step) -> np.ndarray:
    """All that is added, [2, gates · units]: outside, and inside the reset."""
    size = step.gates[0].width
    rows = np.concatenate([np.broadcast_to(g.bias, (size,)) for g in step.gates])
    inside = np.zeros_like(rows)
    if step.late is not None:
        inside[-size:] = step.late
    return np.stack([rows, inside])


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal but for the order of sums of two."""
    return bool(np.allclose(a, b, rtol=1e-6, atol=1e-7 * float(np.abs(a).max(initial=0))))


def _place(rw: Rewriter, tensor: Any) -> Place | None:
    """A matrix as a slice of a tensor of three axes."""
    gather = rw.maker(tensor, "Gather")
    if gather is not None:
        return _indexed(rw, gather, gather.inputs[1]) if rw.rank(gather.inputs[1]) == 0 else None
    node = rw.maker(tensor, "Squeeze", "Reshape")
    part = None if node is None else rw.maker(node.inputs[0], "Gather", "Slice", "Split")
    shape = None if node is None else rw.shape(node.inputs[0])
    if node is None or part is None or shape is None or len(shape) != 3:
        return None
    found = _single(rw, part, node.inputs[0])
    if found is None or shape[found.axis] != 1:
        return None
    axes = given_axes(rw, node) if node.op == "Squeeze" else None
    rest = [d for k, d in enumerate(shape) if k != found.axis]
    gone = axes is not None and [a % 3 for a in axes] == [found.axis]
    return found if gone or (node.op == "Reshape" and same_sizes(rest, rw.shape(tensor))) else None


def _indexed(rw: Rewriter, node: gs.Node, index: Any) -> Place | None:
    at, shape = rw.ints(index), rw.shape(node.inputs[0])
    if at is None or len(at) != 1 or shape is None or len(shape) != 3:
        return None
    return _checked(node.inputs[0], shape, node.attrs.get("axis", 0) % 3, at[0])


def _single(rw: Rewriter, part: gs.Node, tensor: Any) -> Place | None:
    """The one index that a part of a tensor is of."""
    if part.op == "Gather":
        return _indexed(rw, part, part.inputs[1])
    shape = rw.shape(part.inputs[0])
    if shape is None or len(shape) != 3:
        return None
    if part.op == "Slice":
        bounds = slice_bounds(rw, part)
        if bounds is None or len(bounds[2]) != 1:
            return None
        return _checked(part.inputs[0], shape, bounds[2][0] % 3, bounds[0][0])
    axis = part.attrs.get("axis", 0) % 3
    sizes = [rw.shape(t) for t in part.outputs]
    if any(s is None or s[axis] != 1 for s in sizes):
        return None
    return _checked(part.inputs[0], shape, axis, next(k for k, t in enumerate(part.outputs) if t is tensor))


def _checked(source: Any, shape: list[Any], axis: int, index: int) -> Place | None:
    if index < 0:
        index = index + shape[axis] if isinstance(shape[axis], int) else -1
    return Place(source, axis, index) if index >= 0 and axis < 2 else None


def is_zero(tensor: Any) -> bool:
    """Whether a tensor is a constant of zeros."""
    return isinstance(tensor, gs.Constant) and not np.any(tensor.values)
