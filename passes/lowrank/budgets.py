"""The steps that budgets need, and no more: by the layers' own figures first, then by the clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ...ir import Model, order
from ...runtime import latency
from ...runtime.session import Session
from ..base import Context
from . import choose
from .assemble import assemble
from .balance import balanced
from .choose import Option, Step
from .goal import Goal, Totals, Whole, enough, savings

if TYPE_CHECKING:
    from .planning import Found, Plan

SECONDS = 1.0  # of measuring one prefix of the steps beside the model


def within(plan: Plan, model: Model, goal: Goal, totals: Totals, ctx: Context) -> Plan:
    """The plan with the steps that the goal needs, in the order that meets it at the least damage."""
    whole = {name: Whole(f.macs, f.params, f.ms, totals.ms_per_mac) for name, f in plan.layers.items() if f.splits}
    clock = _Clock(model, ctx)
    wanted = goal.wanted(totals)
    several = sum(w > 0 for w in wanted) > 1
    tried = _ordered(plan, wanted, whole) if several else plan
    if goal.speedup is not None and several:
        count, saved = _expected(tried, wanted, whole)
        trust = totals.time * (1 - 1 / clock.speedup(tried, tried.steps[:count])) / saved if saved > 0 else 1.0
        tried = _ordered(plan, (wanted[0] / max(trust, 0.1), *wanted[1:]), whole)
    sums = savings(tried.steps, hulls(tried.layers), whole)
    count, missing = enough(goal, totals, tried.steps, sums, lambda k: clock.speedup(tried, tried.steps[:k]))
    return replace(tried, steps=tried.steps[:count], reason=missing)


def _ordered(plan: Plan, wanted: Sequence[float], whole: dict[str, Whole]) -> Plan:
    """The plan with the options and the order that `balanced` finds for what is wanted."""
    chosen = balanced(wanted, hulls(plan.layers), whole)
    layers = dict(plan.layers)
    for name, kept in chosen.items():
        known = {(s.option.form, s.option.rank): s for s in layers[name].splits}
        splits = tuple(replace(known[o.form, o.rank], option=o) for o in kept)
        layers[name] = replace(layers[name], splits=splits)
    return replace(plan, layers=layers, steps=tuple(choose.order(chosen)))


def _expected(plan: Plan, wanted: Sequence[float], whole: dict[str, Whole]) -> tuple[int, float]:
    """How many steps meet what is wanted by the layers' own figures, and the milliseconds that they save."""
    sums = savings(plan.steps, hulls(plan.layers), whole)
    count = next((k for k, s in enumerate(sums) if all(a >= b for a, b in zip(s, wanted))), len(plan.steps))
    return count, sums[count][0]


def hulls(found: Mapping[str, Found]) -> dict[str, list[Option]]:
    """The options of the layers that may be split."""
    return {name: [s.option for s in f.splits] for name, f in found.items() if f.splits}


class _Clock:
    """How much faster than the model some steps make it."""

    def __init__(self, model: Model, ctx: Context):
        self.model, self.ctx = model, ctx
        self.feed, self.original = ctx.fit.first(), Session(model, threads=ctx.threads)

    def speedup(self, plan: Plan, steps: Sequence[Step]) -> float:
        """Measured in turns."""
        trial, ctx = self.model.copy(), self.ctx
        assemble(trial, plan.layers, choose.taken(steps))
        order.sort(trial)
        found = latency.compare(
            self.original, trial, self.feed, threads=ctx.threads, timings=ctx.timings, seconds=SECONDS
        )
        return found.speedup
