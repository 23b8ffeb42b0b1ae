"""What a pass is: a frozen dataclass whose fields are its options, and the result it hands back.

The pipeline owns everything around a pass (snapshot, verification, numerics, timing, roll-back); a pass only
edits the model in place and says what it did and what it left alone, with reasons.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    import numpy as np

    from ..ir import Model
    from ..runtime.feeds import Feeds
    from ..runtime.latency import Timings
    from .target import Target

T = TypeVar("T")


@dataclass(frozen=True)
class Skip:
    """A node that a pass left alone, and why."""

    node: str
    reason: str


@dataclass(frozen=True)
class PassResult:
    """What a pass did.

    changed: whether the model differs from what came in.
    did: counts for the report, `{"channels removed": 512}`; values are int, float or str.
    skipped: refusals with reasons.
    details: JSON-ready extra for the report (per-layer tables and the like).
    """

    changed: bool
    did: Mapping[str, int | float | str] = field(default_factory=dict)
    skipped: tuple[Skip, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Context:
    """What a pass may know about the run.

    fit: feeds to compute statistics on; check: feeds that only numerics and decisions under limits see.
    source: "data" for the user's feeds, "random" for seeded random ones (nothing real was seen).
    original: the model as the user gave it (after `simplify`, if that ran first); never edited.
    exclude: node names matching are left alone by lossy passes.
    threads: of timed sessions. jobs: cores to work on where nothing is timed (see `workers`).
    follows: names of the passes that come after the running one.
    gammas: |gamma| of the user's batch norms by tensor (see `gammas.gammas`), since `simplify` fuses them.
    own_db: output SQNR that the running pass may fall to by itself, where the user gave a limit; -inf where not.
    """

    target: Target
    fit: Feeds
    check: Feeds
    source: str
    original: Model
    timings: Timings
    seed: int = 0
    memory_mb: int = 512
    threads: int = 1
    jobs: int = 1
    exclude: re.Pattern[str] | None = None
    follows: tuple[str, ...] = ()
    gammas: Mapping[str, np.ndarray] = field(default_factory=dict)
    own_db: float = -math.inf
    on_note: Callable[[str], None] = lambda text: None
    on_progress: Callable[[Iterable[Any], str, int | None], Iterable[Any]] = lambda items, label, total: items

    @property
    def workers(self) -> int:
        """Threads of sessions that collect statistics; those that are timed have `threads`."""
        return max(self.threads, self.jobs)

    def excluded(self, node: Any) -> bool:
        """Whether the user asked to leave this node alone (`--exclude REGEX`, searched in the node's name)."""
        return bool(self.exclude and self.exclude.search(node.name))

    def note(self, text: str) -> None:
        """Tell the user one line that matters (shown once, kept in the report)."""
        self.on_note(text)

    def progress(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Iterate while showing progress."""
        return iter(self.on_progress(items, label, total))


@dataclass(frozen=True)
class Pass:
    """Base of all passes. Subclass as a frozen dataclass, set `name`, write `run`."""

    name: ClassVar[str] = ""
    raises_opset: ClassVar[bool] = False

    def run(self, model: Model, ctx: Context) -> PassResult:
        """Edit `model` in place."""
        raise NotImplementedError


@dataclass(frozen=True)
class LossyPass(Pass):
    """A pass that trades accuracy for size or time, at a strength that the solver chooses.

    `plan` collects what is expensive, once, on the model as it is, without editing it. `apply` may then be called
    several times, each time on a fresh copy of that same model, with different strengths: 0 < strength <= 1, damage
    grows with strength, and strength 1 is the most that the options allow (for `ratio=0.3`: exactly 0.3).

    default_sqnr: dB that the outputs keep when nobody gave a limit or an amount; None for a pass that is kept as soon
    as it pays in time or size (only a collapse of the outputs is refused).
    """

    default_sqnr: ClassVar[float | None] = 20.0

    @property
    def explicit(self) -> bool:
        """Whether the user gave the amount, so that without limits strength 1 is applied unweakened."""
        return False

    def plan(self, model: Model, ctx: Context) -> Any:
        """Statistics and candidates for `apply`. Must not edit the model."""
        raise NotImplementedError

    def apply(self, model: Model, plan: Any, strength: float, ctx: Context) -> PassResult:
        """Edit `model` in place at the given strength."""
        raise NotImplementedError

    def run(self, model: Model, ctx: Context) -> PassResult:
        """Plan and apply at full strength."""
        return self.apply(model, self.plan(model, ctx), 1.0, ctx)
