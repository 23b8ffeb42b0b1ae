"""Residual blocks: which are found, which go first, and what the refit recovers."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from onnx import helper
from onnxslim_opt.ir.errors import OptionError
from onnxslim_opt.passes.base import Context, PassResult, Skip
from onnxslim_opt.passes.droplayers import DropLayers, blocks, takers
from onnxslim_opt.passes.prune.neighbours import FEEDS, Neighbours, rectifying
from onnxslim_opt.passes.target import Target
from onnxslim_opt.passes.words import did
from onnxslim_opt.runtime import feeds
from onnxslim_opt.runtime.session import Session
from prune_twin import build

from onnxslim_opt import ir

RNG = np.random.default_rng(0)
LOUD = (1.0, 0.02, 0.7, 0.05)


def weights(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def network(post: bool) -> ir.Model:
    """Four blocks of given loudness, with a ReLU behind the sum or none; then pooling and a head."""
    w = {"stem": weights(8, 3, 3, 3), "fc": weights(8, 6)}
    nodes = [helper.make_node("Conv", ["x", "stem"], ["s0"], name="stem", pads=[1] * 4)]
    x = "s0"
    for k, loud in enumerate(LOUD):
        w |= {f"a{k}": weights(8, 8, 3, 3) / 8, f"b{k}": weights(8, 8, 3, 3) * np.float32(loud / 8)}
        nodes += [
            helper.make_node("Conv", [x, f"a{k}"], [f"u{k}"], name=f"first{k}", pads=[1] * 4),
            helper.make_node("Relu", [f"u{k}"], [f"v{k}"]),
            helper.make_node("Conv", [f"v{k}", f"b{k}"], [f"w{k}"], name=f"second{k}", pads=[1] * 4),
            helper.make_node("Add", [x, f"w{k}"], [f"s{k + 1}"], name=f"sum{k}"),
        ]
        x = f"s{k + 1}"
        if post:
            nodes.append(helper.make_node("Relu", [x], [x := f"r{k + 1}"]))
    nodes += [
        helper.make_node("GlobalAveragePool", [x], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "fc"], ["out"], name="head"),
    ]
    return build(nodes, {"x": [1, 3, 8, 8]}, w)


def images(count: int = 60) -> list[dict[str, np.ndarray]]:
    return [{"x": weights(1, 3, 8, 8) + weights(1, 3, 1, 1)} for _ in range(count)]


def drop(
    model: ir.Model, data: Any, said: list[str] | None = None, exclude: str = "", **options: Any
) -> tuple[ir.Model, Any]:
    found = feeds.resolve(data, model)
    fit, check = found.split()
    pattern = re.compile(exclude) if exclude else None
    ctx = Context(Target(), fit, check, found.source, model, None, exclude=pattern)  # type: ignore[arg-type]
    ctx.on_note = (said if said is not None else []).append
    small = model.copy()
    result = DropLayers(**options).run(small, ctx)
    ir.order.sort(small)
    ir.shapes.refresh(small)
    ir.verify.check(small)
    return small, result


def sums(model: ir.Model) -> list[str]:
    return [n.name for n in model.graph.nodes if n.op == "Add"]


def outputs(model: ir.Model, data: Any) -> np.ndarray:
    session = Session(model)
    return np.concatenate([session.run(x)["out"] for x in data])


@pytest.mark.parametrize("post", [False, True])
def test_every_residual_sum_is_a_block_and_the_quiet_ones_go_first(post: bool) -> None:
    model = network(post)
    assert [b.node for b in blocks(model)] == ["sum0", "sum1", "sum2", "sum3"]
    small, result = drop(model, images(), count=2)
    assert sums(small) == ["sum0", "sum2"] and result.did["blocks dropped"] == 2
    assert not any(n.name in ("first1", "second1") for n in small.graph.nodes)


@pytest.mark.parametrize("post", [False, True])
def test_without_the_refit_it_is_the_original_with_silent_branches(post: bool) -> None:
    model, data = network(post), images()
    small, _ = drop(model, data, count=3, refit=False)
    twin = model.copy()
    for k in {0, 1, 2, 3} - {int(n[-1]) for n in sums(small)}:
        node = next(n for n in twin.graph.nodes if n.name == f"second{k}")
        ir.edit.set_input(node, 1, ir.edit.constant(twin, "zero", np.zeros(node.inputs[1].shape, np.float32)))
    np.testing.assert_allclose(outputs(small, data), outputs(twin, data), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("post", [False, True])
def test_the_refit_takes_over_most_of_what_went(post: bool) -> None:
    model, data, fresh = network(post), images(200), images()
    want = outputs(model, fresh)
    errors = [
        float(np.square(outputs(drop(model, data, count=3, refit=r)[0], fresh) - want).mean()) for r in (True, False)
    ]
    assert errors[0] < 0.5 * errors[1]


def test_a_sum_that_changes_shape_or_is_an_output_stays() -> None:
    w = {"a": weights(4, 4, 1, 1), "b": weights(4, 4, 1, 1)}
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["y"], name="one"),
        helper.make_node("GlobalAveragePool", ["y"], ["g"]),
        helper.make_node("Conv", ["g", "b"], ["h"], name="two"),
        helper.make_node("Add", ["g", "y"], ["s"], name="wide"),  # g is made from y, and broadcast: y may stay alone
        helper.make_node("Add", ["s", "h"], ["out"], name="end"),
    ]
    assert [(b.node, b.skip) for b in blocks(build(nodes, {"x": [1, 4, 5, 5]}, w))] == [("wide", "y")]


def test_without_data_nothing_goes_unless_it_is_asked_for() -> None:
    said: list[str] = []
    _, result = drop(network(False), "random", said)
    assert not result.changed and any("no real data" in s for s in said)
    small, result = drop(network(False), "random", ratio=0.5)
    assert len(sums(small)) == 2 and result.did["layers refitted"] == 0


def test_a_count_and_a_ratio_contradict() -> None:
    with pytest.raises(OptionError, match="droplayers"):
        DropLayers(ratio=0.5, count=2)


def test_the_layer_before_a_block_is_fitted_to_its_sum() -> None:
    """Against least squares on all places: the stem, and what comes out of the first block."""
    model, data = network(False), images()
    found = feeds.resolve(data, model)
    ctx = Context(Target(), found, found, found.source, model, None)  # type: ignore[arg-type]
    takes = takers(model, blocks(model)[:1])
    change = Neighbours(model, takes, found, ctx).changes(takes)["stem"]
    few = list(found.spread(FEEDS))
    seen = [Session(model, outputs=["s1"]).run(f)["s1"] for f in few]
    padded = [np.pad(f["x"], [(0, 0), (0, 0), (1, 1), (1, 1)]) for f in few]
    rows = [np.lib.stride_tricks.sliding_window_view(p, (3, 3), (2, 3))[0] for p in padded]
    x = np.concatenate([r.transpose(1, 2, 0, 3, 4).reshape(64, 27) for r in rows]).astype(np.float64)
    y = np.concatenate([s[0].reshape(8, 64).T for s in seen])
    best = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0]
    np.testing.assert_allclose(change.weights[0], best[:-1].T, atol=0.02 * np.abs(best).max())
    np.testing.assert_allclose(change.shift, best[-1], atol=0.02 * np.abs(best).max())


def test_behind_a_relu_only_what_passes_it_is_asked_for() -> None:
    own = np.array([2.0, 2.0, -1.0, -1.0, -1.0, 0.0])
    aim = np.array([3.0, -1.0, -2.0, 0.5, 1.5, 0.2])
    np.testing.assert_array_equal(rectifying(own, aim), [3.0, 0.0, -1.0, -1.0, 1.5, 0.2])


def test_a_quiet_block_behind_a_relu_is_made_up_for() -> None:
    model, data, fresh = network(True), images(200), images()
    want = outputs(model, fresh)
    errors = [
        float(np.square(outputs(drop(model, data, count=2, refit=r)[0], fresh) - want).mean()) for r in (True, False)
    ]
    assert errors[0] < 0.2 * errors[1]


def test_excluded_nodes_stay_with_their_blocks_and_keep_their_weights() -> None:
    model = network(False)
    said: list[str] = []
    small, result = drop(model, images(), said, exclude="first1|stem", count=4)
    assert said == ["droplayers: only 3 residual blocks may go (asked for 4)"]
    assert sums(small) == ["sum1"]
    assert [(s.node, s.reason) for s in result.skipped] == [("sum1", "first1 would go with it and is excluded")]
    old, new = ({n.name: n.inputs[1].values for n in m.graph.nodes if n.op == "Conv"} for m in (model, small))
    assert set(new) == {"stem", "first1", "second1"}
    assert all(np.array_equal(old[n], new[n]) == (n != "second1") for n in new)


@pytest.mark.parametrize(
    ("options", "exclude", "says"),
    [
        ({"ratio": 0.1}, "", "0.1 of the 4 residual blocks that may go comes to none"),
        ({}, "sum[012]", "0.5 of the 1 residual block that may go comes to none"),
        ({"count": 2}, "sum|second3", "no residual block may go"),
    ],
)
def test_a_run_that_drops_nothing_says_why(options: dict[str, Any], exclude: str, says: str) -> None:
    _, result = drop(network(False), images(20), exclude=exclude, **options)
    assert not result.changed and result.skipped[0] == Skip("*", says)
    row = {"pass": "droplayers", "kept": False, "error": "", "reason": "", "changed": False, "notes": ["more"]}
    left = [{"node": s.node, "reason": s.reason} for s in result.skipped]
    held = f"; {len(left) - 1} left alone" if exclude else ""
    assert did({**row, "did": dict(result.did), "skipped": left}) == says + held


def test_a_strength_of_less_than_a_block_says_so() -> None:
    model = network(False)
    found = feeds.resolve(images(20), model)
    ctx = Context(Target(), found, found, found.source, model, None)  # type: ignore[arg-type]
    wanted = DropLayers(count=2)
    result = wanted.apply(model.copy(), wanted.plan(model, ctx), 0.125, ctx)
    assert result == PassResult(
        False, {"blocks dropped": 0}, (Skip("*", "strength 0.125 of 2 residual blocks comes to none"),)
    )
