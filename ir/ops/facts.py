"""The vocabulary in which operators are described, and the table of descriptions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs

SizeOf = Callable[[Any], "tuple[int, ...] | None"]


@dataclass(frozen=True)
class Weight:
    """Where a layer keeps its weight.

    index, bias: input positions. out_axis, in_axis: axes of the weight that count output and input channels (per
    group). groups: number of groups. transposed: the weight maps outputs to inputs (ConvTranspose).
    """

    index: int
    out_axis: int
    in_axis: int
    bias: int | None = None
    groups: int = 1
    transposed: bool = False


@dataclass(frozen=True)
class Quant:
    """How an operator takes part in 8-bit inference.

    inputs: positions of activations to quantize. shares: the output has the scale of the (united) inputs, because
    values only move. fixed: range of the output, whatever comes in. weighted: input 1 is a weight.
    """

    inputs: tuple[int, ...] = (0,)
    shares: bool = False
    fixed: tuple[float, float] | None = None
    weighted: bool = False


def _no_weight(node: gs.Node) -> Weight | None:
    return None


def _no_macs(node: gs.Node, sizes: SizeOf) -> int:
    return 0


def _nothing_packed(node: gs.Node) -> Mapping[int, int]:
    return {}


@dataclass(frozen=True)
class Facts:
    """What is known about an operator. Every default is the safe one.

    kind: "weighted", "elementwise", "move", "pool", "reduce", "normalise", "recurrent", "control", "quantize",
        "source", "sequence" or "opaque" (nothing is known: hands off).
    weight: where a node keeps its weight, or None. macs: multiply-accumulates of one run.
    packed: {input position: number of values} of constants that hold several values in an element.
    quant: its part in 8-bit inference, or None. random: two runs may differ, so it is never folded or merged.
    """

    op: str
    kind: str = "opaque"
    domain: str = ""
    weight: Callable[[gs.Node], Weight | None] = _no_weight
    macs: Callable[[gs.Node, SizeOf], int] = _no_macs
    packed: Callable[[gs.Node], Mapping[int, int]] = _nothing_packed
    quant: Quant | None = None
    random: bool = False


UNKNOWN = Facts("?")


class Table:
    """Operators by (domain, name)."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], Facts] = {}

    def add(self, facts: Iterable[Facts]) -> None:
        """Enter descriptions; each operator is described once."""
        for row in facts:
            key = (row.domain, row.op)
            if key in self.rows:
                raise ValueError(f"operator {key} is described twice")
            self.rows[key] = row

    def find(self, node: gs.Node) -> Facts:
        """The facts about a node's operator, `UNKNOWN` where there are none."""
        domain = node.domain or ""
        return self.rows.get(("" if domain == "ai.onnx" else domain, node.op), UNKNOWN)
