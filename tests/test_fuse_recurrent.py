"""Unrolled LSTM, GRU and RNN become one operator, or stay as they are: structure first, then numbers."""

import casefiles
import numpy as np
import pytest
import suite
from onnx import helper
from onnxslim_opt.passes.fuse import cells, chains
from onnxslim_opt.passes.simplify import Simplify
from unrolled import Unrolled

from onnxslim_opt import ir

CELLS = ["LSTM", "GRU"]


def _check(proto, **options):
    """Simplify; the operators that are left, and the refusals. The outputs are the same but for rounding."""
    before = proto.SerializeToString()
    model = ir.from_bytes(before)
    result = Simplify(**options).run(model)
    after = ir.to_proto(model)
    assert list(after.graph.input) == list(proto.graph.input) and list(after.graph.output) == list(proto.graph.output)
    one, two = suite.session(before), suite.session(after.SerializeToString())
    for seed in (0, 1):
        feeds = casefiles.random_feeds(one, seed)
        for x, y in zip(one.run(None, feeds), two.run(None, feeds)):
            assert x.shape == y.shape
            np.testing.assert_allclose(y, x, rtol=0, atol=2e-6 * float(np.abs(x).max()))
    return sorted(n.op for n in model.nodes()), model, result


STACKED = ["Squeeze", "Transpose", "Transpose", "Unsqueeze"]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("style", ["split", "slice", "gates"])
@pytest.mark.parametrize("slices", ["gather", "slice", "split"])
def test_the_ways_to_write_gates_and_slices(cell, style, slices):
    ops, _, result = _check(Unrolled(cell, style=style, slices=slices).build())
    assert ops == sorted([cell, *STACKED, *(["Unsqueeze"] if cell == "LSTM" else [])])
    assert result.did["unrolled recurrence"] == 1


@pytest.mark.parametrize("order", ["ifgo", "igfo", "oifg"])
@pytest.mark.parametrize("style", ["split", "concat"])
def test_the_gates_of_an_lstm_in_any_order_and_beside_the_state(order, style):
    ops, _, _ = _check(Unrolled(style=style, order=order).build())
    assert "LSTM" in ops and "Sigmoid" not in ops


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("state", "batch"), [("input", "N"), ("zeros", 1), ("zeros", 2), ("filled", "N")])
def test_first_states(cell, bias, state, batch):
    ops, model, _ = _check(Unrolled(cell, state=state, batch=batch, bias=bias, results="last").build())
    (node,) = (n for n in model.nodes() if n.op == cell)
    given = 2 if cell == "LSTM" else 1
    assert ops.count("Unsqueeze") == (given if state == "input" else 0)
    assert len(node.inputs) == ((5 + given) if state == "input" else 4 if bias else 3)
    assert ops.count("Squeeze") == given and ops.count("Transpose") == 1 and "Shape" not in ops


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("results", ["stack", "flat", "each", "last"])
def test_what_is_read_of_the_states(cell, backward, axis, results):
    ops, model, _ = _check(Unrolled(cell, 4, axis=axis, backward=backward, results=results, opset=11).build())
    (node,) = (n for n in model.nodes() if n.op == cell)
    assert node.attrs.get("direction", "forward") == ("reverse" if backward else "forward")
    assert ops.count("Transpose") == (axis == 1) + ((results == "stack" and axis == 1) or results == "flat")
    assert ops.count("Gather") == (4 if results == "each" else 0)
    assert bool(node.outputs[0].name) == (results != "last")


@pytest.mark.parametrize("cell", CELLS)
def test_layers_are_rolled_up_one_after_the_other(cell):
    ops, _, result = _check(Unrolled(cell, 5, layers=3, state="zeros", batch=2).build())
    assert result.did["unrolled recurrence"] == 3
    assert ops.count(cell) == 3 and not {"Sigmoid", "Tanh", "Gather"} & set(ops)


def test_rnn_where_it_is_no_slower():
    assert "RNN" in _check(Unrolled("RNN", batch=1).build())[0]
    assert "RNN" not in _check(Unrolled("RNN").build())[0]
    assert "RNN" in _check(Unrolled("RNN").build(), compact=True)[0]


def _edited(change, **options):
    """A network of five steps with something else in the way of one."""
    made = Unrolled(count=5, **options)
    proto = made.build()
    change(proto.graph)
    return proto


def _nth(graph, op, k):
    return [n for n in graph.node if n.op_type == op][k]


def _other_weight(graph):
    weight = next(t for t in graph.initializer if t.name == "r0")
    other = graph.initializer.add()
    other.CopyFrom(weight)
    other.name, other.raw_data = "other", (np.frombuffer(weight.raw_data, np.float32) * 1.5).tobytes()
    [n for n in graph.node if list(n.input[1:]) == ["r0"]][2].input[1] = "other"


def _other_bias(graph):
    bias = next(t for t in graph.initializer if t.name == "r0_b")
    other = graph.initializer.add()
    other.CopyFrom(bias)
    other.name, other.raw_data = "other", (np.frombuffer(bias.raw_data, np.float32) + 0.01).tobytes()
    [n for n in graph.node if list(n.input[1:]) == ["r0_b"]][2].input[1] = "other"


def _cell_state_read(graph):
    tanh = [n for n in graph.node if n.op_type == "Tanh"][5]
    assert tanh.input[0].startswith("add")
    graph.output.append(helper.make_tensor_value_info(tanh.input[0], 1, ["N", 4]))


def _peephole(graph):
    gate = _nth(graph, "Sigmoid", 7)
    node = helper.make_node("Add", [gate.input[0], "c0"], ["peep"], name="peep")
    at = next(k for k, n in enumerate(graph.node) if n is gate or n.name == gate.name)
    gate.input[0] = "peep"
    graph.node.insert(at, node)


def _other_order(graph):
    gathers = [n for n in graph.node if n.op_type == "Gather"]
    gathers[2].input[1], gathers[3].input[1] = gathers[3].input[1], gathers[2].input[1]


def _weight_read(graph):
    graph.node.append(helper.make_node("MatMul", ["h0", "r0"], ["again"], name="again"))
    graph.output.append(helper.make_tensor_value_info("again", 1, ["N", 16]))


@pytest.mark.parametrize(
    "change",
    [_other_weight, _other_bias, _cell_state_read, _peephole, _other_order, _weight_read],
    ids=lambda c: c.__name__,
)
def test_steps_that_are_not_alike_stay(change):
    proto = _edited(change)
    ops, _, result = _check(proto)
    assert "LSTM" not in ops and ops.count("Tanh") == 10
    said = [s.reason for s in result.skipped if "read elsewhere too" in s.reason]
    assert bool(said) == (change is not _other_order)


def test_a_state_that_all_rows_share_is_not_that_of_a_batch():
    made = Unrolled(batch=2, results="last")
    proto = made.build()
    for info in proto.graph.input[1:]:
        info.type.tensor_type.shape.dim[0].dim_value = 1
    ops, _, _ = _check(proto)
    assert "LSTM" not in ops


def test_the_time_it_takes_is_linear(monkeypatch):
    seen = []
    monkeypatch.setitem(chains._PARSERS, "LSTM", lambda rw, h: seen.append(h) or cells.lstm(rw, h))
    counts = []
    for count in (20, 200):
        seen.clear()
        model = ir.from_proto(Unrolled(count=count, batch=1).build())
        Simplify().run(model)
        assert [n.op for n in model.nodes()].count("LSTM") == 1
        counts.append(len(seen))
    assert counts[1] < 11 * counts[0]
