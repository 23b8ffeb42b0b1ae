"""Files: external data, damaged input, atomic output, and what a header must carry."""

import os

import numpy as np
import onnx
import pytest
import suite
from onnx import TensorProto, helper, numpy_helper
from onnxslim_opt.ir.errors import ModelError, OutputError

from onnxslim_opt import ir


def small(weight=None, ir_version=8, opset=17, init_is_input=False):
    weight = np.arange(512, dtype=np.float32).reshape(4, 128) if weight is None else weight
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])]
    if init_is_input:
        inputs.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, weight.shape))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    model.metadata_props.add(key="author", value="somebody")
    model.doc_string, model.domain, model.model_version = "doc", "org.example", 7
    return model


def run(data):
    return suite.session(data).run(None, {"x": np.ones((2, 4), np.float32)})[0]


def test_header_survives():
    out = onnx.load_from_string(ir.to_bytes(ir.from_proto(small())))
    assert out.metadata_props[0].key == "author" and out.doc_string == "doc"
    assert (out.domain, out.model_version, out.ir_version) == ("org.example", 7, 8)


def test_external_data(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(small(), path, save_as_external_data=True, location="m.bin", size_threshold=0)
    model = ir.load(path)
    assert run(ir.to_bytes(model)) == pytest.approx(run(small().SerializeToString()))
    out = tmp_path / "sub" / "out.onnx"
    out.parent.mkdir()
    ir.save(model, out)
    assert sorted(p.name for p in out.parent.iterdir()) == ["out.onnx", "out.onnx.data"]
    assert np.array_equal(ir.load(out).constants()["w"].values, numpy_helper.to_array(small().graph.initializer[0]))
    assert suite.session(str(out)).run(None, {"x": np.ones((1, 4), np.float32)})[0].shape == (1, 128)


def test_weights_are_written_over_no_file_but_those_of_the_model_that_is_replaced(tmp_path):
    onnx.save(small(), tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    onnx.save(small(), tmp_path / "a.onnx", save_as_external_data=True, location="out.onnx.data", size_threshold=0)
    (tmp_path / "out.onnx.1.data").mkdir()
    before = (tmp_path / "out.onnx.data").read_bytes()
    for _ in range(2):
        ir.save(ir.load(tmp_path / "m.onnx"), tmp_path / "out.onnx")
        assert (tmp_path / "out.onnx.data").read_bytes() == before
        names = sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("out"))
        assert names == ["out.onnx", "out.onnx.1.data", "out.onnx.2.data", "out.onnx.data"]
    assert np.array_equal(
        ir.load(tmp_path / "out.onnx").constants()["w"].values, ir.from_proto(small()).constants()["w"].values
    )


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path):
    path = tmp_path / ("ü" * 125 + ".onnx")
    ir.save(ir.from_proto(small()), path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd"])
def test_external_data_outside_is_refused(tmp_path, location):
    (tmp_path / "secret.bin").write_bytes(bytes(2048))
    model = small()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    folder = tmp_path / "inner"
    folder.mkdir()
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="leaves the model's folder"):
        ir.load(folder / "m.onnx")


def test_external_link_outside_is_refused(tmp_path):
    (tmp_path / "secret.bin").write_bytes(bytes(2048))
    folder = tmp_path / "inner"
    folder.mkdir()
    onnx.save(small(), folder / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    (folder / "w.bin").unlink()
    (folder / "w.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(ModelError, match="leaves the model's folder"):
        ir.load(folder / "m.onnx")


def test_truncated_external_data(tmp_path):
    onnx.save(small(), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    os.truncate(tmp_path / "w.bin", 100)
    with pytest.raises(ModelError, match="too short"):
        ir.load(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(200)), "not an ONNX model"),
        (small().SerializeToString()[:-700], "truncated"),
        (small(opset=999).SerializeToString(), "opset 999"),
    ],
)
def test_bad_files(tmp_path, data, words):
    path = tmp_path / "bad.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=words) as error:
        ir.load(path)
    assert "bad.onnx" in str(error.value) and "\n" not in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        ir.load(tmp_path / "nothing.onnx")


def test_cycle_and_undefined_names():
    model = small()
    model.graph.node.insert(0, helper.make_node("Add", ["b", "x"], ["a"], name="first"))
    model.graph.node.append(helper.make_node("Relu", ["a"], ["b"], name="second"))
    with pytest.raises(ModelError, match="cycle through node 'first'"):
        ir.from_proto(model)
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ModelError, match="'nowhere', which nothing produces"):
        ir.from_proto(model)


def test_save_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "out.onnx"
    path.write_bytes(b"before")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="No space left"):
        ir.save(ir.from_proto(small()), path)
    assert path.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == ["out.onnx"]


def test_unwritable_output(tmp_path):
    with pytest.raises(OutputError, match="cannot write"):
        ir.save(ir.from_proto(small()), tmp_path / "no" / "such" / "out.onnx")


def test_ir3_initializers_are_constants_and_stay_listed():
    model = ir.from_proto(small(ir_version=3, opset=8, init_is_input=True))
    assert [t.name for t in model.inputs] == ["x"] and "w" in model.constants()
    out = onnx.load_from_string(ir.to_bytes(model))
    assert [i.name for i in out.graph.input] == ["x", "w"]
    onnx.checker.check_model(out)


def test_ir4_defaults_stay_overridable_until_frozen():
    model = ir.from_proto(small(init_is_input=True))
    assert list(model.header.defaults) == ["w"]
    session = suite.session(ir.to_bytes(model))
    assert [i.name for i in session.get_overridable_initializers()] == ["w"]
    assert model.freeze_defaults() == 1
    frozen = suite.session(ir.to_bytes(model))
    assert not frozen.get_overridable_initializers() and [i.name for i in frozen.get_inputs()] == ["x"]
    assert np.array_equal(run(ir.to_bytes(model)), run(small().SerializeToString()))


@pytest.mark.slow
def test_more_than_two_gib(tmp_path):
    weight = np.zeros((1, 2**29 + 2**20), np.float32)  # 2.004 GiB, of zero pages
    weight[0, -1] = 3.0
    model = ir.text.parse("agraph (float[1,1] x) => (float[1,n] y) <float[1,1] w = {1.0}> { y = MatMul(x, w) }")
    model.constants()["w"].values = weight
    ir.save(model, tmp_path / "big.onnx")
    again = ir.load(tmp_path / "big.onnx")
    assert again.constants()["w"].values[0, -1] == 3.0
    assert suite.session(str(tmp_path / "big.onnx")).run(None, {"x": np.ones((1, 1), np.float32)})[0][0, -1] == 3.0
