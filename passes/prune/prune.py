"""The pass: remove channels, neurons, heads and head dimensions, and refit what stays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from ...ir import Model
from ...ir import order as graph_order
from ...ir.errors import OptionError
from ...runtime.feeds import Feeds
from ...runtime.loading import give_back
from ..base import Context, LossyPass, PassResult, Skip
from . import contest, criteria, dead, energy, fisher, grouping, overrides, sensitivity, shortfall, synthetic, unfitted
from . import plan as planning
from .amount import Amount, chosen
from .cut import cut
from .layers import tied
from .left import Left, left
from .order import Order, greedy
from .pacing import pace
from .plan import Plan
from .refit import DISTRUST, RIDGES, refit
from .score import Curvature
from .swap import swapped

# Ways to weigh losses that enter the contest, the first where there is none: power of the measured sensitivities, and
# whether outputs of a layer count by what they do to the model's and by whether they stay (`fisher`).
WAYS = ((sensitivity.POWER, False), (1.0, False), (sensitivity.POWER, True))
DEFAULT_MOST = 0.5  # share of channels at strength 1 when nobody says


@dataclass(frozen=True)
class Prune(LossyPass):
    """Remove whole channels, neurons and attention heads, and refit what stays to the original's outputs.

    With data the choice is second-order (the loss that remains after the best refit), and every layer is fitted again
    in closed form, from the first to the last, on what the smaller model feeds it. Without data only what is provably
    dead goes, unless an amount is given; then magnitudes decide, and layers are fitted on made-up noise, cautiously.
    """

    name: ClassVar[str] = "prune"

    ratio: float | None = field(
        default=None, metadata={"help": "share to remove of the channels that may go, e.g. 0.3", "min": 0, "max": 0.99}
    )
    macs: float | None = field(
        default=None, metadata={"help": "share of the model's MACs to remove", "min": 0, "max": 0.99}
    )
    params: float | None = field(
        default=None, metadata={"help": "share of the model's parameters to remove", "min": 0, "max": 0.99}
    )
    speedup: float | None = field(
        default=None, metadata={"help": "how many times as fast the model is to run, measured here, e.g. 1.5", "min": 1}
    )
    criterion: str = field(
        default="auto",
        metadata={
            "help": "what decides: obs (second order) and activation need data; l1, l2, bn (gammas), fpgm (distance to "
            "the other filters), random; auto: obs with data, else l1",
            "choices": ("auto", "obs", "l1", "l2", "bn", "fpgm", "activation", "random"),
        },
    )
    scope: str = field(
        default="global",
        metadata={
            "help": "global: loss per channel, MAC or parameter (as the amount is given); local: the same share of "
            "every group; isomorphic: the same share of all groups of one structure",
            "choices": ("global", "local", "isomorphic"),
        },
    )
    shares: tuple[str, ...] = field(
        default=(),
        metadata={"help": "REGEX=SHARE+...: groups whose channels a matching node makes lose just this share"},
    )
    round_to: int | None = field(
        default=None,
        metadata={"help": "channel counts are multiples of this; the target's where it pays when none", "min": 1},
    )
    min_channels: int = field(default=1, metadata={"help": "channels that every layer keeps at least", "min": 1})
    refit: bool = field(default=True, metadata={"help": "fit what stays to the original's outputs (needs data)"})
    lossless: bool = field(default=False, metadata={"help": "remove only channels that provably change nothing"})
    swaps: bool = field(
        default=True, metadata={"help": "after the greedy choice, exchange units of a group while the loss falls"}
    )
    norms: str = field(
        default="pin",
        metadata={
            "help": "widths under LayerNorm and its like: pin leaves them, allow lets the norm see fewer",
            "choices": ("pin", "allow"),
        },
    )

    def __post_init__(self) -> None:
        given = [n for n in ("ratio", "macs", "params", "speedup") if getattr(self, n) is not None]
        if len(given) > 1:
            raise OptionError(f"prune: give one of {' and '.join(given)}, not both")
        if self.speedup is not None and self.scope != "global":
            raise OptionError("prune: speedup chooses over the whole model; leave out scope")
        idle = [*given, *self._idle()] if self.lossless else []
        if idle:
            raise OptionError(f"prune: lossless removes what is dead and nothing else; leave out {', '.join(idle)}")
        overrides.parse(self.shares)

    def _idle(self) -> list[str]:
        """Options that say what to remove where nothing is alive, and were given."""
        changed = {
            "criterion": self.criterion != "auto",
            "scope": self.scope != "global",
            "norms": self.norms != "pin",
            "round_to": (self.round_to or 1) > 1,
            "shares other than 0": any(share for _, share in overrides.parse(self.shares)),
        }
        return [name for name, given in changed.items() if given]

    @property
    def explicit(self) -> bool:
        """Whether ratio, macs, params or speedup says how much (or only what is dead may go)."""
        return self.lossless or any(x is not None for x in (self.ratio, self.macs, self.params, self.speedup))

    @property
    def amount(self) -> Amount:
        """What strength 1 removes."""
        if self.macs is None and self.params is None and self.ratio is None:
            return Amount(DEFAULT_MOST)
        return Amount(self.ratio, self.macs, self.params)

    @property
    def _currency(self) -> str:
        """What savings are counted in: the unit of the amount; MACs when nobody says, since they are the time."""
        return "channels" if self.ratio is not None else "params" if self.params is not None else "macs"

    def plan(self, model: Model, ctx: Context) -> Plan:
        """Groups, statistics, and the order in which units go."""
        real = ctx.source != "random"
        provable = self.lossless or (not real and not self.explicit)
        norms = "pin" if provable else self.norms  # a norm that sees fewer channels puts out something else
        found = grouping.find(model, ctx.fit.first(), ctx.excluded, norms, min_channels=self.min_channels)
        if provable:
            held = "" if self.lossless else "no real data was given (--data): only channels that are provably dead go"
            if held:
                ctx.note(f"prune: {held}; prune:ratio=0.3 removes by magnitude all the same")
            held_units = [u for k, share in self._shares(found).items() if not share for u in found.families[k].units]
            order, folds = dead.order(model, found, ctx.excluded, held_units)
            return Plan(found, order, held_back=held, folds=folds)
        if not real:
            ctx.note(
                "prune: no real data was given (--data): channels go by magnitude unless criterion says otherwise, and "
                "all that is measured or fitted is so on made-up noise; expect damage"
            )
        return self._with_data(model, found, ctx, real)

    def _with_data(self, model: Model, found: grouping.Groups, ctx: Context, real: bool) -> Plan:
        criterion = self.criterion if self.criterion != "auto" else "obs" if real else "l1"
        feeds = planning.fitting_feeds(ctx) if real else synthetic.feeds(model, ctx)
        kinds = planning.layers(model, gates=True, keep=ctx.excluded)
        goals = planning.goals(model, kinds, feeds, ctx) if self.refit or criterion == "obs" else {}
        curves = planning.curvatures(model, found, kinds, goals, feeds, ctx) if criterion == "obs" else []
        extra = self._fixed(model, found, criterion, ctx) if criterion != "obs" else {}
        if self._contests(model, feeds) and real:
            planning.emphasise(
                curves, goals, fisher.collect(model, [x for x in kinds if not x.gates], goals, feeds, ctx)
            )
        plan = Plan(found, Order(), kinds, goals, feeds, ridges=RIDGES if real else DISTRUST)
        plan.order = self._contested(plan, curves, ctx) if criterion == "obs" else self._ordered(plan, [], extra, ctx)
        plan.goals = goals if self.refit else {}
        self._tell_shortfall(plan, ctx)
        return plan

    def _tell_shortfall(self, plan: Plan, ctx: Context) -> None:
        """Say what was asked for and cannot be had; `speedup` says so itself, since only it knows what was measured."""
        found, order = plan.groups, plan.order if plan.pace is None else plan.pace.steps.order
        gone = self._gone(plan, 1.0, ctx).tolist()
        shares = self._shares(found)
        lines = shortfall.of_shares(found, order, shares, gone)
        if self.explicit and plan.pace is None:
            lines += shortfall.of_amount(found, order, self.amount, shares, gone)
        for line in lines:
            ctx.note(line)

    def _shares(self, found: grouping.Groups) -> Mapping[int, float]:
        """Shares that the user set, by family."""
        return overrides.of_families(found, overrides.parse(self.shares))

    def _ordered(self, plan: Plan, curves: list[Curvature], extra: dict[int, float], ctx: Context) -> Order:
        """Greedy, then swaps, or by measured time; uses the curves up."""
        found = plan.groups
        fixed = self._shares(found)
        if self.speedup is not None:
            model, rounding = found.flow.model, self._rounding(ctx)
            plan.pace = pace(model, found, curves, extra, self.speedup, *rounding, ctx, fixed)
            return plan.pace.steps.order
        order = greedy(found, curves, extra, self.scope, self._enough(len(found.units)), self._currency, fixed)
        if not curves or fixed or not self.swaps or not self._contests(found.flow.model, plan.feeds):
            return order
        return swapped(found, order, self._chosen(found, order, 1.0, ctx).tolist(), curves, extra)

    def _contests(self, model: Model, feeds: Feeds | None) -> bool:
        """Whether ways to weigh losses are tried in earnest. Where they are not, neither are swaps nor weighted rows:
        by a percent they may as well harm."""
        known = feeds is not None and self.refit and self.speedup is None
        return known and contest.affordable(model, feeds, len(WAYS))  # type: ignore[arg-type]

    def _contested(self, plan: Plan, curves: list[Curvature], ctx: Context) -> Order:
        """The order that prunes best, of several ways to weigh losses."""
        model, found, feeds = plan.groups.flow.model, plan.groups, plan.feeds
        assert feeds is not None
        pairs = energy.shares(model, found.flow, {c.node for c in curves}, feeds, ctx)
        plain = [replace(c, emphasis=None, rows={}) for c in curves]
        factors = sensitivity.measured(model, found, plan.layers, plain, pairs, feeds, ctx)
        give_back()  # weights that the trials have read, and what they leave in pieces
        ways = WAYS if self._contests(model, feeds) else WAYS[:1]
        orders = []
        for power, by_output in ways:
            mine = curves if by_output else plain
            mine = [c.copy() for c in mine] if len(ways) > 1 else mine
            orders.append(self._ordered(plan, mine, sensitivity.weigh(mine, pairs, factors, power), ctx))
        if len(orders) == 1:
            return orders[0]
        judge = contest.Contest(found, plan.layers, plan.goals, feeds, lambda gone: self._kept(plan, gone), ctx)
        strength = 1.0 if self.explicit else 0.5
        entrants = [self._chosen(found, o, strength, ctx) for o in orders]
        errors = [judge.error(gone) for gone in ctx.progress(entrants, "contest", len(entrants))]
        plan.contest = [round(float(e), 6) for e in errors]
        return orders[int(np.argmin(errors))]

    def _fixed(self, model: Model, found: grouping.Groups, criterion: str, ctx: Context) -> dict[int, float]:
        """Losses that do not change while units go."""
        if criterion == "random":
            rng = np.random.default_rng(ctx.seed)
            return dict(zip(found.units.tolist(), rng.random(len(found.units)).tolist()))
        if criterion == "activation":
            return criteria.activations(model, found, planning.fitting_feeds(ctx), ctx)
        if criterion == "fpgm":
            return criteria.distances(model, found)
        if criterion != "bn":
            return criteria.magnitudes(model, found, 2 if criterion == "l2" else 1)
        scores, plain = criteria.gammas(model, found, ctx.gammas), criteria.magnitudes(model, found, 1)
        without = len(found.units) - len(scores)
        if without:
            ctx.note(f"prune: {without} of {len(found.units)} channels pass no BatchNormalization: l1 ranks them")
        return plain | scores

    def _enough(self, total: int) -> Any:
        """Stop the order where no strength, nor any rounding, would look."""
        amount = self.amount
        most = min(0.99, 1.3 * amount.wanted + 0.1)
        reach = Amount(most if amount.ratio is not None else None, amount.macs and most, amount.params and most)
        return lambda order: reach.reached(order, len(order), total, 1.0)

    def apply(self, model: Model, plan: Plan, strength: float, ctx: Context) -> PassResult:
        """Remove the units that this strength reaches, then refit."""
        flow = plan.groups.flow
        skipped = tuple(Skip(n, why) for n, why in (flow.refused | unfitted.unlabelled(flow)).items())
        gone = self._gone(plan, strength, ctx)
        if not len(gone):
            why = plan.held_back or shortfall.of_nothing(plan.groups)
            return PassResult(False, {"channels removed": 0}, (*skipped, Skip("*", why)))
        dead.take_over(model, plan.groups.flow, gone, plan.folds)
        cut(model, plan.groups.flow, gone)
        fitted, shared = 0, set[str]()
        if plan.goals and plan.feeds is not None:
            graph_order.sort(model)
            shared = tied(model, plan.layers)
            fitted = refit(model, plan.layers, plan.feeds, plan.goals, self._kept(plan, gone), ctx, plan.ridges)
        if self.refit and plan.feeds is not None:
            able = [x for x in plan.layers if x.node not in shared]
            raw = unfitted.that_lost(model, plan.groups.flow, gone, able, ctx.excluded)
            skipped = (*skipped, *(Skip(node, f"not refitted: {why}") for node, why in raw.items()))
        did = {"channels removed": len(gone), "of": len(plan.groups.units), "layers refitted": fitted}
        details: dict[str, Any] = {"contest": plan.contest} if plan.contest else {}
        if plan.pace is not None:
            details |= {"pace": plan.pace.to_json(strength)}
        return PassResult(True, did, skipped, details)

    def _gone(self, plan: Plan, strength: float, ctx: Context) -> np.ndarray:
        if self.lossless or plan.held_back:
            return np.array(plan.order.units, np.int64)
        if plan.pace is not None:
            return np.array(plan.pace.units(strength), np.int64)
        return self._chosen(plan.groups, plan.order, strength, ctx)

    def _chosen(self, groups: grouping.Groups, order: Order, strength: float, ctx: Context) -> np.ndarray:
        return chosen(groups, order, self.amount, strength, *self._rounding(ctx))

    def _rounding(self, ctx: Context) -> tuple[int, bool]:
        """What channel counts are multiples of, and whether the user said so."""
        return (ctx.target.channel_multiple, False) if self.round_to is None else (self.round_to, True)

    def _kept(self, plan: Plan, gone: np.ndarray) -> dict[str, Left]:
        """What is left of every layer's outputs."""
        counts = {node: goal.rows[0].shape[1] for node, goal in plan.goals.items()}
        return left(plan.groups.flow, plan.layers, counts, gone)


__all__ = ["Order", "Prune"]
