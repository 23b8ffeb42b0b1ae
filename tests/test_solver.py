"""The solver: limits, shares of the budget, bisection, weakening, and the metric that is asked sparingly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import toys
from onnxslim_opt.ir import edit
from onnxslim_opt.ir.errors import DataError, LimitsNotMet
from onnxslim_opt.passes import budget, pace, words
from onnxslim_opt.passes.budget import Allowance, Limits, Spent, allowance
from onnxslim_opt.passes.judge import NOWHERE
from onnxslim_opt.passes.optimize import optimize
from test_pipeline import by_nodes
from toys import Noise, Pays, Rename

from onnxslim_opt import ir


@pytest.fixture(autouse=True)
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latency by the number of nodes, and no `simplify` but what a test lists."""
    monkeypatch.setattr(pace.Pace, "compare", by_nodes)
    monkeypatch.setattr("onnxslim_opt.passes.pipeline._simplify", list)


def run(*passes, **options):
    """The report of a run on the toy model."""
    return optimize(toys.model(layers=4), list(passes), data=options.pop("data", toys.feeds(32)), **options).report


def sqnr(report) -> float:
    """SQNR of the only output."""
    return report.numerics["outputs"][0]["sqnr_db"]


# ---------------------------------------------------------------- the budget


def test_noise_and_decibel_are_inverse():
    assert budget.noise(20) == pytest.approx(0.01)
    assert budget.decibel(budget.noise(13.7)) == pytest.approx(13.7)
    assert budget.noise(math.inf) == 0
    assert budget.decibel(0) == math.inf


def test_shares_add_up_to_the_limit():
    now = math.inf
    for left in (3, 2, 1):
        now = budget.share_db(20.0, now, left)
    assert now == pytest.approx(20.0)
    assert budget.share_db(20.0, math.inf, 2) == pytest.approx(23.01, abs=0.01)
    assert budget.share_db(20.0, 15.0, 2) == 20.0, "once it is passed, the limit itself"
    assert budget.decibel(budget.noise(25.0) + budget.noise(budget.own_db(20.0, 25.0))) == pytest.approx(20.0)
    assert budget.own_db(20.0, math.inf) == pytest.approx(20.0) and budget.own_db(20.0, 15.0) == -math.inf
    assert budget.share_drop(0.03, 0.0, 3) == pytest.approx(0.01)
    assert budget.share_drop(0.03, 0.01, 2) == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("p", "spent", "limits", "real", "expected"),
    [
        (Noise(asked=True), Spent(), Limits(), True, Allowance()),
        (Noise(), Spent(), Limits(), True, Allowance(20.0)),
        (Noise(), Spent(12.0), Limits(), True, Allowance(11.0)),
        (Noise(), Spent(), Limits(), False, Allowance(60.0)),
        (Pays(), Spent(), Limits(), True, Allowance(10.0)),
        (Pays(), Spent(11.0), Limits(), True, Allowance(8.0)),
        (Pays(), Spent(), Limits(), False, Allowance(10.0, blind=True)),
        (Pays(), Spent(), Limits(0.01), False, Allowance(None, 0.01)),
        (Noise(asked=True), Spent(), Limits(0.01, 30.0), True, Allowance(30.0, 0.01)),
    ],
)
def test_what_a_last_pass_may_do(p, spent, limits, real, expected):
    assert allowance(p, [Rename()], spent, limits, real) == expected


def test_later_passes_are_left_their_share():
    limits = Limits(max_drop=0.03)
    assert allowance(Noise(), [Pays(), Noise()], Spent(), limits, True).drop == pytest.approx(0.01)
    both = allowance(Noise(), [Noise(), Pays(), Noise(asked=True)], Spent(), Limits(), True)
    assert both.sqnr_db == pytest.approx(23.01, abs=0.01), "only passes without an amount share the default"


# ---------------------------------------------------------------- strength


def test_full_strength_is_tried_first_and_kept_when_it_fits():
    report = run(Noise(0.01))
    assert report.steps[0]["strength"] == 1.0
    assert len(report.steps[0]["tried"]) == 1
    assert report.steps[0]["reason"] == ""


def test_too_much_is_weakened_to_the_most_that_keeps_20_db():
    report = run(Noise(1.0))
    (step,) = report.steps
    assert step["kept"]
    assert 0 < step["strength"] < 1
    assert step["reason"].startswith("weakened: at full strength SQNR")
    assert len(step["tried"]) == 6
    assert 20.0 <= sqnr(report) < 26.0


def test_an_amount_that_was_asked_for_is_applied_as_asked():
    report = run(Noise(1.0, asked=True))
    assert report.steps[0]["strength"] == 1.0
    assert sqnr(report) < 15


def test_after_an_asked_amount_the_next_pass_may_not_make_it_much_worse():
    alone = run(Noise(1.0, asked=True))
    both = run(Noise(1.0, asked=True), Noise(1.0), seed=0)
    assert sqnr(both) >= sqnr(alone) - 1.0


def test_an_asked_amount_is_weakened_under_limits_and_that_is_told():
    report = run(Noise(1.0, asked=True), min_sqnr=25.0)
    assert sqnr(report) >= 25.0
    assert report.verdict == "ok"
    assert any("weakened: at full strength" in r for r in report.reasons)


def test_two_passes_share_a_limit():
    report = run(Noise(1.0), Noise(1.0), min_sqnr=20.0)
    assert [s["kept"] for s in report.steps] == [True, True]
    first = report.steps[0]["numerics"]["outputs"][0]["sqnr_db"]
    assert first >= budget.share_db(20.0, math.inf, 2) - 0.01
    assert sqnr(report) >= 20.0


@dataclass(frozen=True)
class Gain(Noise):
    """Noise that takes away idle nodes, in proportion to its strength: faster the stronger it is."""

    name: ClassVar[str] = "gain"
    nodes: int = 8

    def apply(self, model, plan, strength, ctx):
        result = super().apply(model, plan, strength, ctx)
        for node in [n for n in model.graph.nodes if n.op == "Identity"][: int(self.nodes * strength)]:
            edit.replace(model, node.outputs[0], node.inputs[0])
            edit.drop(model, [node])
        return result


def idle(nodes: int) -> ir.Model:
    model = toys.model(layers=4)
    for _ in range(nodes):
        toys.slow_down(model)
    return model


def test_the_last_pass_gets_the_whole_limit_where_that_gives_more():
    passes = [Noise(0.02), Gain(0.02)]
    alone = optimize(idle(8), passes[1:], data=toys.feeds(32)).report
    limit = sqnr(alone) - 0.5  # all of it for the second pass at full strength
    heard = []
    result = optimize(idle(8), passes, data=toys.feeds(32), min_sqnr=limit, observers=[heard.append])
    first, second = result.report.steps
    assert not first["kept"] and first["reason"] == "left out: within the limits, gain alone gives more"
    assert second["kept"] and second["strength"] == 1.0
    assert not any(n.op == "Identity" for n in result.model.graph.nodes)
    assert f"noise: {first['reason']}" in result.report.notes
    assert [(e.p.name, e.step.kept) for e in heard if e.kind == "done"][2:] == [("noise", False), ("gain", True)]
    assert result.report.verdict == "ok" and sqnr(result.report) >= limit


def test_what_the_first_passes_gave_stays_where_the_last_alone_gives_less():
    passes = [Gain(0.02), Noise(0.02)]
    alone = optimize(idle(8), passes[1:], data=toys.feeds(32)).report
    heard = []
    result = optimize(idle(8), passes, data=toys.feeds(32), min_sqnr=sqnr(alone) - 0.5, observers=[heard.append])
    assert [s["kept"] for s in result.report.steps] == [True, True]
    assert [e.p.name for e in heard if e.kind == "done"] == ["gain", "noise"], "the second look is not heard of"


def test_what_later_passes_leave_goes_back_to_the_first_that_was_starved():
    alone = optimize(idle(8), [Gain(0.1)], data=toys.feeds(32)).report
    limit = sqnr(alone) - 0.1  # full strength needs all but a little
    heard = []
    options = {"data": toys.feeds(32), "min_sqnr": limit, "observers": [heard.append]}
    result = optimize(idle(8), [Gain(0.1), Noise(1e-4)], **options)
    first, second = result.report.steps
    assert first["kept"] and first["strength"] == 1.0 and second["kept"]
    assert "gain: run once more with what the passes behind it left of the limits" in result.report.notes
    assert not any(n.op == "Identity" for n in result.model.graph.nodes)
    told = [(e.p.name, e.step.strength) for e in heard if e.kind == "done"]
    assert told[0][1] < 1.0 and told[2:] == [("gain", 1.0), ("noise", 1.0)], "first with its share, then with the rest"
    assert result.report.verdict == "ok" and sqnr(result.report) >= limit


def test_the_second_helping_is_not_kept_where_it_gives_nothing():
    limit = sqnr(run(Noise(0.1))) - 0.1
    report = run(Noise(0.1), Noise(1e-4), min_sqnr=limit)
    assert report.steps[0]["strength"] < 1.0, "stronger noise is neither faster nor smaller"
    assert report.verdict == "ok"


def test_nothing_fits_rolls_back_with_the_reason():
    report = run(Noise(30.0), min_sqnr=55.0)
    (step,) = report.steps
    assert not step["kept"]
    assert "even the smallest amount tried does not fit" in step["reason"]
    assert report.verdict == "ok"
    assert sqnr(report) == 999


def test_max_drop_without_a_metric_bounds_changed_classes():
    report = run(Noise(1.0), max_drop="5%")
    agreement = report.numerics["outputs"][0]["argmax_agreement"]
    assert agreement >= 0.95
    assert report.steps[0]["kept"]


def test_without_data_only_lossless_changes_are_made():
    report = run(Noise(1.0), data=None)
    (step,) = report.steps
    assert sqnr(report) >= 60
    assert "without real data" in step["reason"]


# ---------------------------------------------------------------- the metric


class Accuracy:
    """Share of argmax equal to the original's, over seeded inputs; counts its calls."""

    def __init__(self, fails_after: int = 10**9):
        self.calls, self.fails_after, self.labels = 0, fails_after, None

    def __call__(self, run) -> float:
        self.calls += 1
        if self.calls > self.fails_after:
            raise RuntimeError("no boxes were found")
        got = np.concatenate([run(f)["logits"].argmax(1) for f in toys.feeds(40, seed=9)])
        self.labels = got if self.labels is None else self.labels
        return float((got == self.labels).mean())


def test_max_drop_is_relative_to_the_metric_of_the_original():
    metric = Accuracy()
    report = run(Noise(0.5), metric=metric, max_drop=0.05)
    assert report.metric["before"] == 1.0
    assert report.metric["after"] >= 0.95
    assert report.steps[0]["strength"] < 1
    assert "metric drop" in report.steps[0]["reason"]
    assert metric.calls <= 8, "once for the original, once for each strength"


def test_the_metric_is_not_asked_for_hopeless_candidates_nor_twice():
    metric = Accuracy()
    run(Noise(100.0), metric=metric, max_drop=0.05)
    assert metric.calls <= 3
    metric = Accuracy()
    run(Noise(0.0), Rename(), Noise(0.0), metric=metric, max_drop=0.05)
    assert metric.calls <= 4


def test_a_metric_that_fails_on_a_candidate_rejects_it():
    report = run(Noise(0.3), metric=Accuracy(fails_after=1), max_drop=0.05)
    assert not report.steps[0]["kept"]
    assert "the metric failed: RuntimeError: no boxes were found" in report.steps[0]["reason"]
    assert report.metric == {"before": 1.0, "after": 1.0} or report.verdict == "limits_not_met"


def test_a_metric_that_fails_on_the_result_is_told_with_exit_3():
    report = run(Noise(0.3, asked=True), metric=Accuracy(fails_after=1))
    assert report.exit_code == 3
    assert "the metric failed" in report.reasons[0]
    with pytest.raises(LimitsNotMet, match="the metric failed"):
        report.require()
    assert report.to_json()["metric"]["after"] is None


def test_a_metric_that_fails_on_the_original_is_a_bad_input():
    with pytest.raises(DataError, match="the metric failed"):
        run(Noise(), metric=Accuracy(fails_after=0))
    with pytest.raises(DataError, match="metric of the original model is 0"):
        run(Noise(), metric=lambda run: 0.0, max_drop=0.1)
    with pytest.raises(DataError, match="NaN"):
        run(Noise(), metric=lambda run: math.nan)


# ---------------------------------------------------------------- never worse


def test_a_slower_result_is_weakened_until_it_pays():
    report = run(Noise(0.01, slow=2))
    (step,) = report.steps
    assert step["kept"]
    assert step["strength"] == 0.5
    assert "weakened: at strength 1 it runs at" in step["reason"]


def test_what_stays_slower_is_rolled_back():
    report = run(Noise(0.01, asked=True, slow=20))
    assert not report.steps[0]["kept"]
    assert report.steps[0]["reason"].startswith("rolled back: it runs at")
    assert report.latency["speedup"] == 1.0


def test_a_foreign_target_is_not_judged_by_this_machines_clock():
    report = run(Noise(0.01, slow=20), target="tensorrt")
    assert report.steps[0]["kept"]


def test_one_slow_measurement_is_not_enough(monkeypatch):
    from onnxslim_opt.runtime.latency import Latency

    seen = []

    def noisy(self, before, after):
        seen.append(1)
        return Latency(1.0, 1.25, 0.8, 7, 1) if len(seen) == 1 else Latency(1.0, 1.0, 1.0, 7, 1)

    monkeypatch.setattr(pace.Pace, "compare", noisy)
    assert run(Noise(0.01)).steps[0]["kept"]


# ---------------------------------------------------------------- outputs that show nothing


BLIND = "g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1,2,3,4}, float[1] s = {-1000}> "
BLIND += "{ a = MatMul(x, w) b = Add(a, s) y = Sqrt(b) }"
SMALL = [{"x": np.full((1, 2), k, np.float32)} for k in range(8)]


@pytest.mark.parametrize(
    ("p", "options", "kept"),
    [
        (Noise(asked=True), {"min_sqnr": 1}, False),
        (Noise(asked=True), {"max_drop": 0.9}, False),
        (Noise(asked=True), {"max_drop": 0.9, "metric": lambda run: 1.0}, True),
        (Noise(asked=True), {}, True),
        (Noise(), {}, False),
        (Pays(), {}, False),
        (Pays(), {"data": None}, True),
        (Pays(), {"data": None, "min_sqnr": 1}, False),
        (Rename(), {"min_sqnr": 1}, True),
    ],
)
def test_a_change_is_not_within_limits_where_nothing_can_be_compared(p, options, kept):
    report = optimize(ir.text.parse(BLIND), [p], **{"data": SMALL, **options}).report
    step = report.steps[0]
    assert step["kept"] is kept
    assert len(step["tried"]) == (p.name != "rename"), "no other strength shows more"
    assert kept or step["reason"] == f"rolled back: nothing to compare: {NOWHERE}"
    assert report.numerics["outputs"][0]["trouble"] == "nothing to compare"
    assert any(note.startswith("nothing to compare") and "--data" in note for note in report.notes)


def test_one_output_of_several_that_shows_nothing_is_told():
    text = BLIND.replace("(float[N,2] y)", "(float[N,2] y, float[N,2] a)")
    report = optimize(ir.text.parse(text), [Noise(0.01, asked=True)], data=SMALL, min_sqnr=20).report
    assert report.steps[0]["kept"] and words.sqnr(report.numerics).endswith("dB")
    assert "nothing to compare of 'y': empty or not finite in the original on all check feeds" in report.notes


def test_a_limit_of_60_db_is_not_taken_for_the_want_of_data():
    assert "without real data" not in run(Noise(asked=True), min_sqnr=60).steps[0]["reason"]
