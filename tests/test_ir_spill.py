"""Weights of large models in a file of their own: the same values, and memory that can be let go of."""

import sys
import tempfile

import numpy as np
import pytest
from onnxslim_opt.ir import spill as spilling
from onnxslim_opt.ir.spill import aside, let_go, scratch, spill
from onnxslim_opt.runtime import Session

from onnxslim_opt import ir

SIDE = 1024


def model_with_weights(tmp_path):
    """A file with one weight that is read lazily, and beside it one that a pass has made, used twice."""
    weight = np.random.default_rng(0).standard_normal((SIDE, SIDE)).astype(np.float32)
    made = np.random.default_rng(1).standard_normal((SIDE, SIDE)).astype(np.float32)
    text = f"g (float[N,{SIDE}] x) => (float[N,{SIDE}] y) <float[1] w = {{0}}, float[1] v = {{0}}> "
    model = ir.text.parse(text + "{ h = MatMul(x, w) z = MatMul(h, v) y = Add(z, h) }")
    first, second, _ = model.graph.nodes
    first.inputs[1] = ir.edit.constant(model, "w", weight)
    second.inputs[1] = ir.edit.constant(model, "v", weight)
    ir.save(model, tmp_path / "m.onnx")
    loaded = ir.load(tmp_path / "m.onnx")
    loaded.graph.nodes[1].inputs[1] = ir.edit.constant(loaded, "made", made)
    return loaded, weight, made


def resident(mapped):
    """MiB of a mapping that are in memory, as Linux counts them."""
    start = np.frombuffer(mapped, np.uint8).ctypes.data
    with open("/proc/self/smaps") as file:
        lines = iter(file)
        for line in lines:
            if line.startswith(f"{start:x}-"):
                return next(int(row.split()[1]) / 1024 for row in lines if row.startswith("Rss"))
    raise AssertionError("no such mapping")


def test_spilled_weights_are_the_same_and_read_only(tmp_path):
    model, weight, made = model_with_weights(tmp_path)
    before = ir.to_bytes(model)
    x = {"x": np.ones((2, SIDE), np.float32)}
    outputs = Session(model).run(x)
    assert spill(model) == weight.nbytes + made.nbytes
    assert spill(model) == 0  # nothing is left to move
    assert ir.to_bytes(model) == before
    values = [model.graph.nodes[k].inputs[1].values for k in range(2)]
    np.testing.assert_array_equal(values[0], weight)
    np.testing.assert_array_equal(values[1], made)
    assert not any(v.flags.writeable for v in values)
    np.testing.assert_array_equal(Session(model).run(x)["y"], outputs["y"])


def test_copies_of_a_model_share_what_was_moved(tmp_path):
    model, weight, _ = model_with_weights(tmp_path)
    copy = model.copy()
    spill(model)
    assert np.shares_memory(model.graph.nodes[0].inputs[1].values, copy.graph.nodes[0].inputs[1].values)
    let_go()
    np.testing.assert_array_equal(copy.graph.nodes[0].inputs[1].values, weight)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read as Linux counts it")
def test_memory_is_let_go_and_comes_back(tmp_path):
    model, weight, _ = model_with_weights(tmp_path)
    known = set(spilling._maps)
    spill(model)
    (mapped,) = set(spilling._maps) - known
    np.testing.assert_array_equal(model.graph.nodes[0].inputs[1].values, weight)
    assert resident(mapped) >= 4
    let_go()
    assert resident(mapped) == 0
    np.testing.assert_array_equal(model.graph.nodes[0].inputs[1].values, weight)


def test_without_room_everything_stays(tmp_path, monkeypatch):
    model, _, _ = model_with_weights(tmp_path)
    before = ir.to_bytes(model)

    def full(**_):
        raise OSError("no space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert spill(model) == 0
    assert ir.to_bytes(model) == before


def test_views_of_one_array_stay_views_of_one():
    """Options of a layer are slices of the same factors: they are written once, whatever their order in memory."""
    rng, known = np.random.default_rng(0), set(spilling._maps)
    rows, columns = rng.standard_normal((64, 300)), np.asfortranarray(rng.standard_normal((300, 64)))
    given = [rows[:40], rows[:10], columns[:, :40], columns[:, 5:10], rng.standard_normal((30, 20))[::2, ::3]]
    found = aside(given)
    (mapped,) = set(spilling._maps) - known
    assert rows.nbytes + columns.nbytes <= len(mapped) < rows.nbytes + columns.nbytes + 4 * spilling.PAGE + 30 * 20 * 8
    for before, after in zip(given, found):
        np.testing.assert_array_equal(after, before)
        assert not after.flags.writeable
    assert np.shares_memory(found[0], found[1]) and np.shares_memory(found[2], found[3])
    again = aside(found)
    assert all(a is b or np.shares_memory(a, b) for a, b in zip(again, found)), "what is in a file stays there"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read as Linux counts it")
def test_what_is_written_to_a_scratch_comes_back():
    known, mine = set(spilling._maps), np.random.default_rng(0).standard_normal((SIDE, SIDE))
    found = scratch(mine)
    (mapped,) = set(spilling._maps) - known
    found[3:] *= 2.0
    assert resident(mapped) >= 4
    let_go(found[5:, ::2])  # of a view, all of it
    assert resident(mapped) == 0
    np.testing.assert_array_equal(found, np.concatenate([mine[:3], 2.0 * mine[3:]]))


def test_a_scratch_without_room_is_a_copy_in_memory(monkeypatch):
    def full(**_):
        raise OSError("no space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    mine = np.ones(5)
    found = scratch(mine)
    found += 1
    let_go(found)
    np.testing.assert_array_equal(mine, np.ones(5))
    np.testing.assert_array_equal(found, np.full(5, 2.0))
