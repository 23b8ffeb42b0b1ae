"""Products that read one tensor: joined, exact at full rank, at low rank the optimum over all of them, and put back."""

from __future__ import annotations

import re

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnxslim_opt.passes.base import Context
from onnxslim_opt.passes.lowrank import LowRank, siblings
from onnxslim_opt.passes.lowrank.clock import alone
from onnxslim_opt.passes.lowrank.forms import rowspace
from onnxslim_opt.passes.lowrank.layer import candidates, read
from onnxslim_opt.passes.lowrank.lowrank import FORMS
from onnxslim_opt.passes.lowrank.norm import Norm
from onnxslim_opt.passes.target import Target
from onnxslim_opt.runtime import Session, Timings, resolve
from onnxslim_opt.runtime.sources import DataOptions

from onnxslim_opt import ir

WIDTH, OUTPUTS = 32, (32, 24, 48)


def attention(op="MatMul", seed=0, scales=(1.0, 5.0, 0.2)):
    """Three products of one input, each with a bias, and one of another input."""
    rng = np.random.default_rng(seed)
    x = gs.Variable("x", np.float32, ["n", WIDTH])
    nodes, outputs = [], []
    for k, (outs, scale) in enumerate(zip(OUTPUTS, scales)):
        weight = (rng.standard_normal((WIDTH, outs)) * scale).astype(np.float32)
        bias, y = rng.standard_normal(outs).astype(np.float32), gs.Variable(f"out{k}", np.float32)
        if op == "Gemm":
            inputs = [x, gs.Constant(f"w{k}", np.ascontiguousarray(weight.T)), gs.Constant(f"b{k}", bias)]
            nodes.append(gs.Node("Gemm", f"p{k}", {"transB": 1, "alpha": 0.5 + k}, inputs, [y]))
        else:
            mid = gs.Variable(f"mid{k}", np.float32)
            nodes.append(gs.Node("MatMul", f"p{k}", {}, [x, gs.Constant(f"w{k}", weight)], [mid]))
            nodes.append(gs.Node("Add", f"a{k}", {}, [mid, gs.Constant(f"b{k}", bias)], [y]))
        outputs.append(y)
    last = gs.Variable("other", np.float32)
    square = gs.Constant("w", rng.standard_normal((OUTPUTS[0], 32)).astype(np.float32))
    nodes.append(gs.Node("MatMul", "later", {}, [outputs[0], square], [last]))
    model = ir.from_proto(gs.export_onnx(gs.Graph(nodes, [x], [*outputs, last], opset=17)))
    ir.shapes.refresh(model)
    return model


def context(model, rows, exclude=None):
    feeds = resolve([{"x": r} for r in rows], model, DataOptions())
    fit, check = feeds.split()
    pattern = re.compile(exclude) if exclude else None
    return Context(Target.detect(), fit, check, "data", model.copy(), Timings(), exclude=pattern)


def rows(seed=1, count=12):
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((WIDTH, WIDTH)) * np.exp(-np.arange(WIDTH) / 8)[:, None]
    return [(rng.standard_normal((40, WIDTH)) @ mixing + 1).astype(np.float32) for _ in range(count)]


def split(model, ctx, **options):
    copy = model.copy()
    result = LowRank(min_gain=-1, **options).run(copy, ctx)
    ir.order.sort(copy)
    ir.shapes.refresh(copy)
    ir.verify.check(copy)
    return copy, result


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_joint_split_is_exact_at_full_rank_and_shares_its_first_factor(op, monkeypatch):
    model = attention(op)
    layers = siblings.bundled([read(n, (40, WIDTH)) for n in candidates(model)])
    assert [layer.names for layer in layers] == [("p0", "p1", "p2"), ("later",)]
    joint, copy = layers[0], model.copy()
    form = FORMS["svd"]
    factors = form.start(joint, form.full(joint), Norm.identity(WIDTH))
    factors = [np.linalg.lstsq(factors[1].T, joint.flat.T, rcond=None)[0].T, factors[1]]
    again = siblings.reader(copy)(joint.names, joint.size)
    lasts = siblings.put(copy, again, form.chain(again, factors), np.zeros(sum(OUTPUTS)), "svd")
    ir.order.sort(copy)
    ir.verify.check(copy)
    assert [layer.node.name for layer, _ in lasts] == ["p0", "p1", "p2"]
    assert sum(n.op == op for n in copy.graph.nodes if n.name != "later") == 4
    feed = {"x": rows()[0]}
    before, after = Session(model).run(feed), Session(copy).run(feed)
    assert list(before) == list(after)
    for name, value in before.items():
        assert np.abs(after[name] - value).max() < 1e-4 * np.abs(value).max()


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_at_low_rank_all_of_them_are_at_the_optimum_and_keep_their_means(op):
    model, data = attention(op), rows()
    ctx = context(model, data)
    copy, result = split(model, ctx, rank=6)
    found = {r["layer"]: r for r in result.details["layers"]}
    assert found["p0"]["with"] == ["p1", "p2"] and found["p0"]["rank"] == [6]
    assert result.did["layers split"] == 4
    seen = np.concatenate([f["x"] for f in ctx.fit]).astype(np.float64)
    layer = siblings.bundled([read(n, (40, WIDTH)) for n in candidates(model)])[0]
    norm = Norm.of(seen.mean(0), len(seen), second=seen.T @ seen / len(seen))
    inner = rowspace(layer.flat, norm, 6)
    crossed = norm.apply(inner)
    outer = np.linalg.solve(crossed @ inner.T, crossed @ layer.flat.T).T
    error = norm.energy(layer.flat - outer @ inner) / norm.energy(layer.flat)
    assert found["p0"]["error"] == pytest.approx(error, rel=1e-6)
    before, after = (
        Session(model).run({"x": seen.astype(np.float32)}),
        Session(copy).run({"x": seen.astype(np.float32)}),
    )
    for name in ("out0", "out1", "out2"):
        assert np.allclose(before[name].mean(0), after[name].mean(0), atol=1e-3 * np.abs(before[name]).max())


def test_what_is_excluded_or_of_another_kind_is_not_joined():
    model, data = attention(), rows()
    _, result = split(model, context(model, data, exclude="p1"), rank=6)
    found = {r["layer"]: r for r in result.details["layers"]}
    assert found["p0"]["with"] == ["p2"] and found["p1"]["skipped"] == "excluded"


def test_the_clock_sees_a_joint_layer_as_it_will_run():
    layer = siblings.bundled([read(n, (40, WIDTH)) for n in candidates(attention())])[0]
    whole = alone(layer, [layer.whole])
    chain = alone(layer, FORMS["svd"].empty(layer, (8,)))
    assert [n.op for n in whole.graph.nodes] == ["MatMul"] * 3
    assert [n.op for n in chain.graph.nodes] == ["MatMul"] * 4
    for model in (whole, chain):
        found = Session(model).run({"x": np.ones((40, WIDTH), np.float32)})
        assert [v.shape[-1] for v in found.values()] == list(OUTPUTS)
