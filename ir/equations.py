"""Equations of Einsum, letter by letter."""

from __future__ import annotations

import string
from collections.abc import Sequence


def split(equation: str | bytes) -> tuple[list[str], str | None]:
    """The terms as they are written, without spaces, and that of the output (None where it is left out)."""
    text = (equation.decode() if isinstance(equation, bytes) else str(equation)).replace(" ", "")
    left, arrow, right = text.partition("->")
    return left.split(","), right if arrow else None


def terms(equation: str | bytes, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The terms of an equation and its output, for operands of these ranks.

    Ellipses become capitals (counted from the last axis), an output that is left out gets the letters that come once,
    in their order.
    """
    found, right = split(equation)
    left = ",".join(found)
    spare = [c for c in string.ascii_uppercase if c not in left + (right or "")]
    hidden = [rank - len(term.replace("...", "")) for rank, term in zip(ranks, found)]
    most = max((n for n, term in zip(hidden, found) if "..." in term), default=0)
    capitals = "".join(spare[:most])
    if right is None:
        once = sorted(c for c in set(left) - set(",.") if left.count(c) == 1)
        right = "..." * ("..." in left) + "".join(once)
    found = [term.replace("...", capitals[most - n :] if n else "") for term, n in zip(found, hidden)]
    return found, right.replace("...", capitals)
