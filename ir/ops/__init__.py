"""Facts about operators: one entry an operator, one file a family; every analysis is generic over them."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from . import conv, elementwise, matmul, moves, other, reduce
from .facts import UNKNOWN, Facts, Quant, SizeOf, Table, Weight
from .flow_rules import flow_rule
from .reduce import trains

TABLE = Table()
for _family in (conv, matmul, elementwise, moves, reduce, other):
    TABLE.add(_family.FACTS)


def facts(node: gs.Node) -> Facts:
    """The facts about a node's operator; `UNKNOWN` (hands off) where there are none."""
    return TABLE.find(node)


__all__ = ["TABLE", "UNKNOWN", "Facts", "Quant", "SizeOf", "Table", "Weight", "facts", "flow_rule", "trains"]
