"""Criteria without second moments, groups of one structure, and shares that the user sets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import helper
from onnxslim_opt.ir.errors import OptionError
from onnxslim_opt.passes.base import Context
from onnxslim_opt.passes.gammas import gammas
from onnxslim_opt.passes.prune import Prune, criteria, groups
from onnxslim_opt.passes.prune.order import structures
from onnxslim_opt.passes.simplify import Simplify
from onnxslim_opt.passes.target import Target
from onnxslim_opt.runtime import feeds
from prune_nets import Net
from prune_twin import build

from onnxslim_opt import ir, optimize

RNG = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def chain(first: np.ndarray) -> ir.Model:
    """Three convolutions of 12 channels and a head."""
    w = {"a": first, "b": weights(12, 12, 3, 3), "c": weights(12, 12, 3, 3), "d": weights(4, 12, 1, 1)}
    nodes, x = [], "x"
    for name in "abcd":
        pads = [0] * 4 if name == "d" else [1] * 4
        nodes.append(helper.make_node("Conv", [x, name], [f"y{name}"], name=f"conv_{name}", pads=pads))
        nodes.append(helper.make_node("Relu", [f"y{name}"], [x := f"z{name}"]))
    return build(nodes, {"x": [1, 3, 6, 6]}, w)


def context(model: ir.Model) -> Context:
    data = [{"x": np.abs(weights(1, 3, 6, 6))} for _ in range(20)]
    found = feeds.resolve(data, model)
    fit, check = found.split()
    return Context(Target(), fit, check, found.source, model, None)  # type: ignore[arg-type]


def order_of(scores: dict[int, float], model: ir.Model) -> list[int]:
    """Channels of the first convolution, the cheapest first."""
    found = groups(model)
    units = next(f.units for f in found.families if ("conv_a", 1, 0) in f.members)
    return np.argsort([scores[int(u)] for u in units], kind="stable").tolist()


def test_the_filter_in_the_middle_of_the_others_is_the_one_they_can_replace() -> None:
    first = weights(12, 3, 3, 3)
    first[7] = np.median(np.delete(first, 7, 0), axis=0)
    model = chain(first)
    for k in "b":  # equal slices elsewhere, so that the first weight alone decides
        node = next(n for n in model.graph.nodes if n.name == f"conv_{k}")
        same = np.repeat(weights(12, 1, 3, 3), 12, 1)
        ir.edit.set_input(node, 1, ir.edit.constant(model, "same", same))
    assert order_of(criteria.distances(model, groups(model)), model)[0] == 7


def test_channels_that_hardly_fire_score_low() -> None:
    first = weights(12, 3, 3, 3)
    first[[2, 9]] = -np.abs(first[[2, 9]])  # on positive inputs these never fire
    model = chain(first)
    ctx = context(model)
    scores = criteria.activations(model, groups(model), ctx.fit, ctx)
    assert set(order_of(scores, model)[:2]) == {2, 9}


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_units_of_a_recurrent_layer_score_by_what_reads_them(kind: str) -> None:
    n = Net(x=[1, 3, 6, 6])
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    steps = n.op("Transpose", n.op("Reshape", "x", n.ints(1, 3, 36)), perm=[2, 0, 1])
    made = n.op(kind, steps, n.weight(1, gates * 6, 3), n.weight(1, gates * 6, 6), hidden_size=6)
    n.linear(n.op("Squeeze", made, n.ints(1)), 6, 4)
    model = n.model()
    found = groups(model)
    scores = criteria.activations(model, found, context(model).fit, context(model))
    assert set(scores) == set(found.units.tolist()) and len(scores) == 6
    small = model.copy()
    assert Prune(ratio=0.5, round_to=1, criterion="activation").run(small, context(model)).did["channels removed"] == 3
    assert small.graph.nodes[2].attrs["hidden_size"] == 3


def test_positions_that_groups_share_score_by_all_of_them() -> None:
    """The same channel of each group goes; the second hardly fires in any."""
    n = Net(x=[1, 3, 6, 6])
    a = n.op("Relu", n.conv("x", 3, 12))
    weight, bias = n.nodes[0].input[1:]
    n.weights[weight][1::4], n.weights[bias][1::4] = 0, 1e-3
    n.head(n.conv(a, 12, 9, group=3), 9)
    model = n.model()
    found, ctx = groups(model), context(model)
    scores = criteria.activations(model, found, ctx.fit, ctx)
    (family,) = [f for f in found.families if len(f.units) == 4]
    assert int(np.argmin([scores[int(u)] for u in family.units])) == 1


def test_gammas_of_every_position_are_averaged() -> None:
    """BatchNormalization of opset 8 with spatial=0 has `[C, H, W]` of them."""
    n = Net(opset=8, x=[1, 3, 6, 6])
    a = n.conv("x", 3, 12)
    names = [n.weight(12, 6, 6) for _ in range(4)]
    n.weights[names[3]] = np.abs(n.weights[names[3]]) + 0.5
    n.weights[names[0]][5] *= 0.01
    n.head(n.conv(n.op("BatchNormalization", a, *names, spatial=0), 12, 7), 7)
    model = n.model()
    found, ctx = groups(model), context(model)
    scores = criteria.gammas(model, found, {})
    (family,) = [f for f in found.families if len(f.units) == 12]
    assert int(np.argmin([scores[int(u)] for u in family.units])) == 5
    small = model.copy()
    assert Prune(ratio=0.5, round_to=1, criterion="bn").run(small, ctx).changed
    norm = next(n for n in small.graph.nodes if n.op == "BatchNormalization")
    assert all(t.shape[0] < 12 and tuple(t.shape[1:]) == (6, 6) for t in norm.inputs[1:])


def test_gammas_rank_channels_whose_norms_were_fused() -> None:
    """Gammas near zero decide although a small spread makes the fused weights large."""
    n = Net(x=[1, 3, 6, 6])
    a = n.conv("x", 3, 12)
    gamma, beta, mean, var = (n.weight(12) for _ in range(4))
    n.weights[gamma], n.weights[var] = np.linspace(1, 2, 12, dtype=np.float32), np.ones(12, np.float32)
    n.weights[gamma][[1, 4, 9]], n.weights[var][[1, 4, 9]] = 1e-6, 1e-15
    norm = n.op("BatchNormalization", a, gamma, beta, mean, var, epsilon=1e-15)
    model = n.head(n.op("Relu", n.conv(n.op("Relu", norm), 12, 8)), 8)
    given = gammas(model)
    text, data = "prune:ratio=0.15:criterion=bn:round_to=1:refit=false", [{"x": weights(1, 3, 6, 6)} for _ in range(8)]
    notes = optimize(model, text, data=data).report.notes
    assert "prune: 8 of 20 channels pass no BatchNormalization: l1 ranks them" in notes
    Simplify().run(model)
    assert all(node.op != "BatchNormalization" for node in model.graph.nodes)
    found = groups(model)
    scores = criteria.gammas(model, found, given)
    (family,) = [f for f in found.families if len(f.units) == 12]
    assert set(np.argsort([scores[int(u)] for u in family.units])[:3].tolist()) == {1, 4, 9}


def test_groups_of_one_structure_share_a_number() -> None:
    found = groups(chain(weights(12, 3, 3, 3)))
    assert len(found.families) == 3 and len(set(structures(found))) == 1


@pytest.mark.parametrize("criterion", ["obs", "l1"])
def test_shares_hold_for_the_groups_they_name(criterion: str) -> None:
    model = chain(weights(12, 3, 3, 3))
    small = model.copy()
    wanted = Prune(ratio=0.4, shares=("conv_a$=0.5", "conv_c=0"), criterion=criterion, round_to=1)
    result = wanted.run(small, context(model))
    widths = {n.name: n.inputs[1].shape[0] for n in small.graph.nodes if n.op == "Conv"}
    assert result.changed and widths["conv_a"] == 6 and widths["conv_c"] == 12 and widths["conv_b"] < 12


@pytest.mark.parametrize("amount", [{"ratio": 0.1}, {"macs": 0.05}, {"params": 0.05}])
@pytest.mark.parametrize(("round_to", "left"), [(1, (3, 6)), (4, (4, 8))])
def test_shares_hold_beyond_the_amount(amount: dict[str, float], round_to: int, left: tuple[int, int]) -> None:
    """Two groups that lose more than the whole model is to lose; rounding thins no group below what was asked."""
    model = chain(weights(12, 3, 3, 3))
    wanted = Prune(**amount, shares=("conv_a$=0.75", "conv_b=0.5"), criterion="l1", round_to=round_to)
    ctx = context(model)
    plan, widths = wanted.plan(model, ctx), []
    for strength in (0.3, 0.7, 1.0):
        small = model.copy()
        wanted.apply(small, plan, strength, ctx)
        widths.append(tuple(n.inputs[1].shape[0] for n in small.graph.nodes if n.op == "Conv")[:3])
    assert widths[-1] == (*left, 12) and widths == sorted(widths, reverse=True)


@pytest.mark.parametrize("shares", [("conv=2",), ("conv",), ("(=0.5",), ("=0.5",)])
def test_bad_shares_are_refused(shares: tuple[str, ...]) -> None:
    with pytest.raises(OptionError, match="REGEX=SHARE"):
        Prune(shares=shares)


def test_an_expression_that_matches_nothing_is_an_error() -> None:
    model: Any = chain(weights(12, 3, 3, 3))
    with pytest.raises(OptionError, match="nothere matches no group"):
        Prune(ratio=0.3, shares=("nothere=0.5",), criterion="l1").run(model.copy(), context(model))


@pytest.mark.parametrize("options", [{"lossless": True}, {}])
def test_a_share_of_nothing_holds_for_what_is_dead(options: dict[str, Any]) -> None:
    model: Any = chain(weights(12, 3, 3, 3))
    for node in [n for n in model.graph.nodes if n.op == "Conv"][1:3]:
        values = node.inputs[1].values.copy()
        values[:, 2] = 0  # nobody reads channel 2 of the layer before
        node.inputs[1].values = values
    ctx = replace(context(model), source="random")
    widths = []
    for shares in ((), ("conv_a$=0",)):
        small = model.copy()
        Prune(shares=shares, **options).run(small, ctx)
        widths.append([n.inputs[1].shape[0] for n in small.graph.nodes if n.op == "Conv"][:2])
    assert widths == [[11, 11], [12, 11]]
    with pytest.raises(OptionError, match="nothere matches no group"):
        Prune(shares=("nothere=0",), **options).run(model.copy(), ctx)
