"""`prune:speedup=`: tables of layers, an order by measured time, and where it stops. No speed is asserted: clocks are
faked or replayed."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from onnxslim_opt.ir.errors import OptionError
from onnxslim_opt.passes.prune import Prune, blocks, groups, pacing, timetable
from onnxslim_opt.passes.prune.amount import step_of
from onnxslim_opt.passes.prune.clock import Clock, Shape, Table, alone, ladder
from onnxslim_opt.runtime import latency, profiling
from onnxslim_opt.runtime.latency import Timings
from onnxslim_opt.runtime.session import Session
from prune_nets import Net, attention, depthwise, grouped, image, residual
from prune_twin import check
from test_prune_pass import context

from onnxslim_opt import ir


def test_ladders_are_multiples_up_to_the_count() -> None:
    assert ladder(64, 16, 7) == (16, 32, 48, 64)
    assert ladder(20, 8, 7) == (8, 16, 20)
    assert ladder(768, 16, 3) == (256, 512, 768)
    assert ladder(3, 1, 7) == (1, 2, 3)
    for full in (96, 100, 1000, 1280):
        found = ladder(full, 16, 7)
        assert found[-1] == full and len(found) <= 7
        assert all(n % 16 == 0 for n in found[:-1])


def test_a_head_is_as_many_channels_as_it_has_dimensions() -> None:
    assert step_of(12, 64, 16, False) == step_of(12, 64, 16, True) == 1
    assert step_of(64, 12, 16, True) == 4
    assert step_of(128, 1, 16, False) == 16
    assert step_of(4, 1, 16, False) == 1  # groups of four channels may still be thinned
    assert step_of(4, 1, 16, True) == 16


def test_tables_are_linear_between_what_was_timed() -> None:
    table = Table(((8, 16), (4, 8, 16)), np.array([[2.0, 3.0, 4.0], [4.0, 6.0, 8.0]]))
    assert table.at((16, 16)) == 1
    assert table.at((12, 12)) == pytest.approx((3.5 + 7) / 2 / 8)
    assert table.at((1, 1)) == 0.25  # below what was timed nothing gets cheaper


SHAPES = [
    Shape("Conv", "plain", (8, 12), (1, 8, 5, 5), (3, 3), (("pads", (1, 1, 1, 1)),), "float32"),
    Shape("Conv", "depthwise", (12,), (1, 12, 5, 5), (3, 3), (), "float32"),
    Shape("Conv", "grouped", (4, 2, 3), (1, 8, 5, 5), (1, 1), (), "float32"),
    Shape("Gemm", "plain", (8, 12), (2, 8), (), (("transB", 1),), "float32"),
    Shape("MatMul", "plain", (8, 12), (2, 3, 8), (), (), "float32"),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.op}-{s.kind}")
def test_layers_run_at_all_counts_and_are_found_again(shape: Shape) -> None:
    sizes = []
    for point in (shape.full, tuple(max(1, n // 2) for n in shape.full)):
        model, feed = alone(shape, point)
        sizes.append(next(iter(Session(ir.to_bytes(model)).run(feed).values())).size)
    assert sizes[0] > sizes[1] > 0
    timings = Timings()
    clock = Clock(1, timings, lambda n: step_of(n, 1, 4, True))
    table = clock.table(shape)
    assert table.us.shape == tuple(len(level) for level in table.levels) and (table.us > 0).all()
    again = Clock(1, timings, clock.steps).table(shape)
    assert timings.replayed and np.array_equal(again.us, table.us)


def test_layers_too_wide_for_memory_are_taken_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxslim_opt.passes.prune.clock.ROOM", 10)
    assert Clock(1, None, lambda n: 4).table(SHAPES[0]).at((4, 6)) == 0.25


class Staircase(Clock):
    """Convolutions step every 4 output channels, 100 us each."""

    def _point(self, shape: Shape, point: Any) -> float:
        return 100.0 * -(-point[-1] // 4)


def test_only_whole_steps_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    n = Net(x=[1, 3, 6, 6])
    model = n.head(n.op("Relu", n.conv(n.op("Relu", n.conv("x", 3, 8)), 8, 8)), 8)
    found, given = groups(model, image(1, 3, 6, 6)), image(1, 3, 6, 6)
    us = {n.name: 200.0 if n.op == "Conv" else 1.0 for n in model.graph.nodes}
    monkeypatch.setattr(profiling, "kernels", lambda *_, **__: us)
    monkeypatch.setattr(latency, "bench", lambda *_, **__: [latency.Timed(sum(us.values()) / 1e3, 1.0, 1)])
    table = timetable.timetable(model, found, given, Staircase(1, None, lambda n: 2))
    assert table.total == table.now() == pytest.approx(sum(us.values()))
    extra = {int(u): 1.0 for u in found.units}
    steps = blocks.paced(found, [], extra, table, (2, True), lambda left: left < 250)
    at = [0, *steps.stops]
    assert steps.us == sorted(steps.us, reverse=True) and steps.us[-1] < 250
    assert all((b - a) % 4 == 0 for a, b in pairwise(at))  # a few channels more would have saved nothing


def test_shares_are_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    n = Net(x=[1, 3, 6, 6])
    model = n.head(n.op("Relu", n.conv(n.op("Relu", n.conv("x", 3, 8)), 8, 8)), 8)
    monkeypatch.setattr(latency, "compare", lambda *_, **__: latency.Latency(1, 1, 2.0, 1, 1))
    ctx = context(model, [image(1, 3, 6, 6)] * 4)
    ctx.timings = Timings()
    plan = Prune(speedup=1.01, shares=("Conv_0=0.5",), criterion="l1", round_to=1).plan(model, ctx)
    assert plan.pace is not None and plan.pace.count == 1 and len(plan.pace.units(1.0)) == 4
    assert plan.pace.units(0.2) == plan.pace.units(1.0)


def test_the_fewest_steps_that_measure_as_fast() -> None:
    predicted = [1 + k / 20 for k in range(1, 41)]
    for bias in (0.6, 1.0, 1.3):
        asked: list[int] = []

        def measure(count: int, bias: float = bias, asked: list[int] = asked) -> float:
            asked.append(count)
            return 1 + bias * count / 20

        count, found = pacing.fewest(predicted, 1.5, measure)
        assert found == measure(count) >= 1.5 > measure(count - 1) and len(asked) <= 8
    assert pacing.fewest(predicted, 9.0, lambda count: 2.0) == (40, 2.0)
    assert pacing.fewest([], 2.0, lambda count: 2.0) == (0, 1.0)


@pytest.mark.parametrize("net", [residual, depthwise, grouped, lambda: attention(2)])
def test_what_the_pass_takes_is_a_prefix_that_equals_its_twin(net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    given = image(2, 5, 6) if "MatMul" in {n.op for n in model.graph.nodes} else image(2, 3, 8, 8)

    def compare(before: Any, after: ir.Model, *_: Any, **__: Any) -> latency.Latency:
        return latency.Latency(1, 1, 2.0 - ir.cost.of(after).params / ir.cost.of(model).params, 1, 1)

    us = {n.name: 1.0 + n.macs for n in ir.cost.by_node(model, {})}
    monkeypatch.setattr(latency, "compare", compare)
    monkeypatch.setattr(latency, "bench", lambda *_, **__: [latency.Timed(sum(us.values()) / 1e3, 1.0, 1)])
    monkeypatch.setattr(profiling, "kernels", lambda *_, **__: us)
    monkeypatch.setattr(Clock, "_point", lambda self, shape, point: float(np.prod(point)))
    ctx = context(model, [given] * 4)
    ctx.timings = Timings()
    prune = Prune(speedup=1.3, round_to=1, refit=False, criterion="l1")
    plan = prune.plan(model, ctx)
    assert plan.pace is not None and plan.pace.measured >= 1.3
    full, half = plan.pace.units(1.0), plan.pace.units(0.5)
    assert 0 < len(half) <= len(full) and full[: len(half)] == half
    small = model.copy()
    result = prune.apply(small, plan, 1.0, ctx)
    assert result.changed and result.details["pace"]["measured"] == round(plan.pace.measured, 4)
    assert ir.cost.of(small).params < ir.cost.of(model).params
    check(model, given, 0.3, 0, plan.groups)


def test_recorded_timings_give_the_same_choice() -> None:
    model, timings = residual(), Timings()
    plans = []
    for _ in range(2):
        ctx = context(model, [image(2, 3, 8, 8)] * 4)
        ctx.timings = timings
        plan = Prune(speedup=1.05, round_to=1, criterion="l1").plan(model, ctx)
        plans.append(plan.pace.units(1.0))  # type: ignore[union-attr]
    assert plans[0] == plans[1] and timings.replayed


@pytest.mark.parametrize("options", [{"ratio": 0.3}, {"macs": 0.3}, {"lossless": True}, {"scope": "local"}])
def test_speedup_stands_alone(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="speedup"):
        Prune(speedup=1.5, **options)


def test_a_large_step_has_stops_on_the_way_that_are_nearly_as_cheap() -> None:
    step = lambda units, loss, saved: blocks.Step(tuple(range(units)), (loss / units,) * units, saved)  # noqa: E731
    found = [step(2, 2.0, 0.1), step(4, 4.2, 4.0), step(6, 6.0, 6.0), step(8, 9.0, 6.5)]
    best = blocks._cheapest_of(found)
    assert len(best.units) == 6 and best.ends == (4, 6)
