"""Sessions: every way in, inner tensors, exotic types, models above the message limit, errors in one line."""

import pathlib

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper
from onnxslim_opt.ir.errors import DataError, ModelError
from onnxslim_opt.runtime import Session, loading
from onnxslim_opt.runtime.session import digest

from onnxslim_opt import ir

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
CHAIN = "g (float[N,4] x) => (float[N,4] y) { a = Relu(x) b = Neg(a) y = Abs(b) }"


def test_model_bytes_and_path_run_alike(tmp_path):
    model = ir.text.parse(CHAIN)
    path = tmp_path / "m.onnx"
    ir.save(model, path)
    x = np.array([[-1, 0, 1, 2]], np.float32)
    for form in (model, ir.to_bytes(model), path, str(path)):
        session = Session(form)
        assert session.outputs == ["y"]
        np.testing.assert_array_equal(session.run({"x": x})["y"], np.maximum(x, 0))


def test_inputs_tell_names_types_and_shapes():
    spec = Session(ir.text.parse(CHAIN)).inputs["x"]
    assert (spec.name, spec.dtype, spec.shape, spec.optional) == ("x", np.float32, ("N", 4), False)


def test_inputs_with_a_default_are_optional():
    model = ir.text.parse("g (float[2] x, float[2] c = {1.0, 2.0}) => (float[2] y) { y = Add(x, c) }")
    session = Session(model)
    assert not session.inputs["x"].optional
    assert session.inputs["c"].optional
    x = np.zeros(2, np.float32)
    np.testing.assert_array_equal(session.run({"x": x})["y"], [1, 2])
    np.testing.assert_array_equal(session.run({"x": x, "c": x + 5})["y"], [5, 5])


@pytest.mark.parametrize("form", ["model", "bytes", "path"])
def test_inner_tensors_can_be_fetched(form, tmp_path):
    model = ir.text.parse(CHAIN)
    path = tmp_path / "m.onnx"
    ir.save(model, path)
    session = Session({"model": model, "bytes": ir.to_bytes(model), "path": path}[form], outputs=["b", "y"])
    out = session.run({"x": np.ones((1, 4), np.float32)})
    assert list(out) == ["b", "y"]
    np.testing.assert_array_equal(out["b"], -np.ones((1, 4)))


def test_unknown_inner_tensor_is_named():
    with pytest.raises(ModelError, match="no tensor 'nope'"):
        Session(ir.text.parse(CHAIN), outputs=["nope"])


@pytest.mark.parametrize("outputs", [None, ["a", "y"]])
def test_models_above_the_message_limit_go_through_a_folder(monkeypatch, outputs):
    model = ir.text.parse(
        "g (float[1,64] x) => (float[1,64] y) <float[64,64] w = {" + ",".join(["0.5"] * 4096) + "}>"
        " { a = MatMul(x, w) y = Relu(a) }"
    )
    monkeypatch.setattr(loading, "INLINE_LIMIT", 1000)
    monkeypatch.setattr(loading, "INLINE", 1000)
    monkeypatch.setattr(ir.files, "INLINE_LIMIT", 1000)
    session = Session(model, outputs=outputs)
    folder = pathlib.Path(session._payload.folder.name)
    assert sorted(p.name for p in folder.iterdir()) == ["model.onnx", "model.onnx.data"]
    np.testing.assert_allclose(session.run({"x": np.ones((1, 64), np.float32)})["y"], 32)
    assert len(session.digest) == 64
    del session
    assert not folder.exists()


@pytest.mark.parametrize("outputs", [None, ["a", "y"]])
def test_larger_models_keep_their_weights_outside_the_message(monkeypatch, outputs, tmp_path):
    text = "g (float[1,64] x) => (float[1,64] y) <float[64,64] w = {" + ",".join(["0.5"] * 4096) + "}>"
    model = ir.text.parse(text + " { a = MatMul(x, w) y = Relu(a) }")
    monkeypatch.setattr(loading, "INLINE", 1000)
    ir.save(model, tmp_path / "m.onnx")
    digests = set()
    for form in (model, ir.load(tmp_path / "m.onnx"), model.copy()):
        lazy = form.graph.nodes[0].inputs[1]._values
        session = Session(form, outputs=outputs)
        assert session._payload.names == ["w"]
        np.testing.assert_allclose(session.run({"x": np.ones((1, 64), np.float32)})["y"], 32)
        assert form.graph.nodes[0].inputs[1]._values is lazy  # not decoded into the model
        digests.add(session.digest)
    assert len(digests) == 1 and (outputs or digests == {digest(model)})
    model.graph.nodes[0].inputs[1].values = np.eye(64, dtype=np.float32)
    assert Session(model, outputs=outputs).digest not in digests


def test_weights_of_subgraphs_go_with_them(monkeypatch):
    many = ",".join(["0.5"] * 512)
    model = ir.text.parse(
        "g (bool c, float[512] x) => (float[512] y) <float[512] outer = {" + many + "}> {"
        " z = Add(x, outer)"
        " y = If(c)<then_branch = t () => (float[512] a) <float[512] inner = {" + many + "}> { a = Add(z, inner) },"
        " else_branch = e () => (float[512] b) { b = Sub(z, outer) }> }"
    )
    monkeypatch.setattr(loading, "INLINE", 10)
    session = Session(model)
    assert session._payload.names == ["outer"]
    x = np.ones(512, np.float32)
    assert (session.run({"c": np.array(True), "x": x})["y"] == 2).all()
    assert (session.run({"c": np.array(False), "x": x})["y"] == 1).all()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('<ir_version: 8, opset_import: ["":17]> g (float[N] x) => (float[N] y) { y = Foo(x) }', "Foo"),
        (
            '<ir_version: 8, opset_import: ["":17,"my.dom":1]> g (float[N] x) => (float[N] y) { y = my.dom.Foo(x) }',
            "my.dom:Foo",
        ),
        ('<ir_version: 8, opset_import: ["":99]> g (float[N] x) => (float[N] y) { y = Relu(x) }', "opset 99 is newer"),
        ('<ir_version: 8, opset_import: ["":17]> g (float[N] x) => (float[N] y) { y = Relu<alpha=1.0>(x) }', "alpha"),
    ],
)
def test_refused_models_give_one_clear_line(text, says):
    with pytest.raises(ModelError) as caught:
        Session(onnx.parser.parse_model(text).SerializeToString())
    line = str(caught.value)
    assert says in line
    assert "\n" not in line and "ONNXRuntimeError" not in line and ".h:" not in line and ".cc:" not in line


def test_failures_at_run_name_the_node():
    model = ir.text.parse(
        "g (float[N,4] x, int64[K] s) => (float[M] y) { [fold] y = Reshape(x, s) }".replace("[fold] ", "")
    )
    model.graph.nodes[0].name = "fold"
    with pytest.raises(ModelError, match=r"'fold' \(Reshape\).*requested shape:\{5\}"):
        Session(model).run({"x": np.zeros((1, 4), np.float32), "s": np.array([5])})


@pytest.mark.parametrize(
    "feeds", [{"x": np.zeros((1, 3), np.float32)}, {"x": np.zeros((1, 4))}, {}, {"x": np.zeros((1, 4), "f4"), "z": 1}]
)
def test_feeds_that_do_not_fit_are_data_errors(feeds):
    with pytest.raises(DataError, match="do not fit"):
        Session(ir.text.parse(CHAIN)).run(feeds)


def test_missing_file_and_garbage(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        Session(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"\x89PNG....")
    with pytest.raises(ModelError, match=r"bad\.onnx"):
        Session(tmp_path / "bad.onnx")


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_types_that_numpy_lacks(dtype):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    info = [helper.make_tensor_value_info(n, kind, [2, 2]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", info[:1], info[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = Session(model.SerializeToString())
    assert session.inputs["x"].dtype == dtype
    x = np.array([[1, 2], [3, 4]]).astype(dtype)
    y = session.run({"x": x})["y"]
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.astype(np.float32), x.astype(np.float32))


def test_sequences_pass_through():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["":17]> g (seq(float[N]) x) => (seq(float[N]) y) { y = Identity(x) }'
    )
    session = Session(model.SerializeToString())
    assert session.inputs["x"].dtype is None
    (y,) = session.run({"x": [np.ones(3, np.float32)]})["y"]
    np.testing.assert_array_equal(y, np.ones(3))


def test_digest_depends_on_contents_only(tmp_path):
    model = ir.text.parse(CHAIN)
    ir.save(model, tmp_path / "m.onnx")
    assert digest(model) == digest(ir.to_bytes(model)) == digest(tmp_path / "m.onnx") == Session(model).digest
    other = model.copy()
    other.graph.nodes[0].op = "Abs"
    assert digest(other) != digest(model)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared models are not here")
def test_single_input_under_another_name_runs():
    session = Session(SHARED / "models" / "vit_pgd_2_3_16.onnx")
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32), np.float32)
    np.testing.assert_array_equal(*[next(iter(session.run({n: x}).values())) for n in ("x", "input")])
