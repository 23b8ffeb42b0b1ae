"""What the user says about single layers: `layers=REGEX=HOW;REGEX=HOW`, searched in node names, the first match counts.

HOW is `float` (leave the node alone), `int8` (do not leave it float because it is loud), or a method of calibration for
what the node puts out.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from ...ir.errors import OptionError
from .calibrate import METHODS

HOWS = ("float", "int8", *METHODS)


@dataclass(frozen=True)
class Overrides:
    """Patterns in the order in which they were given."""

    rules: tuple[tuple[re.Pattern[str], str], ...] = ()

    @staticmethod
    def parse(text: str) -> Overrides:
        """Read `REGEX=HOW;REGEX=HOW`. Raises OptionError naming the part that is wrong."""
        rules = []
        for part in filter(None, (p.strip() for p in text.split(";"))):
            pattern, equals, how = part.rpartition("=")
            if not equals or how not in HOWS:
                raise OptionError(f"layers: {part!r} does not end in =HOW; HOW is one of {', '.join(HOWS)}")
            try:
                rules.append((re.compile(pattern), how))
            except re.error as error:
                raise OptionError(f"layers: {pattern!r} is no regular expression: {error}") from None
        return Overrides(tuple(rules))

    def of(self, name: str) -> str:
        """What was said about a node; "" when nothing was."""
        return next((how for pattern, how in self.rules if pattern.search(name)), "")

    def check(self, names: Collection[str], before: Collection[str]) -> list[str]:
        """Patterns that match none of a model's nodes, though they did `before` earlier passes. Raises OptionError for
        one that never did."""
        lost = [p for p, _ in self.rules if not any(p.search(n) for n in names)]
        for pattern in lost:
            if not any(pattern.search(n) for n in before):
                raise OptionError(f"quant: layers: {pattern.pattern} matches no node")
        return [p.pattern for p in lost]
