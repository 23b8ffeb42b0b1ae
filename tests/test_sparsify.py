"""Zeros: how many, where, and what they cost beside zeros by magnitude."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from onnxslim_opt.ir.errors import OptionError
from onnxslim_opt.passes import sparsify, spec
from onnxslim_opt.passes.base import Context
from onnxslim_opt.passes.prune.layers import layers, matrix
from onnxslim_opt.passes.sparsify import Sparsify
from onnxslim_opt.passes.target import Target
from onnxslim_opt.runtime import feeds
from onnxslim_opt.runtime.numerics import Reference
from onnxslim_opt.runtime.session import Session
from prune_twin import build

from onnxslim_opt import ir

RNG = np.random.default_rng(0)
MIX = RNG.standard_normal((8, 8)).astype(np.float32) * 0.9 ** np.arange(8, dtype=np.float32)[:, None]


def weights(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def network() -> ir.Model:
    w = {"a": weights(16, 8, 3, 3), "ab": weights(16), "b": weights(12, 16, 1, 1), "fc": weights(12, 4)}
    nodes = [
        helper.make_node("Conv", ["x", "a", "ab"], ["y"], name="first", pads=[1] * 4),
        helper.make_node("Relu", ["y"], ["z"]),
        helper.make_node("Conv", ["z", "b"], ["u"], name="second"),
        helper.make_node("GlobalAveragePool", ["u"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "fc"], ["out"], name="head"),
    ]
    return build(nodes, {"x": [1, 8, 6, 6]}, w)


def images() -> list[dict[str, np.ndarray]]:
    return [{"x": np.einsum("ij,njhw->nihw", MIX, weights(1, 8, 6, 6))} for _ in range(40)]


def run(
    model: ir.Model, data: Any, said: list[str] | None = None, exclude: str = "head", **options: Any
) -> tuple[ir.Model, Any]:
    found = feeds.resolve(data, model)
    fit, check = found.split()
    pattern = re.compile(exclude)
    ctx = Context(Target(), fit, check, found.source, model, None, exclude=pattern)  # type: ignore[arg-type]
    ctx.on_note = (said if said is not None else []).append
    small = model.copy()
    return small, Sparsify(**options).run(small, ctx)


def matrices(model: ir.Model) -> dict[str, np.ndarray]:
    nodes = {n.name: n for n in model.graph.nodes}
    return {x.node: nodes[x.node].inputs[1].values for x in layers(model)}


def test_the_share_that_was_asked_for_is_zero_and_excluded_layers_keep_theirs() -> None:
    small, result = run(network(), images(), ratio=0.6)
    found = {name: float((w == 0).mean()) for name, w in matrices(small).items()}
    assert found["head"] == 0 and result.did["layers"] == 2
    assert all(found[k] == pytest.approx(0.6, abs=0.01) for k in ("first", "second"))


def test_two_of_four_neighbouring_input_channels_stay() -> None:
    small, _ = run(network(), images(), nm="2:4")
    for name in ("first", "second"):
        w = matrices(small)[name]
        tiles = (w != 0).reshape(w.shape[0], -1, 4, *w.shape[2:])
        assert (tiles.sum(2) == 2).all()


@pytest.mark.parametrize("options", [{"ratio": 0.5}, {"nm": "2:4"}])
def test_second_order_zeros_hurt_less_than_small_ones(options: dict[str, Any]) -> None:
    model, data = network(), images()
    fresh = images()
    good, _ = run(model, data, **options)
    plain, _ = run(model, "random", **options)

    def outputs(m: ir.Model) -> np.ndarray:
        session = Session(m)
        return np.concatenate([session.run(x)["out"] for x in fresh])

    want = outputs(model)
    errors = [float(np.square(outputs(m) - want).mean()) for m in (good, plain)]
    assert errors[0] < 0.5 * errors[1]


def test_the_last_columns_take_over_exactly_what_least_squares_would() -> None:
    """One column goes from the front: what is left must be the best fit of the others."""
    x = RNG.standard_normal((4000, 6)) @ RNG.standard_normal((6, 6))
    w = RNG.standard_normal((3, 6))
    w[:, 0] *= 1e-3  # the first column is the cheapest in every row
    covariance = np.cov(x.T, bias=True)
    found = sparsify.surgeon(w, covariance, 3 / 18, None)
    assert (found[:, 0] == 0).all() and (found[:, 1:] != 0).all()
    centred = x - x.mean(0)
    ridge = sparsify.RIDGE * np.trace(covariance) / 6 * len(x)
    a, rest = centred[:, 1:], w[:, 1:]  # the ridge pulls towards the old weights
    delta = np.linalg.solve(a.T @ a + ridge * np.eye(5), a.T @ centred[:, :1] @ w[:, :1].T).T
    np.testing.assert_allclose(found[:, 1:], rest + delta, rtol=1e-8)


def test_it_says_that_nothing_gets_faster() -> None:
    said: list[str] = []
    run(network(), images(), said, ratio=0.5)
    assert any("does not skip zeros" in s for s in said)


def test_layers_that_do_not_fit_the_pattern_are_named() -> None:
    _, result = run(network(), images(), nm="3:5")
    assert {s.node: s.reason for s in result.skipped}["first"] == "8 input channels are no multiple of 5"
    assert not result.changed


def odd_layers() -> ir.Model:
    """Layers one after another, most of them of a form that cannot be fitted."""
    w = {n: weights(16, 16) for n in ("plain", "scaled", "front", "head", "biased")}
    w |= {"stack": weights(1, 16, 16), "double": weights(16, 16).astype(np.float64), "vector": weights(16)}
    w |= {"lstm": weights(1, 64, 16), "again": weights(1, 64, 16), "thin": weights(1, 1, 1, 1)}
    w |= {"small": RNG.integers(-9, 9, (16, 16)).astype(np.int8), "scale": np.array(0.1, np.float32)}
    w["flat"], w["back"] = np.array([1, 1, 16, 16]), np.array([16, 16])
    then = helper.make_graph(
        [helper.make_node("MatMul", ["a", "plain"], ["t"], name="inside")],
        "then",
        [],
        [helper.make_tensor_value_info("t", 1, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["a"], ["e"])], "else", [], [helper.make_tensor_value_info("e", 1, None)]
    )
    w["axis"], w["yes"] = np.array([0]), np.array(True)
    nodes = [
        helper.make_node("Gemm", ["x", "scaled"], ["a"], name="scaled", alpha=0.5),
        helper.make_node("If", ["yes"], ["b"], then_branch=then, else_branch=other),
        helper.make_node("MatMul", ["front", "b"], ["c"], name="front"),
        helper.make_node("MatMul", ["c", "stack"], ["d3"], name="stack"),
        helper.make_node("LSTM", ["d3", "lstm", "again"], ["", "h"], name="recurrent", hidden_size=16),
        helper.make_node("Squeeze", ["h", "axis"], ["d"]),
        helper.make_node("Cast", ["c"], ["c64"], to=11),
        helper.make_node("MatMul", ["c64", "double"], ["f64"], name="double"),
        helper.make_node("Cast", ["f64"], ["f"], to=1),
        helper.make_node("DequantizeLinear", ["small", "scale"], ["w8"], name="weight"),
        helper.make_node("MatMul", ["f", "w8"], ["g"], name="stored"),
        helper.make_node("MatMul", ["g", "biased"], ["i"], name="biased"),
        helper.make_node("Add", ["i", "vector"], ["j"], name="bias_to_keep"),
        helper.make_node("Reshape", ["j", "flat"], ["k"]),
        helper.make_node("Conv", ["k", "thin"], ["l"], name="thin"),
        helper.make_node("Reshape", ["l", "back"], ["m"]),
        helper.make_node("MatMul", ["m", "m"], ["square"], name="no_weights"),
        helper.make_node("MatMul", ["square", "head"], ["n"], name="head"),
        helper.make_node("Add", ["n", "d"], ["out"]),
    ]
    return build(nodes, {"x": [16, 16]}, w)


@pytest.mark.parametrize("source", ["data", "random"])
def test_every_layer_that_is_left_out_has_a_reason(source: str) -> None:
    model = odd_layers()
    data = [{"x": weights(16, 16)} for _ in range(20)] if source == "data" else "random"
    small, result = run(model, data, exclude="head|to_keep", ratio=0.5)
    want = {
        "scaled": "Gemm with alpha, beta or transA",
        "inside": "it stands in a branch or the body of a loop",
        "front": "its second input is no constant weight",
        "stack": "the weight is no matrix",
        "recurrent": "op LSTM is none whose weights are fitted",
        "double": "the weight is float64, not float32",
        "stored": "its second input is no constant weight",
        "biased": "its bias is excluded",
        "thin": "fewer than 8 weights an output",
        "head": "excluded",
    }
    assert {s.node: s.reason for s in result.skipped} == want and not result.changed
    old, new = ({n: t.values for n, t in m.constants().items()} for m in (model, small))
    assert old.keys() == new.keys() and all(np.array_equal(old[n], new[n]) for n in old)


def test_layers_beyond_the_strength_of_a_pattern_are_named() -> None:
    model = network()
    found = feeds.resolve("random", model)
    ctx = Context(Target(), found, found, found.source, model, None)  # type: ignore[arg-type]
    wanted = Sparsify(nm="2:4")
    result = wanted.apply(model.copy(), wanted.plan(model, ctx), 0.5, ctx)
    assert result.did["layers"] == 2
    assert {s.node: s.reason for s in result.skipped} == {
        "first": "the pattern at strength 0.5 is for smaller layers only"
    }


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_layer_that_cannot_be_fitted_is_named_and_not_counted() -> None:
    model = network()
    node = next(n for n in model.graph.nodes if n.name == "second")
    bad = node.inputs[1].values.copy()
    bad[0, 0] = np.inf
    ir.edit.set_input(node, 1, ir.edit.constant(model, "bad", bad))
    _, result = run(model, images(), ratio=0.5)
    assert {s.node for s in result.skipped} == {"head", "second"} and result.did["layers"] == 1
    assert "finite" in next(s.reason for s in result.skipped if s.node == "second")
    assert result.did["of"] == 16 * 8 * 9


@pytest.mark.parametrize("options", [{"nm": "4:2"}, {"nm": "half"}, {"nm": "0:4"}, {"ratio": 0.5, "nm": "2:4"}])
def test_bad_options_are_refused_in_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="sparsify"):
        Sparsify(**options)


def test_weaker_means_fewer_zeros() -> None:
    model = network()
    found = feeds.resolve(images(), model)
    fit, check = found.split()
    ctx = Context(Target(), fit, check, found.source, model, None)  # type: ignore[arg-type]
    for wanted in (Sparsify(ratio=0.8), Sparsify(nm="2:4")):
        plan = wanted.plan(model, ctx)
        zeros = [wanted.apply(model.copy(), plan, s, ctx).did["weights set to zero"] for s in (0.3, 0.6, 1.0)]
        assert zeros == sorted(zeros) and zeros[0] < zeros[-1]
    assert matrix(next(n for n in model.graph.nodes if n.name == "first")).all()


def test_the_pattern_is_read_and_shown_as_it_is_written() -> None:
    assert spec.parse("sparsify:nm=2:4") == (Sparsify(nm="2:4"),)
    assert spec.show(spec.parse("sparsify:nm=2:4,sparsify:ratio=0.5")) == "sparsify:nm=2:4,sparsify:ratio=0.5"
    with pytest.raises(OptionError, match="key=value"):
        spec.parse("sparsify:4")


SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared models and data")
@pytest.mark.parametrize(("options", "least"), [({"ratio": 0.5}, 8.0), ({"nm": "2:4"}, 6.0)])
def test_on_a_real_model_second_order_zeros_keep_more_than_small_ones(options: dict[str, Any], least: float) -> None:
    """dB of the outputs on images that were not fitted on."""
    sys.path.insert(0, str(SHARED))
    import tasks

    model = ir.load(SHARED / "models" / "cifar10_resnet20.onnx")
    found = feeds.resolve(list(tasks.cifar10_resnet20_data()), model)
    fit, check = found.split()
    reference = Reference(model, check)

    def sqnr(source: str) -> float:
        ctx = Context(Target(), fit, check, source, model, None)  # type: ignore[arg-type]
        small = model.copy()
        Sparsify(**options).run(small, ctx)
        return float(reference.compare(small).outputs[0].sqnr_db or 0.0)

    assert sqnr("data") > sqnr("random") + least


@pytest.mark.parametrize("data", ["random", "given"])
def test_weights_that_several_nodes_read_stay_as_they_are(data: str) -> None:
    w = {"a": weights(12, 12), "b": weights(12, 12)}
    nodes = [
        helper.make_node("MatMul", [x, k], [y], name=y)
        for x, k, y in (("x", "a", "p"), ("t", "a", "q"), ("q", "b", "out"))
    ]
    nodes.insert(1, helper.make_node("Tanh", ["p"], ["t"]))
    model = build(nodes, {"x": [6, 12]}, w)
    given = "random" if data == "random" else [{"x": weights(6, 12)} for _ in range(12)]
    small, result = run(model, given, exclude="none")
    first, second, third = [n.inputs[1] for n in small.graph.nodes if n.op == "MatMul"]
    assert first is second and np.array_equal(first.values, w["a"]) and (third.values == 0).mean() == 0.5
    assert {s.node: s.reason for s in result.skipped} == dict.fromkeys("pq", "the weight is shared by several nodes")
