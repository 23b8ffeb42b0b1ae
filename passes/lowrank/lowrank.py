"""The pass: which layers, in which form, at which rank, and what the report says about each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from ...ir import Model
from ...ir.errors import OptionError
from ..base import Context, LossyPass, PassResult, Skip
from . import choose, planning
from .assemble import assemble
from .forms import Channel, ChannelIn, Form, Separable, Spatial, SpatialT, Svd
from .goal import Goal
from .heads import Heads
from .refit import refit
from .tensor_forms import Cp, Tucker2

if TYPE_CHECKING:
    from .planning import Plan, Split

FORMS: dict[str, Form] = {
    f.name: f for f in (Svd(), Channel(), ChannelIn(), Spatial(), SpatialT(), Separable(), Tucker2(), Cp(), Heads())
}
DEFAULT_FORMS = ("svd", "channel", "channel_in", "spatial", "spatial_t", "separable", "tucker2")


@dataclass(frozen=True)
class LowRank(LossyPass):
    """Split layers into low-rank chains that lose little of their output and are measurably faster.

    The output error is minimised on the data's second moments, not on the weights. The form and rank of every layer
    are chosen by damage to the model's output for what is saved: under the budgets macs, params and speedup (which
    may be combined), or, without any amount, under the run's limits. A layer stays whole where no chain beats it by
    `min_gain` on this machine's clock.
    """

    name: ClassVar[str] = "lowrank"

    rank: float | None = field(
        default=None, metadata={"help": "rank of every split; below 1 a share of the full rank", "min": 1e-6}
    )
    energy: float | None = field(
        default=None, metadata={"help": "share of each layer's output energy to keep, e.g. 0.98", "min": 0, "max": 1}
    )
    evbmf: bool = field(default=False, metadata={"help": "ranks by empirical variational Bayes on the weights"})
    macs: float | None = field(
        default=None, metadata={"help": "share of the model's MACs to remove", "min": 1e-6, "max": 0.99}
    )
    params: float | None = field(
        default=None, metadata={"help": "share of the model's parameters to remove", "min": 1e-6, "max": 0.99}
    )
    speedup: float | None = field(
        default=None, metadata={"help": "how many times faster the model is to run, measured here, e.g. 1.3", "min": 1}
    )
    forms: tuple[str, ...] = field(
        default=(), metadata={"help": f"forms to try, joined by +: {'+'.join(FORMS)}; all but cp and heads when empty"}
    )
    min_gain: float = field(
        default=0.08,
        metadata={"help": "share of a layer's time that a split must save; negative: MACs decide, nothing is timed"},
    )
    relu: bool = field(
        default=False,
        metadata={"help": "fit to what comes behind a ReLU; slow, kept layer by layer where unseen rows gain"},
    )
    refit: bool = field(
        default=False,
        metadata={
            "help": "solve last factors again on the compressed model's inputs; slow, kept only where outputs gain"
        },
    )

    def __post_init__(self) -> None:
        given = [n for n in ("rank", "energy", "evbmf") if getattr(self, n) not in (None, False)]
        if given and self.goal.given:
            given.append(next(n for n in ("macs", "params", "speedup") if getattr(self, n) is not None))
        if len(given) > 1:
            raise OptionError(f"lowrank: give one of {' and '.join(given)}, not both")
        unknown = [f for f in self.forms if f not in FORMS]
        if unknown:
            raise OptionError(f"lowrank: unknown form {unknown[0]!r}; there are: {', '.join(FORMS)}")
        if self.min_gain >= 1:
            raise OptionError(f"lowrank: min_gain={self.min_gain:g} can never be met; give a share below 1")

    @property
    def explicit(self) -> bool:
        """Whether a rank, an energy or a budget says how much."""
        return self.ranked or self.goal.given

    @property
    def ranked(self) -> bool:
        """Whether rank, energy or evbmf says which rank every layer gets."""
        return self.rank is not None or self.energy is not None or self.evbmf

    @property
    def goal(self) -> Goal:
        """The budgets."""
        return Goal(self.macs, self.params, self.speedup)

    def plan(self, model: Model, ctx: Context) -> Plan:
        """Moments, candidates with errors and times, sensitivities, and the factors of every option on a hull."""
        if ctx.source == "random" and not self.explicit:
            ctx.note(
                "lowrank: held back, because no real data was given to measure what a split loses; "
                "give --data, or an amount such as lowrank:rank=0.5"
            )
            return planning.nothing("held back: no data")
        if ctx.source == "random":
            ctx.note("lowrank: no data was given, so weights are decomposed as they are; outputs may suffer")
        return planning.make(model, ctx, self, [FORMS[n] for n in self.forms or DEFAULT_FORMS])

    def apply(self, model: Model, plan: Plan, strength: float, ctx: Context) -> PassResult:
        """Split the layers that `strength` reaches, cheapest damage per millisecond first."""
        chosen = choose.prefix(plan.steps, strength)
        before, done = model.copy(), assemble(model, plan.layers, chosen)
        rows: list[dict[str, Any]] = []
        for name, found in plan.layers.items():
            if name in chosen:
                rows.append(_row(name, found, found.splits[chosen[name]], plan.samples))
            else:
                reason = found.reason or "not reached at this strength"
                rows += [{"layer": member, "skipped": reason} for member in found.names]
        after = refit(before, model, done, plan.macs, ctx) if self.refit else {}
        rows = [{**r, "error_in_place": after[r["layer"]]} if r["layer"] in after else r for r in rows]
        if plan.reason:
            ctx.note(f"lowrank: {plan.reason}")
        skipped = tuple(Skip(r["layer"], r["skipped"]) for r in rows if "skipped" in r)
        return PassResult(bool(chosen), _did(rows), skipped, {"layers": rows})


def _row(name: str, found: planning.Found, split: Split, samples: int) -> dict[str, Any]:
    """What became of a layer; MACs are those of one sample, as in the whole report."""
    return {
        "layer": name,
        "with": list(found.names[1:]),
        "form": split.form.name,
        "rank": list(split.option.rank),
        "error": split.option.error,
        "error_unseen": split.unseen,
        "error_behind_relu": None if split.behind is None else list(split.behind),
        "damage": split.option.damage,
        "macs_before": found.macs // samples,
        "macs_after": split.option.macs // samples,
        "params_before": found.params,
        "params_after": split.option.params,
        "ms_before": found.ms,
        "ms_after": split.option.ms,
    }


def _did(rows: Sequence[Mapping[str, Any]]) -> dict[str, int | float | str]:
    done = [r for r in rows if "form" in r]
    if not done:
        return {"layers split": 0}
    out: dict[str, int | float | str] = {
        "layers split": sum(1 + len(r["with"]) for r in done),
        "MACs removed": sum(r["macs_before"] - r["macs_after"] for r in done),
    }
    if all(r["ms_before"] is not None for r in done):
        out["ms saved (layers alone)"] = round(sum(r["ms_before"] - r["ms_after"] for r in done), 3)
    return out
