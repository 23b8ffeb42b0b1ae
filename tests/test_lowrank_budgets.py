"""Budgets as arithmetic: several at once at the least damage, and a search for a speed that asks the clock little."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnxslim_opt.passes.lowrank import choose
from onnxslim_opt.passes.lowrank.balance import balanced
from onnxslim_opt.passes.lowrank.choose import Option
from onnxslim_opt.passes.lowrank.goal import Goal, Totals, Whole, Worth, enough, fast_enough, savings


def network(seed, layers=6):
    """Layers that are rich in time or in parameters, each with options from mild to brutal."""
    rng = np.random.default_rng(seed)
    whole, options = {}, {}
    for k in range(layers):
        ms, params = (4.0, 100) if k % 2 else (0.5, 1000)
        whole[f"l{k}"] = Whole(int(1000 * ms), params, ms)
        harm = rng.uniform(0.5, 2.0)
        options[f"l{k}"] = [
            Option("svd", (r,), 0.0, 0.0, int(100 * r * ms), params * r // 10, ms * r / 10, harm * (1 - r / 10) ** 2)
            for r in range(1, 9)
        ]
    return whole, options


def damage_of(hulls, whole, wanted):
    """Damage of the fewest steps that meet all that is wanted."""
    steps = choose.order(hulls)
    count = next(k for k, s in enumerate(savings(steps, hulls, whole)) if all(a >= b for a, b in zip(s, wanted)))
    return sum(s.damage for s in steps[:count]), savings(steps, hulls, whole)[count]


@pytest.mark.parametrize("seed", range(4))
def test_several_budgets_cost_less_than_with_equal_multipliers_and_near_the_optimum(seed):
    whole, options = network(seed, layers=4)
    wanted = (4.0, 0.0, 200.0)
    even = {
        n: choose.hull([*map(lambda o, w=whole[n]: _worth(o, w, (1 / 4.0, 0, 1 / 200.0)), t)])
        for n, t in options.items()
    }
    found, saved = damage_of(balanced(wanted, options, whole), whole, wanted)
    before, _ = damage_of(even, whole, wanted)
    best = np.inf
    for some in itertools.product(*([None, *t] for t in options.values())):
        got = np.sum([whole[n].saving(o) for n, o in zip(options, some) if o is not None] or [(0, 0, 0)], axis=0)
        if got[0] >= wanted[0] and got[2] >= wanted[2]:
            best = min(best, sum(o.damage for o in some if o is not None))
    assert saved[0] >= wanted[0] and saved[2] >= wanted[2]
    assert found <= before + 1e-12
    assert found < 1.35 * best  # a greedy prefix ends with a whole step of one layer


def _worth(option, layer, weights):
    return Option(
        *[getattr(option, f) for f in ("form", "rank", "error")],
        float(np.dot(weights, layer.saving(option))),
        option.macs,
        option.params,
        option.ms,
        option.damage,
    )


def test_a_single_budget_and_one_out_of_reach_keep_equal_multipliers():
    whole, options = network(0)
    one = balanced((0.0, 0.0, 300.0), options, whole)
    for name, table in one.items():
        assert [o.saved for o in table] == [pytest.approx((whole[name].params - o.params) / 300.0) for o in table]
    far = balanced((1e9, 0.0, 300.0), options, whole)
    assert all(
        o.saved == pytest.approx(np.dot((1e-9, 0, 1 / 300), whole[n].saving(o))) for n, t in far.items() for o in t
    )


@pytest.mark.parametrize("trust", [0.4, 0.8, 1.0, 1.5])
def test_the_fewest_fast_steps_are_found_with_few_measurements(trust):
    total, saved = 100.0, [1.5 * k for k in range(41)]
    asked = []

    def speedup(count):
        asked.append(count)
        return total / (total - trust * saved[count])

    for wanted in (1.05, 1.2, 1.3):
        asked.clear()
        count, found = fast_enough(wanted, 3, saved, total, speedup)
        least = next((k for k in range(3, 41) if total / (total - trust * saved[k]) >= wanted), 40)
        assert (count, found) == (least, speedup(least))
        assert len(asked) - 1 <= 5 and len(set(asked[:-1])) == len(asked) - 1


def test_a_speed_that_no_count_reaches_is_said():
    steps = [choose.Step("a", k, 1.0, 1.0) for k in range(3)]
    sums = [(float(k), 10 * k, 10 * k) for k in range(4)]
    count, missing = enough(Goal(speedup=3.0), Totals(100, 100, 10.0), steps, sums, lambda k: 1 + k / 10)
    assert count == 3 and "a speed-up of 1.30" in missing
    count, missing = enough(Goal(macs=0.2, params=0.5), Totals(100, 100, 10.0), steps, sums, lambda k: 1.0)
    assert count == 3 and missing == "all that may be split saves only 30% of the params"


def test_parameters_alone_make_time_worth_the_same_share():
    goal, totals, eligible = Goal(params=0.4), Totals(1000, 100, 10.0), Totals(800, 80)
    worth = Worth.towards(goal, totals, eligible)
    assert worth.param == pytest.approx(1 / 40)  # half of what the eligible layers have ...
    assert worth.ms == pytest.approx(1 / 4.0)  # ... and half of their 8 milliseconds
    assert Worth.towards(goal, Totals(1000, 100), eligible).ms == 0.0  # nothing was timed
    assert Worth.towards(Goal(params=0.4, macs=0.3), totals, eligible).ms == 0.0
    both = Worth.towards(Goal(params=0.4, speedup=2.0), totals, eligible)
    assert both.ms == pytest.approx(1 / 5.0)
