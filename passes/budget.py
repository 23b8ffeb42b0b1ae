"""How much damage a lossy pass may do: the limits of the user, shared out over the passes that are still to come.

With limits, each lossy pass may use an equal share of what is left, as noise power (which adds up over passes that
err independently) and as metric drop; what it leaves over is there for the next. Without limits, `prune` and
`lowrank` together keep the outputs at 20 dB where nobody said how much, and an amount that the user gave is
applied as asked. Without real data, they change only what changes next to nothing; passes that are judged by what
they save (`default_sqnr` None) must only not ruin the outputs, with data or without.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .base import LossyPass, Pass

DEFAULT_DB = 20.0
"""Output SQNR that lossy passes keep when nobody says how much: 10 % of the signal's amplitude."""
COLLAPSE_DB = 10.0
"""What a pass that is judged by speed alone (`default_sqnr = None`) must keep: below, the output is mostly noise."""
LOSSLESS_DB = 60.0
"""What counts as lossless on random feeds, when no real data was seen: float rounding stays above."""
EXACT_DB = 50.0
"""What an exact pass must keep beside the model before it: rounding in another order stays far above."""
TIES_DB = 20.0
"""The same for outputs that are not floats (indices, classes): rounding may turn 1 % of ties the other way."""
MORE_DB = 1.0
"""How far below the present SQNR a pass may go without limits when the present is below the default already."""


@dataclass(frozen=True)
class Limits:
    """What the user allows, at most.

    max_drop: fraction of the original's metric (0.01 is one percent); without a metric, of the worst output: share of
        changed classes where it has them, else relative error.
    min_sqnr: dB, for the worst output.
    """

    max_drop: float | None = None
    min_sqnr: float | None = None

    @property
    def given(self) -> bool:
        """Whether there is any limit."""
        return self.max_drop is not None or self.min_sqnr is not None


@dataclass(frozen=True)
class Allowance:
    """What one pass may take the whole run to: SQNR not below, drop not above. None means not limited.

    blind: it may be used where no output can be compared (`Numerics.blind`).
    """

    sqnr_db: float | None = None
    drop: float | None = None
    blind: bool = False


@dataclass(frozen=True)
class Spent:
    """Where the model is already, beside the original."""

    sqnr_db: float = math.inf
    drop: float = 0.0


def allowance(p: LossyPass, later: Sequence[Pass], spent: Spent, limits: Limits, real: bool) -> Allowance:
    """What `p` may do, with the passes `later` still to come.

    real: whether the user's data or metric was seen; without, an amount that has a default (`default_sqnr`) and that
        the user did not ask for stays lossless.
    """
    if limits.given:
        left = 1 + sum(isinstance(q, LossyPass) for q in later)
        floor = None if limits.min_sqnr is None else share_db(limits.min_sqnr, spent.sqnr_db, left)
        drop = None if limits.max_drop is None else share_drop(limits.max_drop, spent.drop, left)
        return Allowance(floor, drop)
    if p.explicit:
        return Allowance()
    if p.default_sqnr is None:
        # without data such passes only store weights in fewer bits, as the user asked by naming them
        return Allowance(min(COLLAPSE_DB, spent.sqnr_db - 3 * MORE_DB), blind=not real)
    if not real:
        return Allowance(min(LOSSLESS_DB, spent.sqnr_db - MORE_DB))
    left = 1 + sum(isinstance(q, LossyPass) and not q.explicit and q.default_sqnr is not None for q in later)
    return Allowance(min(share_db(p.default_sqnr, spent.sqnr_db, left), spent.sqnr_db - MORE_DB))


def share_db(limit: float, now: float, left: int) -> float:
    """The SQNR after which `left - 1` passes of equal noise still end at `limit`; `limit` itself once it is passed."""
    total, used = noise(limit), noise(now)
    return limit if used >= total else decibel(used + (total - used) / left)


def own_db(limit: float, now: float) -> float:
    """The SQNR of the noise that takes a model from `now` to `limit`; -inf where it is below the limit already."""
    spare = noise(limit) - noise(now)
    return decibel(spare) if spare > 0 else -math.inf


def share_drop(limit: float, now: float, left: int) -> float:
    """The drop that leaves `left - 1` later passes the same share of what remains."""
    return limit if now >= limit else now + (limit - now) / left


def noise(sqnr_db: float) -> float:
    """Noise power as a fraction of the signal's."""
    return 0.0 if sqnr_db == math.inf else 10.0 ** (-max(sqnr_db, -200.0) / 10)


def decibel(fraction: float) -> float:
    """SQNR of a noise fraction."""
    return math.inf if fraction <= 0 else -10 * math.log10(fraction)
