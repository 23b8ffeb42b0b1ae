"""What a review broke: foreign data files, first axes that are no batch, candidates that fail, large graphs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import toys
from commands import onnxslim, snapshot
from onnx import TensorProto, helper, numpy_helper
from onnxslim_opt.ir import edit, shapes, verify, wire
from onnxslim_opt.ir.errors import OutputError
from onnxslim_opt.passes import judge as judges
from onnxslim_opt.passes.base import Pass, PassResult
from onnxslim_opt.passes.clean import Clean
from onnxslim_opt.passes.fold import Fold
from onnxslim_opt.passes.optimize import optimize
from onnxslim_opt.passes.pace import Pace, sizes
from onnxslim_opt.passes.report import file_bytes
from onnxslim_opt.runtime import loading
from onnxslim_opt.runtime.latency import Timings

from onnxslim_opt import ir


def external(folder: Path, data: str, name: str = "in.onnx", width: int = 64) -> Path:
    """x @ w0 @ w0b … with its weights in the file `data`; w0b equals w0, so that simplify has something to do."""
    w = np.random.default_rng(0).standard_normal((width, width)).astype(np.float32) / 8
    nodes = [helper.make_node("MatMul", [a, b], [c]) for a, b, c in (("x", "w", "h"), ("h", "same", "y"))]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, width]) for n in "xy"]
    weights = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(w, "same")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / name, save_as_external_data=True, location=data, size_threshold=1024)
    return folder / name


def run(path: Path) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.ones((2, 64), np.float32)})[0]


# ---------------------------------------------------------------- external data


def test_the_inputs_data_file_outlives_an_output_of_the_same_name(tmp_path, capsys):
    source = external(tmp_path, "out.onnx.data")
    before, expected = snapshot(tmp_path), run(source)
    done = onnxslim(capsys, "opt", source, "-o", tmp_path / "out.onnx")
    assert done.code == 0, done.err
    after = snapshot(tmp_path)
    assert {k: after[k] for k in before} == before
    assert set(after) - set(before) == {"out.onnx", "out.onnx.1.data"}
    np.testing.assert_allclose(run(tmp_path / "out.onnx"), expected, rtol=1e-5)
    np.testing.assert_array_equal(run(source), expected)


@pytest.mark.parametrize("option", ["-o", "--timings"])
def test_no_option_may_name_the_inputs_data_file(tmp_path, capsys, option):
    source = external(tmp_path, "weights.bin")
    before = snapshot(tmp_path)
    rest = () if option == "-o" else ("-o", tmp_path / "out.onnx")
    done = onnxslim(capsys, "opt", source, option, tmp_path / "weights.bin", *rest)
    assert done.code == 1 and "weights.bin" in done.errors[0]
    assert snapshot(tmp_path) == before


def test_save_refuses_the_models_own_weights_also_through_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    model = ir.load(external(tmp_path / "real", "weights.bin"))
    with pytest.raises(OutputError, match="own weights"):
        ir.save(model, tmp_path / "link" / "weights.bin")
    run(tmp_path / "real" / "in.onnx")


def test_saving_over_the_file_it_came_from_keeps_the_model_whole(tmp_path):
    path = external(tmp_path, "in.onnx.data")
    expected = run(path)
    for _ in range(3):
        ir.save(ir.load(path), path)
        np.testing.assert_array_equal(run(path), expected)


def test_a_model_with_a_data_file_of_any_name_counts_with_its_weights(tmp_path):
    source = external(tmp_path, "weights.bin")
    (tmp_path / "in.onnx.data").write_bytes(bytes(10**6))  # a stranger's file that only looks like its own
    assert wire.data_files(source) == [tmp_path / "weights.bin"]
    assert file_bytes(source) == source.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    report = optimize(source).report
    assert report.steps[0]["kept"], report.reasons
    assert report.output["bytes"] < report.input["bytes"]


def test_data_files_are_found_wherever_tensors_are_and_never_in_garbage(tmp_path):
    inner = TensorProto(name="v", dims=[1], data_type=1, data_location=TensorProto.EXTERNAL)
    inner.external_data.add(key="offset", value="0")
    inner.external_data.add(key="location", value="deep.bin")
    branch = helper.make_graph([], "b", [], [], [inner])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    model = helper.make_model(helper.make_graph([node], "g", [], []))
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    assert wire.data_files(path) == []
    (tmp_path / "deep.bin").write_bytes(b"1234")
    assert wire.data_files(path) == [tmp_path / "deep.bin"]
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        assert wire.data_files(path) in ([], [tmp_path / "deep.bin"])
    for seed in range(50):
        path.write_bytes(np.random.default_rng(seed).bytes(300))
        assert wire.data_files(path) == []


# ---------------------------------------------------------------- weights in memory


def test_large_weights_are_decoded_once_for_all_copies(tmp_path):
    proto = toys.network()
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((16, 16), np.float32), "w0"))
    w = np.random.default_rng(0).standard_normal((16, 4096)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(w, "wide"))
    proto.graph.node.append(helper.make_node("MatMul", ["x", "wide"], ["z"]))
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 4096]))
    data = proto.SerializeToString()
    model = ir.from_bytes(data)
    twin = model.copy()
    first, second = (m.constants()["wide"]._values.load() for m in (model, twin))
    np.testing.assert_array_equal(first, w)
    assert first is second
    again = onnx.ModelProto.FromString(ir.to_bytes(model))
    np.testing.assert_array_equal(numpy_helper.to_array(again.graph.initializer[-1]), w)


@pytest.mark.parametrize("large", ["weights", "feeds"])
def test_of_large_models_and_on_large_feeds_two_sessions_are_held(monkeypatch, large):
    from onnxslim_opt.runtime import feeds as sources

    monkeypatch.setattr(*((loading, "LARGE", 0) if large == "weights" else (sources, "WIDE", 0)))
    from onnxslim_opt.runtime.numerics import Reference
    from onnxslim_opt.runtime.sources import resolve

    original = toys.model()
    reference = Reference(original, resolve(toys.feeds(4), original))
    judge = judges.Judge(reference, judges.Limits())
    candidates = [toys.model(seed=k) for k in range(3)]
    expected = [judges.Judge(reference, judges.Limits()).numerics(c) for c in candidates]
    for candidate, numerics in zip(candidates, expected):
        assert judge.numerics(candidate) == numerics
        judge.session(original)
        assert len(judge._recent) <= 2
    judge.session(candidates[1]), judge.session(candidates[2])
    assert reference._session is None, "its outputs are kept, so it need not stay"
    assert judge.numerics(candidates[0]) == expected[0]


@pytest.mark.parametrize("version", [3, 8])
def test_a_file_written_in_parts_holds_the_same_message(tmp_path, monkeypatch, version):
    from onnxslim_opt.ir import files

    rng = np.random.default_rng(0)
    proto = toys.network()
    proto.ir_version = version
    proto.metadata_props.add(key="who", value="me")
    for k, dtype in enumerate((np.float32, np.float16, np.int8, np.int64)):
        w = rng.integers(-9, 9, (16, 5000)).astype(dtype)
        proto.graph.initializer.insert(k, numpy_helper.from_array(w, f"extra{k}"))
        proto.graph.node.append(helper.make_node("Identity", [f"extra{k}"], [f"z{k}"]))
        proto.graph.output.append(helper.make_tensor_value_info(f"z{k}", proto.graph.initializer[k].data_type, None))
    model = ir.from_bytes(proto.SerializeToString())
    ir.save(model, tmp_path / "whole.onnx")
    monkeypatch.setattr(files, "MESSAGE", 0)
    ir.save(model, tmp_path / "parts.onnx")
    whole, parted = (onnx.load(tmp_path / f"{name}.onnx") for name in ("whole", "parts"))
    for message in (whole, parted):
        message.graph.initializer.sort(key=lambda t: t.name)
    assert parted == whole
    ir.save(ir.load(tmp_path / "parts.onnx"), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "parts.onnx").read_bytes()


# ---------------------------------------------------------------- shapes


def test_a_first_axis_that_is_no_batch_is_fed_whole():
    model = ir.text.parse("""
        agraph (float[samples] x, float[1, 4, frames] unused) => (float[1, 4, F] y, float[1, 4, frames] z)
        <float[4, 1, 5] k = {1,2,3,4,5, 1,2,3,4,5, 1,2,3,4,5, 1,2,3,4,5}, int64[2] axes = {0, 1}> {
            u = Unsqueeze(x, axes)
            y = Conv(u, k)
            z = Relu(unused)
        }""")
    feeds = [{"x": np.ones(50, np.float32) * k, "unused": np.ones((1, 4, 3), np.float32)} for k in range(1, 3)]
    report = optimize(model, data=feeds).report
    assert report.verdict == "ok"
    assert report.input["macs"] == 4 * 5 * 46


def test_rows_of_an_open_batch_all_count():
    model = ir.text.parse("""
        agraph (float[N, 3, 4] x) => (float[N, 3, 4] y)
        <int64[2] rows = {-1, 4}, int64[3] back = {-1, 3, 4}, float[4, 4] w = {1,2,3,4, 1,2,3,4, 1,2,3,4, 1,2,3,4}> {
            r = Reshape(x, rows)
            m = MatMul(r, w)
            y = Reshape(m, back)
        }""")
    shapes.refresh(model)
    pace = Pace(None, {"x": np.ones((5, 3, 4), np.float32)})
    assert pace.cost(model).macs == 3 * 4 * 4  # of one sample
    plain = toys.model()
    shapes.refresh(plain)
    assert sizes(plain, {}) is None  # the batch alone is open: nothing is run


# ---------------------------------------------------------------- errors in the middle


@dataclass(frozen=True)
class Narrows(Pass):
    """Breaks the model so that ONNX Runtime loads it, and finds out when it runs."""

    name: ClassVar[str] = "narrows"

    def run(self, model, ctx):
        first = model.graph.nodes[0]
        index = edit.constant(model, "idx", np.arange(15))
        out = edit.variable(model, "narrow", np.float32)
        length = edit.variable(model, "len", np.int64)
        flat = edit.variable(model, "flat", np.float32)
        edit.add(model.graph, edit.node(model, "Gather", [first.inputs[0], index], {"axis": 1}, [out]))
        edit.add(model.graph, edit.node(model, "Shape", [out], None, [length]))
        edit.add(model.graph, edit.node(model, "Reshape", [out, length], None, [flat]))
        edit.set_input(first, 0, flat)
        return PassResult(True)


def test_a_candidate_that_fails_when_it_runs_is_rolled_back_and_the_run_goes_on(monkeypatch):
    from onnxslim_opt.ir import shapes

    monkeypatch.setattr(shapes, "refresh", lambda model: None)  # as with operators that inference does not know
    result = optimize(toys.model(), [Narrows(), Clean()], data=toys.feeds(8))
    first, second = result.report.steps
    assert first["error"] and not first["kept"] and not second["error"]
    assert result.report.verdict == "pass_failed"
    assert [n.name for n in result.model.graph.nodes] == [n.name for n in toys.model().graph.nodes]


# ---------------------------------------------------------------- large graphs


def chain(n: int) -> ir.Model:
    """n nodes that no input changes, and one that joins them to the input; one constant is read by all."""
    nodes = [helper.make_node("Add", [f"t{k - 1}" if k else "c", "c"], [f"t{k}"]) for k in range(n)]
    nodes.append(helper.make_node("Add", ["x", f"t{n - 1}"], ["y"]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(np.ones(4, np.float32), "c")])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def seconds(n: int) -> float:
    model = chain(n)
    start = time.thread_time()
    verify.check(model)
    Fold().run(model)
    assert len(model.graph.nodes) == 1
    return time.thread_time() - start


def test_folding_and_verifying_a_long_chain_is_linear():
    seconds(200)
    assert seconds(8000) < 12 * seconds(1600)  # 5 times the nodes: quadratic would take 25 times as long


def test_set_input_keeps_the_links_of_a_tensor_that_is_read_twice():
    model = ir.text.parse("agraph (float[2] x) => (float[2] y) { a = Relu(x)  b = Abs(x)  y = Add(a, a) }")
    relu, abs_, add = model.graph.nodes
    a, b = relu.outputs[0], abs_.outputs[0]
    edit.set_input(add, 1, b)
    assert [n is add for n in a.outputs] == [True] and [n is add for n in b.outputs] == [True]
    edit.set_input(add, 0, b)
    assert not a.outputs and len(b.outputs) == 2
    verify.check(model)


def test_a_metric_that_fails_in_the_middle_is_told_and_a_model_comes_back():
    calls = []

    def metric(run):
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("no second time")
        return 1.0

    result = optimize(
        toys.model(), [toys.Rename("z_")], data=toys.feeds(8), metric=metric, max_drop=0.5, timings=Timings()
    )
    assert result.report.verdict == "limits_not_met"
    assert any("no second time" in r for r in result.report.reasons)
