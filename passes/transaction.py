"""One attempt at changing a model: on a copy, tidied, verified and measured, so that it can be kept or thrown away.

Whatever a pass does wrong happens to the copy. Weights are shared between the copies, so an attempt costs the
structure of the graph and the arrays that the pass makes anew.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..ir import cost, order, shapes, verify
from ..ir.errors import BadInput, MissingExtra, ModelError, PassError
from ..ir.spill import spill
from ..runtime.loading import is_large
from . import spec
from .base import Pass, PassResult

if TYPE_CHECKING:
    from ..ir import Model
    from ..runtime.latency import Latency
    from ..runtime.numerics import Numerics
    from .budget import Allowance
    from .judge import Judge

Work = Callable[["Model"], PassResult]


@dataclass
class Trial:
    """A changed copy of a model and what is known about it.

    strength: of a lossy pass, 0 < strength <= 1; None otherwise.
    reasons: why it may not be kept; empty when it may.
    """

    model: Model
    result: PassResult
    numerics: Numerics | None = None
    strength: float | None = None
    reasons: tuple[str, ...] = ()
    latency: Latency | None = None


@dataclass
class Step:
    """What became of one pass of a run.

    kept: whether the model was changed by it and the change stayed.
    reason: why it was rolled back or weakened; "" when it ran as asked.
    error: what it raised, as one line; "" when nothing (`cause` is the exception itself).
    automatic: the pipeline added it; the user did not list it.
    tried: the strengths that the solver tried, with what they gave.
    allowed: what it might take the run to; None for an exact pass.
    """

    p: Pass
    before: cost.Cost
    after: cost.Cost
    kept: bool = False
    result: PassResult = field(default_factory=lambda: PassResult(changed=False))
    numerics: Numerics | None = None
    seconds: float = 0.0
    peak_mb: float = 0.0
    strength: float | None = None
    reason: str = ""
    error: str = ""
    notes: tuple[str, ...] = ()
    latency: Latency | None = None
    tried: tuple[dict[str, Any], ...] = ()
    allowed: Allowance | None = None
    automatic: bool = False
    cause: Exception | None = None


def attempt(model: Model, work: Work, judge: Judge | None = None) -> Trial:
    """Run `work` on a copy; sort, infer shapes, verify, and compare with the original where there is a judge.

    An unchanged model comes back as it was, without the cost of measuring it again.
    """
    copy = model.copy()
    result = work(copy)
    if not result.changed:
        return Trial(model, result)
    tidy(copy)
    if is_large(copy):
        spill(copy)
    return Trial(copy, result, judge.numerics(copy) if judge else None)


def tidy(model: Model) -> None:
    """Put the nodes in order, infer shapes again, and verify. Raises ModelError when the model is broken."""
    order.sort(model)
    shapes.refresh(model)
    verify.check(model)


def adopt(model: Model, other: Model) -> None:
    """Make `model` hold what `other` holds, names handed out (which a model remembers) included."""
    vars(model).clear()
    vars(model).update(vars(other))


def failure(p: Pass, done: Sequence[Pass], error: Exception) -> PassError:
    """The error of a pass, with its options and what ran before it."""
    before = f"after {spec.show(done)}" if done else "as the first pass"
    text = " ".join(str(error).split()) or type(error).__name__
    kind = "" if isinstance(error, PassError | ModelError) else f"{type(error).__name__}: "
    return PassError(f"pass {spec.show(p)} failed {before}: {kind}{text}")


def is_users(error: Exception) -> bool:
    """Whether the user can mend what was raised (an option, the data, an extra), so that the run must not go on."""
    return isinstance(error, BadInput | MissingExtra) and not isinstance(error, ModelError)


def peak_mb() -> float:
    """The process's highest resident memory so far, in MiB.

    Linux's `ru_maxrss` begins with the peak of the process that started this one, so the kernel's own mark is read.
    """
    try:
        with open("/proc/self/status") as file:
            return round(next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024, 1)
    except (OSError, StopIteration):  # another system: KiB, on macOS bytes
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


class Stopwatch:
    """Seconds since it was made; for the report only, no decision reads it."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        """Elapsed wall-clock time."""
        return round(time.perf_counter() - self._start, 3)
