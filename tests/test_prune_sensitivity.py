"""Trials against models edited by hand, and measured sensitivities against what is known by construction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import onnxslim
from onnx import helper
from onnxslim_opt.passes.base import Context
from onnxslim_opt.passes.optimize import optimize
from onnxslim_opt.passes.prune import curves, groups, plan, sensitivity
from onnxslim_opt.passes.prune.layers import layers
from onnxslim_opt.passes.prune.trial import Change, Trials, heads
from onnxslim_opt.passes.target import Target
from onnxslim_opt.runtime import feeds
from onnxslim_opt.runtime.session import Session
from prune_twin import build

from onnxslim_opt import ir

RNG = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def two_branches(quiet: float) -> ir.Model:
    """Two branches of one shape; the second counts `quiet` times as much in the sum at the end."""
    w = {f"{k}{i}": weights(*s) for i in "pq" for k, s in {"a": (16, 4, 1, 1), "b": (16, 16, 1, 1)}.items()}
    w |= {"quiet": np.float32([quiet]), "fc": weights(16, 5)}
    nodes = []
    for i in "pq":
        nodes += [
            helper.make_node("Conv", ["x", f"a{i}"], [f"y{i}"], name=f"first_{i}"),
            helper.make_node("Relu", [f"y{i}"], [f"z{i}"]),
            helper.make_node("Conv", [f"z{i}", f"b{i}"], [f"u{i}"], name=f"second_{i}"),
            helper.make_node("Relu", [f"u{i}"], [f"v{i}"]),
        ]
    nodes += [
        helper.make_node("Mul", ["vq", "quiet"], ["wq"]),
        helper.make_node("Add", ["vp", "wq"], ["s"]),
        helper.make_node("GlobalAveragePool", ["s"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "fc"], ["out"], name="head"),
    ]
    return build(nodes, {"x": [1, 4, 6, 6]}, w)


def context(model: ir.Model, data: list[dict[str, np.ndarray]]) -> Context:
    found = feeds.resolve(data, model)
    fit, check = found.split()
    return Context(Target(), fit, check, found.source, model, None)  # type: ignore[arg-type]


def images(model: ir.Model) -> list[dict[str, np.ndarray]]:
    return [{"x": weights(*model.graph.inputs[0].shape)} for _ in range(40)]


def scales(model: ir.Model) -> tuple[dict[str, float], dict[str, float]]:
    """The scale of every consumer before and after sensitivities were measured."""
    ctx = context(model, images(model))
    found, kinds, some = groups(model), layers(model), ctx.fit
    curves = plan.curvatures(model, found, kinds, plan.goals(model, kinds, some, ctx), some, ctx)
    before = {c.node: c.scale for c in curves}
    found_errors = sensitivity.measured(model, found, kinds, curves, [], some, ctx)
    assert sensitivity.weigh(curves, [], found_errors) == {}
    return before, {c.node: c.scale for c in curves}


def test_a_branch_that_hardly_counts_is_cheap() -> None:
    before, after = scales(two_branches(0.1))
    loud, quiet = (before[f"second_{i}"] / after[f"second_{i}"] for i in "pq")
    assert quiet < loud / 5  # a tenth of the amplitude is a hundredth of the error, and the root of that counts


def test_branches_that_count_alike_cost_alike() -> None:
    before, after = scales(two_branches(1.0))
    loud, quiet = (before[f"second_{i}"] / after[f"second_{i}"] for i in "pq")
    assert 0.2 < quiet / loud < 5


def test_a_trial_is_the_model_with_those_weights() -> None:
    model = two_branches(0.5)
    data = images(model)[:6]
    node = next(n for n in model.graph.nodes if n.name == "second_q")
    new, shift = weights(16, 16), weights(16)
    trials = Trials(model, layers(model), [], data, 1)
    assert trials.error({}) == 0.0
    found = trials.error({"second_q": Change(new[None], shift)})
    edited = model.copy()
    copy = next(n for n in edited.graph.nodes if n.name == node.name)
    ir.edit.set_input(copy, 1, ir.edit.constant(edited, "w", new.reshape(16, 16, 1, 1)))
    ir.edit.set_input(copy, 2, ir.edit.constant(edited, "b", shift))
    want, got = (np.stack([Session(m).run(x)["out"] for x in data]) for m in (model, edited))
    expected = np.square(got - want).mean() / want.astype(np.float64).var(0).mean()
    assert found == pytest.approx(expected, rel=1e-4)


def test_heads_are_what_the_outputs_are_put_together_from() -> None:
    def head(i: str, channels: int) -> list[Any]:
        made[f"w{i}"] = weights(channels, 4, 1, 1)
        return [
            helper.make_node("Conv", ["x", f"w{i}"], [f"c{i}"]),
            helper.make_node("Sigmoid", [f"c{i}"], [f"h{i}"]),
            helper.make_node("Reshape", [f"h{i}", "flat"], [f"r{i}"]),
        ]

    made: dict[str, np.ndarray] = {"flat": np.array([1, -1, 36])}
    nodes = [*head("1", 4), *head("2", 1), helper.make_node("Concat", ["r1", "r2"], ["both"], axis=1)]
    nodes.append(helper.make_node("Transpose", ["both"], ["out"], perm=[0, 2, 1]))
    assert [t.name for t in heads(build(nodes, {"x": [1, 4, 6, 6]}, made))] == ["h1", "h2"]


def test_curves_rise_with_the_share_and_agree_with_models_cut_by_hand() -> None:
    """At every share, for the quiet branch as for the loud one."""
    model = two_branches(0.1)
    found = curves.curves(model, context(model, images(model)), (0.25, 0.5, 0.75))
    errors = {r.node: r.errors for r in found}
    assert errors["first_p"] and errors["first_q"]
    for row in errors.values():
        assert row is not None and list(row) == sorted(row) and row[0] > 0
    assert all(q < p / 10 for p, q in zip(errors["first_p"], errors["first_q"]))


def test_the_command_prints_a_row_a_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = two_branches(0.1)
    ir.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.concatenate([f["x"] for f in images(model)]))
    done = onnxslim(
        capsys, "sensitivity", str(tmp_path / "m.onnx"), "--data", str(tmp_path / "d.npz"), "--ratios", "0.5"
    )
    rows = [line.split() for line in done.out.splitlines()]
    names = [r[0] for r in rows if r and r[0].startswith("first")]
    assert names == ["first_p", "first_q"], done.out
    assert onnxslim(capsys, "sensitivity", str(tmp_path / "m.onnx"), "--ratios", "0.5,0.2").code == 2


def test_outputs_that_only_move_inputs_feel_no_change() -> None:
    model = ir.text.parse("g (float[2,4] x, float[2,4] z) => (float[4,4] y) { y = Concat<axis=0>(x, z) }")
    data = [{"x": np.ones((2, 4), np.float32), "z": np.ones((2, 4), np.float32)}]
    assert Trials(model, [], [], data, 1).error({}) == 0.0
    assert optimize(model, "prune:ratio=0.5", data=data * 16).report.verdict == "ok"
