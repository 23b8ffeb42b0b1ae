"""Heads split one by one: recognised as exporters spell them, exact at full rank, at low rank each at its optimum."""

from __future__ import annotations

import re

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnxslim_opt.passes.base import Context
from onnxslim_opt.passes.lowrank import LowRank, ranks, siblings
from onnxslim_opt.passes.lowrank.clock import Clock, alone
from onnxslim_opt.passes.lowrank.layer import candidates, read
from onnxslim_opt.passes.lowrank.lowrank import FORMS
from onnxslim_opt.passes.lowrank.norm import Norm
from onnxslim_opt.passes.lowrank.views import seen
from onnxslim_opt.passes.target import Target
from onnxslim_opt.runtime import Session, Timings, probe, resolve
from onnxslim_opt.runtime.sources import DataOptions

from onnxslim_opt import ir

STEPS, WIDTH, HEADS, SIZE = 10, 48, 3, 16
OUTPUTS = HEADS * SIZE
FORM = FORMS["heads"]


class Graph:
    """Nodes one after the other, each with one output."""

    def __init__(self, seed=0):
        self.rng, self.nodes = np.random.default_rng(seed), []

    def add(self, op, *inputs, **attrs):
        out = gs.Variable(f"v{len(self.nodes)}", np.float32)
        given = [self.constant(i) if isinstance(i, np.ndarray) else i for i in inputs]
        self.nodes.append(gs.Node(op, f"{op.lower()}{len(self.nodes)}", attrs, given, [out]))
        return out

    def constant(self, values):
        return gs.Constant(f"c{self.rng.integers(1 << 60)}", values)

    def random(self, *shape):
        return (self.rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

    def model(self, x, *outputs):
        model = ir.from_proto(gs.export_onnx(gs.Graph(self.nodes, [x], list(outputs), opset=17)))
        ir.shapes.refresh(model)
        return model


def projection(shape=(0, 0, HEADS, SIZE), perm=(0, 2, 1, 3), size=("n", "s", WIDTH), op="MatMul", bias=True):
    """One product read as heads, by its Reshape's target and its Transpose."""
    g, x = Graph(), gs.Variable("x", np.float32, list(size))
    if op == "Gemm":
        value = g.add("Gemm", x, g.random(OUTPUTS, WIDTH), g.random(OUTPUTS), transB=1, alpha=0.5)
    else:
        value = g.add("MatMul", x, g.random(WIDTH, OUTPUTS))
        value = g.add("Add", value, g.random(OUTPUTS)) if bias else value
    value = g.add("Reshape", value, np.array(shape, np.int64))
    return g.model(x, g.add("Transpose", value, perm=list(perm)) if perm else value)


def attention(flipped=True, computed=False, kept=SIZE):
    """Softmax(Q Kᵀ) V and its projection back; keys [B, H, d, S] at once where flipped. kept: rank of every head."""
    g, x = Graph(), gs.Variable("x", np.float32, ["n", "s", WIDTH])
    target = gs.Constant("target", np.array([0, 0, HEADS, SIZE], np.int64))
    if computed:
        sizes = g.add("Shape", x)
        two = g.add("Slice", sizes, np.array([0], np.int64), np.array([2], np.int64))
        target = g.add("Concat", two, np.array([HEADS, SIZE], np.int64), axis=0)
        for node in g.nodes:
            node.outputs[0].dtype = np.int64
    q, k, v = (
        g.add(
            "Transpose",
            g.add("Reshape", g.add("Add", g.add("MatMul", x, by_head(g, kept)), g.random(OUTPUTS)), target),
            perm=perm,
        )
        for perm in ([0, 2, 1, 3], [0, 2, 3, 1] if flipped else [0, 2, 1, 3], [0, 2, 1, 3])
    )
    keys = k if flipped else g.add("Transpose", k, perm=[0, 1, 3, 2])
    mixed = g.add("MatMul", g.add("Softmax", g.add("MatMul", q, keys), axis=-1), v)
    flat = g.add("Reshape", g.add("Transpose", mixed, perm=[0, 2, 1, 3]), np.array([0, 0, OUTPUTS], np.int64))
    return g.model(x, g.add("MatMul", flat, g.random(OUTPUTS, WIDTH)))


def by_head(g, rank):
    """A weight (D, H·d) whose blocks have this rank, each in a space of its own."""
    return np.concatenate([g.random(WIDTH, rank) @ g.random(rank, SIZE) for _ in range(HEADS)], axis=1)


def rows(count=12, seed=1, batch=2):
    """Feeds whose positions lie near a few directions, with a mean."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((WIDTH, WIDTH)) * np.exp(-np.arange(WIDTH) / 8)[:, None]
    return [(rng.standard_normal((batch, STEPS, WIDTH)) @ mixing + 0.5).astype(np.float32) for _ in range(count)]


def context(model, data=None, exclude=None, **options):
    feeds = resolve([{"x": r} for r in data or rows()], model, DataOptions())
    fit, check = feeds.split()
    pattern = re.compile(exclude) if exclude else None
    return Context(Target.detect(), fit, check, "data", model.copy(), Timings(), exclude=pattern, **options)


def split(model, ctx, **options):
    copy = model.copy()
    result = LowRank(**{"min_gain": -1, "forms": ("heads",), **options}).run(copy, ctx)
    ir.order.sort(copy)
    ir.shapes.refresh(copy)
    ir.verify.check(copy)
    return copy, {r["layer"]: r for r in result.details["layers"]}


def only(model, size=(2, STEPS, WIDTH)):
    """The first product as a layer, with what is known of its heads."""
    return seen(model, read(candidates(model)[0], size))


def relative(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def outputs(model, feed):
    return list(Session(model).run({"x": feed}).values())


SPELLINGS = {
    "zeros": {},
    "numbers": {"shape": (2, STEPS, HEADS, SIZE)},
    "open batch": {"shape": (-1, STEPS, HEADS, SIZE)},
    "open heads": {"shape": (0, 0, -1, SIZE)},
    "open size": {"shape": (2, STEPS, HEADS, -1), "size": (2, STEPS, WIDTH)},
    "d before positions": {"perm": (0, 2, 3, 1)},
    "heads in two axes": {"shape": (0, 0, HEADS, 2, SIZE // 2), "perm": (2, 0, 3, 1, 4)},
    "two axes of heads, the other way about": {"shape": (0, 0, HEADS, 2, SIZE // 2), "perm": (3, 2, 0, 1, 4)},
    "no batch": {"shape": (-1, HEADS, SIZE), "perm": (1, 0, 2)},
    "Gemm of rows": {"op": "Gemm", "size": (20, WIDTH), "shape": (2, STEPS, HEADS, SIZE)},
    "no bias": {"bias": False},
}


@pytest.mark.parametrize("key", SPELLINGS)
def test_full_rank_reproduces_the_layer_however_heads_are_spelled(key):
    model = projection(**SPELLINGS[key])
    x = rows(1)[0].reshape(20, WIDTH) if SPELLINGS[key].get("op") == "Gemm" else rows(1)[0]
    layer, copy = only(model, x.shape), model.copy()
    assert FORM.refuse(layer) is None
    rank = FORM.full(layer)
    assert rank == (layer.view.size,)
    factors = FORM.start(layer, rank, Norm.identity(WIDTH))
    assert tuple(f.shape for f in factors) == FORM.shapes(layer, rank)
    stages = FORM.chain(layer, factors)
    assert FORM.cost(layer, rank) == (layer.macs_of(stages), sum(s.weight.size for s in stages))
    shift = np.zeros(OUTPUTS) if layer.adjustable else None
    assert siblings.put(copy, read(candidates(copy)[0], x.shape), stages, shift, "heads") == []
    ir.order.sort(copy)
    ir.shapes.refresh(copy)
    ir.verify.check(copy)
    assert [n.op for n in copy.graph.nodes].count("MatMul") == 2
    assert all(n.op in ("MatMul", "Add", "Reshape", "Transpose") for n in copy.graph.nodes)
    assert relative(outputs(copy, x)[0], outputs(model, x)[0]) < 1e-5
    assert ir.cost.of(copy, probe.shapes(copy, {"x": x})).macs == FORM.cost(layer, rank)[0]


REFUSED = {
    "no Transpose": ({"perm": None}, "only read by a Reshape|no Transpose"),
    "not into heads": ({"shape": (0, -1, 24), "perm": (0, 2, 1)}, r"\[heads, size of a head\]"),
    "one head": ({"shape": (0, 0, 1, OUTPUTS)}, r"\[heads, size of a head\]"),
    "positions in the heads": ({"shape": (2, 5, 2, OUTPUTS), "size": (2, STEPS, WIDTH)}, r"\[heads, size of a head\]"),
    "heads stay inside": ({"perm": (1, 0, 2, 3)}, "batches"),
    "d becomes a batch": ({"perm": (0, 3, 2, 1)}, "batches"),
    "copied outputs": ({"shape": (HEADS, STEPS, 0, SIZE), "size": (SIZE, STEPS, WIDTH)}, r"\[heads, size of a head\]"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_is_read_in_another_way_is_refused_with_the_reason(key):
    options, reason = REFUSED[key]
    assert re.search(reason, FORM.refuse(only(projection(**options))))


def test_other_readers_and_other_layers_are_refused():
    model = attention()
    layers = [seen(model, read(n, (2, STEPS, WIDTH))) for n in candidates(model)]
    assert [FORM.refuse(layer) for layer in layers[:3]] == [None] * 3
    assert FORM.refuse(layers[3]) == "its output is not only read by a Reshape to heads"
    assert FORM.refuse(read(candidates(model)[0], (2, STEPS, WIDTH))) == "heads serves products that are read as heads"
    reshape = next(n for n in model.graph.nodes if n.op == "Reshape")
    model.graph.outputs.append(reshape.inputs[0])
    assert "not only read by" in FORM.refuse(seen(model, layers[0]))


@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize("flipped", [False, True])
def test_attention_of_heads_of_low_rank_stays_right_for_any_batch_and_length(flipped, computed):
    model = attention(flipped, computed, kept=4)
    copy, found = split(model, context(model), rank=4)
    assert sum(r.get("form") == "heads" for r in found.values()) == 1
    first = next(r for r in found.values() if "form" in r)
    assert len(first["with"]) == 2 and first["rank"] == [4]
    for shape in ((1, 4, WIDTH), (3, 17, WIDTH)):
        x = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
        assert relative(outputs(copy, x)[0], outputs(model, x)[0]) < 1e-4
    assert list(copy.graph.inputs[0].shape) == ["n", "s", WIDTH]


def test_the_error_is_the_sum_of_every_heads_optimum_in_the_norm_of_the_data():
    model, rank = projection(), 5
    ctx = context(model)
    copy, found = split(model, ctx, rank=rank)
    row = found["matmul0"]
    x = np.concatenate([f["x"] for f in ctx.fit]).reshape(-1, WIDTH).astype(np.float64)
    norm = Norm.of(x.mean(0), len(x), second=x.T @ x / len(x))
    weight = only(model).flat.astype(np.float64)
    lower, lost = norm.cholesky, 0.0
    for block in np.split(weight, HEADS):
        lost += float((np.linalg.svd(block @ lower, compute_uv=False)[rank:] ** 2).sum())
    ridged = norm.inner_energy(weight)
    factors = FORM.start(only(model), (rank,), norm)
    missing = weight - np.einsum(FORM.spec(only(model)), *factors)
    assert norm.inner_energy(missing) == pytest.approx(lost, rel=1e-9)
    assert row["error"] == pytest.approx(norm.energy(missing) / norm.energy(weight), rel=1e-4)
    assert row["error"] == pytest.approx(lost / ridged, rel=0.05)
    before, after = outputs(model, x[None].astype(np.float32))[0], outputs(copy, x[None].astype(np.float32))[0]
    assert np.allclose(before.mean(2), after.mean(2), atol=1e-4 * np.abs(before).max())
    shown = float(((before - after) ** 2).sum() / ((before - before.mean(2, keepdims=True)) ** 2).sum())
    assert shown == pytest.approx(row["error"], rel=1e-3)


def test_where_heads_read_apart_this_form_beats_one_factor_for_all_and_the_plan_takes_it():
    g, x = Graph(3), gs.Variable("x", np.float32, ["n", "s", WIDTH])
    value = g.add("MatMul", x, by_head(g, 4))
    value = g.add("Reshape", value, np.array([0, 0, HEADS, SIZE], np.int64))
    model = g.model(x, g.add("Transpose", value, perm=[0, 2, 1, 3]))
    noise = [np.random.default_rng(k).standard_normal((2, STEPS, WIDTH)).astype(np.float32) for k in range(12)]
    ctx = context(model, noise)
    _, found = split(model, ctx, forms=("svd", "heads"), macs=0.6)
    row = found["matmul0"]
    assert row["form"] == "heads" and row["error"] < 1e-9
    _, found = split(model, ctx, forms=("svd",), macs=0.6)
    assert found["matmul0"]["error"] > 0.05


def test_joint_members_keep_the_size_of_their_own_weights():
    model = attention(kept=4)
    for node, scale in zip(candidates(model)[:2], (20.0, 0.05)):
        ir.edit.set_input(node, 1, ir.edit.constant(model, "w", node.inputs[1].values * np.float32(scale)))
    copy, found = split(model, context(model), rank=4)
    assert "form" in next(iter(found.values()))
    x = rows(1)[0]
    assert relative(outputs(copy, x)[0], outputs(model, x)[0]) < 1e-4


def test_excluded_layers_stay_and_the_report_gives_the_reason():
    model = attention()
    names = [n.name for n in candidates(model)]
    _, found = split(model, context(model, exclude=names[1]), rank=6)
    assert found[names[0]]["with"] == [names[2]] and found[names[1]]["skipped"] == "excluded"
    assert found[names[3]]["skipped"].endswith("not only read by a Reshape to heads")


def test_without_being_asked_for_nothing_is_split_by_heads():
    model = attention()
    _, found = split(model, context(model), forms=(), rank=0.5)
    assert {r["form"] for r in found.values() if "form" in r} == {"svd"}


def test_an_energy_is_kept_by_the_lowest_rank_that_keeps_it():
    model = projection()
    ctx = context(model)
    _, found = split(model, ctx, energy=0.95)
    row = found["matmul0"]
    _, lower = split(model, ctx, rank=row["rank"][0] - 1)
    assert row["error"] <= 0.05 < lower["matmul0"]["error"]


def test_it_steps_back_where_quant_follows():
    model = attention()
    ctx = context(model, follows=("quant",))
    _, found = split(model, ctx, rank=6)
    assert all("form" not in r for r in found.values())


def test_refit_leaves_heads_alone():
    model = attention()
    copy, found = split(model, context(model), forms=("svd", "heads"), rank=6, refit=True)
    assert sum("form" in r for r in found.values()) == 2
    x = rows(1)[0]
    assert np.isfinite(outputs(copy, x)[0]).all()


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_the_clock_sees_what_makes_heads_of_every_chain(op):
    options = {"op": op, "shape": (2, STEPS, HEADS, SIZE)}
    layer = only(projection(**options), (20, WIDTH) if op == "Gemm" else (2, STEPS, WIDTH))
    chains = {
        "whole": [layer.whole],
        "svd": FORMS["svd"].empty(layer, (8,)),
        "heads": FORM.empty(layer, (4,)),
    }
    for name, chain in chains.items():
        model = alone(layer, chain)
        y = Session(model).run({"x": np.ones(layer.size, np.float32)})["y"]
        assert y.size == 20 * OUTPUTS and y.shape[1:] == (HEADS, y.shape[2], SIZE), name
    assert [n.op for n in alone(layer, chains["heads"]).graph.nodes].count("MatMul") == 2
    before, after = Clock(1, Timings()).pair(layer, chains["heads"])
    assert before > 0 and after > 0


def test_the_clock_sees_joint_heads_as_they_will_run():
    model = attention()
    found = siblings.bundled([seen(model, read(n, (2, STEPS, WIDTH))) for n in candidates(model)])
    joint = next(layer for layer in found if layer.members)
    products = {"whole": 3, "svd": 4, "heads": 6}
    chains = {"whole": [joint.whole], "svd": FORMS["svd"].empty(joint, (8,)), "heads": FORM.empty(joint, (4,))}
    for name, chain in chains.items():
        little = alone(joint, chain)
        shapes = [v.shape for v in Session(little).run({"x": np.ones(joint.size, np.float32)}).values()]
        assert shapes == [(2, HEADS, STEPS, SIZE), (2, HEADS, SIZE, STEPS), (2, HEADS, STEPS, SIZE)]
        assert [n.op for n in little.graph.nodes].count("MatMul") == products[name]


def test_ranks_by_share_by_number_and_by_evbmf():
    model = projection()
    layer = only(model)
    assert ranks.given(FORM, layer, 0.5, 16) == (8,)
    assert ranks.given(FORM, layer, 40, 16) == (SIZE,)
    assert 1 <= ranks.by_evbmf(FORM, layer)[0] <= SIZE
    grid = ranks.grid(FORM, layer, 16, 0.95)
    assert grid == sorted(set(grid), reverse=True)
    assert all(FORM.cost(layer, r)[0] <= 0.95 * layer.macs for r in grid)
