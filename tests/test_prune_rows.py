"""Layers that see a pruned channel as rows: one linear layer for all channels, heads or filters at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnxslim_opt.passes.base import Context
from onnxslim_opt.passes.prune import Prune, groups
from onnxslim_opt.passes.prune import plan as planning
from onnxslim_opt.passes.prune.cut import cut
from onnxslim_opt.passes.prune.left import Left
from onnxslim_opt.passes.prune.refit import refit
from onnxslim_opt.passes.target import Target
from onnxslim_opt.runtime import feeds
from onnxslim_opt.runtime.session import Session
from prune_nets import Net

from onnxslim_opt import ir

CHANNELS = 8


def features(n: Net, last: int = 1) -> str:
    """`[2, 7, 8 · last]`: the last channel is a sum of the two before it."""
    weight, bias = n.weight(12, CHANNELS * last), n.weight(CHANNELS * last)
    for values in (n.weights[weight], n.weights[bias]):
        by_channel = values.reshape(-1, CHANNELS, last)
        by_channel[:, 7] = by_channel[:, 6] - 0.5 * by_channel[:, 5]
    return n.op("Add", n.op("MatMul", "x", weight), bias)


# No layer in the middle but that of the heads has a bias: it would differ from position to position in what the last
# channel is more than its sum, which no single bias behind makes up.
def turned(n: Net, x: str, *perm: int) -> str:
    return n.op("Transpose", x, perm=list(perm))


def frequencies(n: Net) -> str:
    """A linear layer over the last axis of an image (TDF), added to what it reads."""
    a = n.op("Reshape", turned(n, features(n, 4), 0, 2, 1), n.ints(2, CHANNELS, 4, 7))
    h = n.op("Add", n.op("MatMul", a, n.weight(7, 7)), a)
    return turned(n, n.op("Reshape", n.op("ReduceMean", h, axes=[2], keepdims=0), n.ints(2, CHANNELS, 7)), 0, 2, 1)


def tokens(n: Net) -> str:
    return turned(n, n.op("MatMul", turned(n, features(n), 0, 2, 1), n.weight(7, 5)), 0, 2, 1)


def heads(n: Net) -> str:
    a = n.op("Reshape", features(n, 3), n.ints(2, 7, CHANNELS, 3))
    return n.op("ReduceMean", n.linear(a, 3, 4), axes=[-1], keepdims=0)


def matrix(n: Net) -> str:
    a = n.op("Reshape", turned(n, features(n), 2, 0, 1), n.ints(CHANNELS, 14))
    return turned(n, n.op("Gemm", a, n.weight(5, 14), transB=1), 1, 0)


def equation(n: Net) -> str:
    return n.op("Einsum", features(n), n.weight(7, 5), equation="bsd,sk->bkd")


def batch(n: Net) -> str:
    """A convolution over positions, its batch the channels."""
    a = n.op("Conv", turned(n, features(n), 2, 0, 1), n.weight(3, 2, 3), pads=[1, 1])
    return turned(n, a, 1, 2, 0)


BLOCKS = {f.__name__: f for f in (frequencies, tokens, heads, matrix, equation, batch)}


def network(block: str) -> ir.Model:
    n = Net(x=[2, 7, 12])
    n.linear(BLOCKS[block](n), CHANNELS, 5)
    return n.model()


def context(model: ir.Model, count: int = 20) -> Context:
    rng = np.random.default_rng(0)
    data = [{"x": rng.standard_normal((2, 7, 12)).astype(np.float32)} for _ in range(count)]
    found = feeds.resolve(data, model)
    fit, check = found.split()
    return Context(Target(), fit, check, found.source, model, None)  # type: ignore[arg-type]


def distance(model: ir.Model, small: ir.Model, ctx: Context) -> float:
    """Squared error relative to the variance, on feeds that were not fitted on."""
    whole, part = Session(model), Session(small)
    pairs = [[next(iter(s.run(f).values())).astype(np.float64) for s in (whole, part)] for f in ctx.check]
    return float(np.mean([np.square(a - b).mean() / a.var() for a, b in pairs]))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_channel_that_others_make_up_leaves_no_trace(block: str, weighted: bool) -> None:
    model = network(block)
    ctx, found = context(model), groups(model)
    (family,) = [f for f in found.families if len(f.units) == CHANNELS]
    gone, kinds = family.units[-1:], planning.layers(model)
    goals = planning.goals(model, kinds, ctx.fit, ctx)
    rng = np.random.default_rng(1)
    for goal in goals.values() if weighted else ():
        goal.weights = [rng.random(len(p)).astype(np.float32) + 0.5 for p in goal.places]
    small, raw = model.copy(), model.copy()
    for one in (small, raw):
        cut(one, found.flow, gone)
        ir.order.sort(one)
    plan = planning.Plan(found, None, kinds, goals)  # type: ignore[arg-type]  # the units are given
    assert refit(small, kinds, ctx.fit, goals, Prune()._kept(plan, gone), ctx, ridges=(1e-9,)) == len(kinds) == 3
    assert distance(model, raw, ctx) > 1e-3
    assert distance(model, small, ctx) < 1e-9


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("criterion", ["obs", "l1"])
def test_the_pass_refits_them_and_enters_its_contest(block: str, criterion: str) -> None:
    model = network(block)
    ctx, small, raw = context(model), model.copy(), model.copy()
    wanted: dict[str, Any] = {"ratio": 0.4, "round_to": 1, "criterion": criterion}
    result = Prune(**wanted).run(small, ctx)
    assert result.did["layers refitted"] == 3 and ("contest" in result.details) == (criterion == "obs")
    Prune(**wanted, refit=False).run(raw, ctx)
    for one in (small, raw):
        ir.order.sort(one)
    assert distance(model, small, ctx) < 0.8 * min(distance(model, raw, ctx), 1.0)


def test_rows_that_stay_are_counted_anew() -> None:
    sizes, masks = (3, 4, 5), (None, np.array([1, 0, 1, 1], bool), np.array([0, 1, 0, 1, 1], bool))
    old = np.sort(np.random.default_rng(0).permutation(60)[:40])
    grid = np.arange(60).reshape(sizes)
    less = grid[:, masks[1]][:, :, masks[2]]
    stays, new = Left(np.ones(2, bool), masks).places(old, sizes)
    assert stays is not None and set(old[stays]) == set(old) & set(less.reshape(-1).tolist())
    np.testing.assert_array_equal(less.reshape(-1)[new], old[stays])
    assert Left.whole(2).places(old, sizes) == (None, old)


def test_a_layer_of_which_no_sampled_row_is_left_stays_as_it_is() -> None:
    model = network("matrix")
    ctx, kinds = context(model), planning.layers(model)
    goals = planning.goals(model, kinds, ctx.fit, ctx)
    kept = {x.node: Left.whole(goals[x.node].rows[0].shape[1]) for x in kinds}
    kept[kinds[1].node] = Left(kept[kinds[1].node].channels, (np.zeros(CHANNELS, bool),))
    assert refit(model, kinds, ctx.fit, goals, kept, ctx) == 2
