"""Weights in another form than they are used in are pruned as all others are; the twin is the judge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnxslim_opt.passes.prune import Prune, criteria, groups
from prune_nets import Net, image
from prune_stored import STORED, Stored
from prune_twin import check, distance, run
from test_prune_pass import context

from onnxslim_opt import ir


@pytest.mark.parametrize("norms", ["pin", "allow"])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", STORED)
def test_pruned_equals_its_twin(name: str, ratio: float, norms: str) -> None:
    make, shape, units = STORED[name]
    for seed in range(3):
        found, *_ = check(make(), image(*shape), ratio, seed, norms=norms)
        assert len(found.units) == units


@pytest.mark.parametrize("options", [{"ratio": 0.4}, {"ratio": 0.4, "criterion": "l1"}, {"lossless": True}])
@pytest.mark.parametrize("name", ["images_half", "images_int8", "sequence_scaled", "LSTM_half", "reshaped_int8"])
def test_the_pass_says_what_it_cannot_refit(name: str, options: dict[str, Any]) -> None:
    make, shape, _ = STORED[name]
    model, rng = make(), np.random.default_rng(0)
    ctx = context(model, [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(12)])
    small, prune = model.copy(), Prune(round_to=1, **options)
    result = prune.apply(small, prune.plan(model, ctx), 1.0, ctx)
    if "lossless" in options:
        assert not result.changed
        return
    ir.order.sort(small)
    ir.verify.check(small)
    assert 0 < distance(run(ir.to_proto(model), image(*shape)), run(ir.to_proto(small), image(*shape))) < 2
    said = {s.reason for s in result.skipped if s.node != "*"}
    assert any(why.startswith("not refitted: ") for why in said)


def test_a_share_names_the_layer_that_reads_the_weight() -> None:
    n = Stored("half", x=["N", 3, 6, 6])
    a = n.op("Relu", n.op("Conv", "x", n.stored(8, 3, 3, 3), pads=[1] * 4))
    a = n.op("Relu", n.op("Conv", a, n.stored(8, 8, 3, 3), pads=[1] * 4))
    model = n.head(n.op("Conv", a, n.stored(6, 8, 1, 1)), 6)
    rng = np.random.default_rng(0)
    ctx = context(model, [{"x": rng.standard_normal((2, 3, 6, 6)).astype(np.float32)} for _ in range(12)])
    names = [node.name for node in model.graph.nodes if node.op == "Conv"]
    prune = Prune(ratio=0.3, shares=(f"{names[0]}$=0.5", f"{names[1]}$=0"), round_to=1, criterion="l1")
    small = model.copy()
    prune.apply(small, prune.plan(model, ctx), 1.0, ctx)
    made = [node.inputs[0].shape[0] for node in small.graph.nodes if node.op == "Cast"]
    assert made[:2] == [4, 8]


def test_heads_of_quantized_attention_are_free() -> None:
    found = groups(STORED["sequence_int8"][0](), image(2, 5))
    # 3 heads, 4 dimensions of q and k, 4 of v, 12 channels of the stream, 10 of the Einsum
    assert sorted(len(f.units) for f in found.families) == [3, 4, 4, 10, 12]


def test_a_shared_weight_in_half_precision_loses_the_same_columns() -> None:
    n = Net(x=["N", 4, 6])
    table, back = n.weight(6, 8), n.weight(8, 6)
    n.weights[table] = n.weights[table].astype(np.float16)
    first, second = n.op("Cast", table, to=1), n.op("Cast", table, to=1)
    h = n.op("MatMul", n.op("Tanh", n.op("MatMul", "x", first)), back)
    n.op("MatMul", n.op("Tanh", n.op("MatMul", h, second)), n.weight(8, 3))
    found, *_ = check(n.model(), image(2, 4, 6))
    assert sorted(len(f.units) for f in found.families) == [8]


def test_weights_in_blocks_stay_with_a_reason() -> None:
    n = Net(x=[2, 8], opset=21)
    weight, scale = n.weight(8, 6), n.weight(2, 6)
    n.weights[weight] = np.clip(np.round(n.weights[weight] * 60), -127, 127).astype(np.int8)
    made = n.op("DequantizeLinear", weight, scale, axis=0, block_size=4)
    n.linear(n.op("Relu", n.op("MatMul", "x", made)), 6, 4)
    rows = {(r.channels, r.pinned) for r in groups(n.model(), image(2, 8)).describe()}
    assert (6, "block-wise DequantizeLinear 'DequantizeLinear_0'") in rows


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("criterion", ["l1", "l2", "fpgm"])
def test_integers_are_weighed_by_the_numbers_they_stand_for(criterion: str, kind: Any) -> None:
    """Six of twelve units hardly count, though their integers are as large as those of the others."""
    n, rng = Net(x=[2, 5, 8]), np.random.default_rng(3)
    codes, scale, zero = n.weight(8, 12), n.weight(12), n.weight(12)
    middle = 128 if kind is np.uint8 else 0
    n.weights[codes] = (rng.integers(-127, 128, (8, 12)) + middle).astype(kind)
    n.weights[scale] = np.where(np.arange(12) < 6, 1e-6, 1e-2).astype(np.float32)
    n.weights[zero] = np.full(12, middle, kind)
    n.linear(n.op("Tanh", n.op("MatMul", "x", n.op("DequantizeLinear", codes, scale, zero, axis=1))), 12, 6)
    model = n.model()
    data = [{"x": rng.standard_normal((2, 5, 8)).astype(np.float32)} for _ in range(12)]
    small = model.copy()
    Prune(ratio=0.5, round_to=1, criterion=criterion, refit=False).run(small, context(model, data))
    ir.order.sort(small)
    assert distance(run(ir.to_proto(model), data[0]), run(ir.to_proto(small), data[0])) < 1e-3


@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Einsum"])
def test_activations_are_those_of_the_data_where_a_stored_weight_comes_first(op: str) -> None:
    n = Stored("half", x=[8, 5])
    loud = n.weight(12, 1)
    n.weights[loud] = np.where(np.arange(12) < 6, 1e-3, 1.0).astype(np.float32)[:, None]
    h = n.op("Mul", n.op("Tanh", n.op("MatMul", n.stored(12, 8), "x")), loud)
    n.op(op, n.stored(4, 12), h, **({"equation": "ab,bc->ac"} if op == "Einsum" else {}))
    model = n.model()
    found = groups(model, image(8, 5))
    ctx = context(model, [{"x": np.ones((8, 5), np.float32) * k} for k in range(1, 5)])
    scores = criteria.activations(model, found, ctx.fit, ctx)
    quiet, high = np.split(np.array([scores[int(u)] for u in found.units]), 2)
    assert quiet.max() < 0.05 * high.min()


def test_a_stored_weight_that_stays_is_listed_once() -> None:
    n = Stored("half", x=[2, 5, 8])
    weight = n.stored(8, 8)
    n.op("Concat", *(n.op("MatMul", n.op(op, "x"), weight) for op in ("Abs", "Tanh", "Neg")), axis=0)
    assert [row.channels for row in groups(n.model(), image(2, 5, 8)).describe()] == [8]
