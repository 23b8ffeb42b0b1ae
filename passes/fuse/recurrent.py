"""Unrolled LSTM, GRU and RNN: a chain of equal steps over slices of one tensor becomes one operator.

The operator does the same products and activations in its own order, so results differ by float rounding. It multiplies
the inputs of all steps at once, and needs no operator for each gate and step: with ONNX Runtime 1.32 on one core 1.0 to
3.5 times as fast as LSTM and GRU cells spelled out. Its RNN takes 0.4 to 0.6 times the speed for batches, and 0.8 times
where weights do not stay in the cache, so there it is left to `compact`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from ..operands import given_axes
from ..rewrite import Outcome, Rewriter, Rule, same_sizes
from .chains import Chain, bias_of, chain_before, goes_on, is_zero, steps_at

# RNN cells of more units than this are not slower spelled out (512: 1.2 times slower, 1024: 0.8 times).
_UNITS = 512


def _fast(rw: Rewriter, node: gs.Node) -> Outcome:
    """The steps that end with the one of this Tanh, where the operator is no slower."""
    return _roll(rw, node, lambda chain: _pays(rw, chain))


def _any(rw: Rewriter, node: gs.Node) -> Outcome:
    """The steps that end with the one of this Tanh."""
    return _roll(rw, node, lambda _: True)


def _pays(rw: Rewriter, chain: Chain) -> bool:
    last = chain.steps[-1]
    return last.op != "RNN" or (chain.size <= _UNITS and rw.shape(last.h)[0] == 1)  # type: ignore[index]


def _roll(rw: Rewriter, node: gs.Node, wanted: Callable[[Chain], bool]) -> Outcome:
    for step in steps_at(rw, node):
        if goes_on(rw, step):
            continue
        chain = chain_before(rw, step)
        if chain is None or not _fits(rw, chain) or not wanted(chain):
            continue
        reason = _refusal(rw, chain)
        return reason or _write(rw, node, chain)
    return None


def _fits(rw: Rewriter, chain: Chain) -> bool:
    """Whether shapes and types are known to be those of the operator; first states of zeros are left out."""
    last, size, (x, h) = chain.steps[-1], chain.size, chain.gates[0]
    source = rw.shape(chain.at[0].source)
    if source is None or np.dtype(last.h.dtype or np.int8) != np.float32 or rw.opset < 10:
        return False
    state = [source[1 - chain.at[0].axis], size]
    if state[0] is None or not isinstance(source[2], int) or not same_sizes(rw.shape(last.h), state):
        return False
    if any(p.size != size for pair in chain.gates for p in pair) or x.depth != source[2] or h.depth != size:
        return False
    chain.h, chain.c = (None if t is None or _is_zero(rw, t) else t for t in (chain.h, chain.c))
    return all(t is None or same_sizes(rw.shape(t), state) for t in (chain.h, chain.c))


def _is_zero(rw: Rewriter, tensor: Any) -> bool:
    filled = rw.maker(tensor, "ConstantOfShape") if tensor.name else None
    if filled is not None:
        value = filled.attrs.get("value")
        return value is None or not np.any(value.values)
    return not tensor.name or is_zero(tensor)


def _refusal(rw: Rewriter, chain: Chain) -> str | None:
    """Why a chain stays although its steps are equal; notes the nodes that go."""
    nodes = [n for s in chain.steps for n in s.nodes]
    chain.inside = {id(n) for n in nodes}
    open_ends = {id(s.h) for s in chain.steps} | {id(chain.steps[-1].c)}
    if not rw.together(*nodes):
        return "its steps stand in different graphs"
    for tensor in (t for n in nodes for t in n.outputs if id(t) not in open_ends):
        if rw.is_output(tensor) or any(id(u) not in chain.inside for u in tensor.outputs):
            return f"'{tensor.name}' inside a step is read elsewhere too"
    for weight in (p.weight for pair in chain.gates for p in pair):
        if any(id(u) not in chain.inside for u in weight.outputs):
            return f"the weight '{weight.name}' is read elsewhere too"
    return None


def _write(rw: Rewriter, node: gs.Node, chain: Chain) -> Outcome:
    """Put the operator in, and let the readers of the states read its outputs."""
    writer = _Writer(rw, node, chain)
    stacks = list(_stacks(rw, chain))
    eaten = {id(u) for _, _, users in stacks for u in users}
    reads = [_is_read(rw, s.h, chain.inside | eaten) for s in chain.steps]
    last = chain.steps[-1]
    each = any(reads[:-1])  # then the last is one of them: so the next layer finds slices of one tensor
    end = last.c is not None and _is_read(rw, last.c, chain.inside)
    wanted = (bool(stacks) or each, reads[-1] and not each, end)
    if not any(wanted):
        return None
    y, h, c = writer.operator(*wanted)
    if y is not None:
        rows = writer.axis("Squeeze", y, 1, [y.shape[0], *y.shape[2:]])
        for concat, axis, _ in stacks:
            new = writer.stacked(rows, axis, concat)
            if not rw.replace(concat.outputs[0], new):
                rw.replace(concat.outputs[0], writer.made("Identity", [new], {}, new.shape))
        for k, step in enumerate(chain.steps):
            if each and reads[k]:
                rw.replace(step.h, writer.row(rows, chain.at[k].index - min(p.index for p in chain.at)))
    for old, new in ((last.c, c), (last.h, h)):
        if new is not None:
            rw.replace(old, writer.axis("Squeeze", new, 0, new.shape[1:]))
    return True


def _is_read(rw: Rewriter, tensor: Any, inside: set[int]) -> bool:
    return rw.is_output(tensor) or any(id(u) not in inside for u in tensor.outputs)


def _stacks(rw: Rewriter, chain: Chain) -> Iterator[tuple[gs.Node, int, list[gs.Node]]]:
    """Concats of all states in the order of time: along a new axis (0, 1), or side by side (-1); and what they eat."""
    order = sorted(range(len(chain.at)), key=lambda k: chain.at[k].index)
    states = [chain.steps[k].h for k in order]
    for user in rw.readers(states[-1]):
        if user.op == "Concat" and _lists(user, states) and user.attrs.get("axis") in (1, -1):
            yield user, -1, [user]
        axes = given_axes(rw, user) if user.op == "Unsqueeze" and not user.domain else None
        for concat in rw.readers(user.outputs[0]) if axes is not None and len(axes) == 1 else ():
            made = [rw.maker(t, "Unsqueeze") for t in concat.inputs] if concat.op == "Concat" else []
            parts = [m for m in made if m is not None and given_axes(rw, m) == axes]
            if len(parts) < len(made) or not _lists(concat, [m.outputs[0] for m in parts]):
                continue
            same = len(parts) == len(states) and all(m.inputs[0] is h for m, h in zip(parts, states))
            if same and concat.attrs.get("axis", 0) % 3 == axes[0] % 3 and axes[0] % 3 < 2:  # type: ignore[index]
                yield concat, axes[0] % 3, [m for m in parts if rw.sole(m.outputs[0])]  # type: ignore[index]


def _lists(concat: gs.Node, tensors: list[Any]) -> bool:
    return len(concat.inputs) == len(tensors) and all(a is b for a, b in zip(concat.inputs, tensors))


@dataclass
class _Writer:
    """New nodes beside the last step."""

    rw: Rewriter
    node: gs.Node
    chain: Chain

    def made(self, op: str, inputs: list[Any], attrs: dict[str, Any], shape: list[Any]) -> Any:
        """The output of a new node."""
        out = self.rw.variable(self.chain.steps[-1].h, self.node.name, shape)
        return self.rw.insert(self.node, op, inputs, attrs, out)

    def axis(self, op: str, tensor: Any, axis: int, shape: list[Any]) -> Any:
        """Squeeze or Unsqueeze of one axis, in the form of the operator set."""
        if self.rw.opset < 13:
            return self.made(op, [tensor], {"axes": [axis]}, shape)
        axes = self.rw.constant(f"{self.node.name}_axes", np.array([axis], np.int64))
        return self.made(op, [tensor, axes], {}, shape)

    def operator(self, *wanted: bool) -> tuple[Any, Any, Any]:
        """The operator's outputs: all states, the last, the last of the cell; None for those not wanted."""
        rw, chain, last = self.rw, self.chain, self.chain.steps[-1]
        size, batch, count = chain.size, rw.shape(last.h)[0], len(chain.steps)  # type: ignore[index]
        weights = [np.concatenate([pair[k].matrix() for pair in chain.gates])[None] for k in (0, 1)]
        bias = bias_of(last).reshape(1, -1).astype(np.float32)
        inputs = [self.sequence(), *(rw.constant(f"{self.node.name}_weight", w) for w in weights)]
        inputs += [rw.constant(f"{self.node.name}_bias", bias) if np.any(bias) else None, None]
        inputs += [None if t is None else self.axis("Unsqueeze", t, 0, [1, batch, size]) for t in (chain.h, chain.c)]
        attrs: dict[str, Any] = {"hidden_size": size}
        attrs |= {"linear_before_reset": 1} if last.op == "GRU" else {}
        attrs |= {"direction": "reverse"} if chain.at[0].index > chain.at[-1].index else {}
        shapes: list[list[Any]] = [[count, 1, batch, size], [1, batch, size], [1, batch, size]]
        outs = [rw.variable(last.h, self.node.name, s) if w else None for s, w in zip(shapes, wanted)]
        while inputs[-1] is None:
            inputs.pop()
        listed = [gs.Variable.empty() if t is None else t for t in outs]
        made = rw.insert(self.node, last.op, inputs, attrs, listed[0]).inputs[0]
        kept = 1 + max(k for k, t in enumerate(outs) if t is not None)
        made.outputs.extend(listed[1:kept])
        return outs[0], outs[1], outs[2]

    def sequence(self) -> Any:
        """The inputs of all steps, [T, B, I]."""
        first, axis = min(p.index for p in self.chain.at), self.chain.at[0].axis
        tensor, count = self.chain.at[0].source, len(self.chain.steps)
        shape = self.rw.shape(tensor)
        if shape[axis] != count:  # type: ignore[index]
            bounds = [np.array([v], np.int64) for v in (first, first + count, axis)]
            shape = [count if k == axis else d for k, d in enumerate(shape)]  # type: ignore[arg-type]
            names = (self.rw.constant(f"{self.node.name}_{n}", v) for n, v in zip(("start", "end", "axis"), bounds))
            tensor = self.made("Slice", [tensor, *names], {}, shape)
        if axis == 0:
            return tensor
        return self.made("Transpose", [tensor], {"perm": [1, 0, 2]}, [shape[1], shape[0], shape[2]])  # type: ignore[index]

    def stacked(self, rows: Any, axis: int, concat: gs.Node) -> Any:
        """All states as a Concat had them."""
        count, batch, size = rows.shape
        if axis == 0:
            return rows
        turned = self.made("Transpose", [rows], {"perm": [1, 0, 2]}, [batch, count, size])
        if axis == 1:
            return turned
        target = self.rw.constant(f"{concat.name}_shape", np.array([0, count * size], np.int64))
        return self.made("Reshape", [turned, target], {}, [batch, count * size])

    def row(self, rows: Any, index: int) -> Any:
        """The state at one time."""
        at = self.rw.constant(f"{self.node.name}_index", np.array(index, np.int64))
        return self.made("Gather", [rows, at], {"axis": 0}, list(rows.shape[1:]))


RULES = (Rule("unrolled recurrence", ("Tanh",), _fast, since=10),)
COMPACT = (Rule("unrolled recurrence", ("Tanh",), _any, since=10),)
