"""Numerics against dense formulas, with every odd value that a model may put out."""

import json
import math

import numpy as np
import pytest
from onnxslim_opt.ir.errors import ModelError
from onnxslim_opt.passes import diverge
from onnxslim_opt.runtime import Reference, Session, numerics, resolve
from onnxslim_opt.runtime.differences import Channels, common, compare_tensors
from onnxslim_opt.runtime.numerics import Diff

from onnxslim_opt import ir

LINEAR = "g (float[N,3] x) => (float[N,4] y) <float[3,4] w = {1,2,3,4,5,6,7,8,9,1,2,3}> { y = MatMul(x, w) }"


def linear(factor=1.0):
    model = ir.text.parse(LINEAR)
    weight = model.graph.nodes[0].inputs[1]
    weight.values = weight.values * np.float32(factor)
    return model


def feeds(n=6, batch=5):
    rng = np.random.default_rng(3)
    return resolve([{"x": rng.standard_normal((batch, 3), np.float32)} for _ in range(n)], linear())


def test_sqnr_and_the_rest_match_the_dense_formulas():
    data, other = feeds(), linear(1.25)
    other.graph.nodes[0].inputs[1].values = other.graph.nodes[0].inputs[1].values + np.float32(0.5)
    report = Reference(linear(), data).compare(other)
    a = np.concatenate([Session(linear()).run(f)["y"] for f in data]).astype(np.float64)
    b = np.concatenate([Session(other).run(f)["y"] for f in data]).astype(np.float64)
    (out,) = report.outputs
    assert out.sqnr_db == pytest.approx(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()), abs=1e-9)
    assert out.cosine == pytest.approx((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()), abs=1e-12)
    assert out.max_abs == pytest.approx(np.abs(a - b).max(), rel=1e-9)
    assert out.argmax_agreement == pytest.approx((a.argmax(1) == b.argmax(1)).mean())
    assert report.min_sqnr == out.sqnr_db
    assert report.feeds == 6 and report.source == "data"
    assert report.drop == pytest.approx(1 - out.argmax_agreement)


def test_equal_models_are_infinitely_close_and_json_can_say_it():
    report = Reference(linear(), feeds()).compare(linear())
    assert report.min_sqnr == math.inf and report.drop == 0
    row = json.loads(json.dumps(report.to_json(), allow_nan=False))["outputs"][0]
    assert row == {"name": "y", "sqnr_db": 999.0, "cosine": 1.0, "max_abs": 0.0, "argmax_agreement": 1.0}


@pytest.mark.parametrize("memory_mb", [0, 128])
def test_reference_is_kept_or_computed_again_alike(memory_mb):
    reference = Reference(linear(), feeds(), memory_mb=memory_mb)
    first, second = reference.compare(linear(1.1)), reference.compare(linear(1.1))
    assert first == second
    assert len(reference._kept) == (6 if memory_mb else 0)


def test_a_candidate_session_or_path_may_be_given(tmp_path):
    ir.save(linear(1.1), tmp_path / "b.onnx")
    reference = Reference(Session(linear()), feeds())
    assert reference.compare(Session(linear(1.1))) == reference.compare(tmp_path / "b.onnx")
    assert numerics.compare(linear(), linear(1.1), feeds()) == reference.compare(linear(1.1))


def test_a_lost_output_is_named():
    other = ir.text.parse(LINEAR.replace("(float[N,4] y)", "(float[N,4] z)").replace("y =", "z ="))
    with pytest.raises(ModelError, match="lacks the output 'y'"):
        Reference(linear(), feeds()).compare(other)


def diff(ref, out):
    made = Diff("t")
    made.add(ref, out)
    return made.result()


F = np.float32


@pytest.mark.parametrize(
    ("ref", "out", "sqnr"),
    [
        (F([1, 2]), F([1, np.nan]), -math.inf),
        (F([1, 2]), F([1, np.inf]), -math.inf),
        (F([1, 2]), F([[1, 2]]), -math.inf),
        (F([1, -np.inf]), F([1, -np.inf]), math.inf),  # masks: infinite in the original itself
        (F([1, np.nan]), F([1, 7]), math.inf),
        (F([0, 0]), F([0, 0]), math.inf),
        (F([0, 0]), F([1e-6, 1e-6]), 0.0),  # silence: noise is measured against 1e-6
        (F([]), F([]), math.inf),
        (np.float16([300] * 4), np.float16([300] * 4), math.inf),  # squares overflow float16
        (np.array([1, 2, 3, 4]), np.array([1, 2, 3, 4]), math.inf),
        (np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]), 10 * math.log10(4)),
        (np.array([1, 2]), np.array([1, 2, 3, 4]), 0.0),
        (np.array([True, False]), np.array([True, True]), 10 * math.log10(2)),
        (np.array(["a", "b"], object), np.array(["a", "b"], object), math.inf),
        ([F([1]), F([2])], [F([1]), F([2])], math.inf),
        ([F([1]), F([2])], [F([1])], -math.inf),
        ([{"a": F(3)}], [{"a": F(3)}], math.inf),
        (None, None, math.inf),
        (np.complex64([1 + 1j]), np.complex64([1 + 0j]), 10 * math.log10(2)),
    ],
)
def test_every_kind_of_value(ref, out, sqnr):
    assert diff(ref, out).sqnr_db == pytest.approx(sqnr, abs=1e-6)
    json.dumps(diff(ref, out).to_json(), allow_nan=False)


@pytest.mark.parametrize(
    "value", [F([[np.nan, np.inf]]), F([]), np.zeros((0, 3), np.int64), [], [F([]), F([np.nan])], np.float16([np.inf])]
)
def test_equal_values_of_which_nothing_can_be_compared(value):
    row = diff(value, value)
    assert row.unseen and row.sqnr_db == math.inf and row.argmax_agreement is None
    assert json.loads(json.dumps(row.to_json(), allow_nan=False))["sqnr_db"] is None
    assert row.to_json()["trouble"] == "nothing to compare"


def test_one_element_that_can_be_compared_is_enough():
    assert not diff(F([[np.nan, 1]]), F([[np.nan, 1]])).unseen
    assert not diff(F([]), F([1])).unseen and diff(F([]), F([1])).trouble == "other shape"
    rows = diff(F([[np.nan, np.nan], [1, 2]]), F([[np.nan, np.nan], [2, 1]]))
    assert rows.argmax_agreement == 0, "a row of NaN agrees with nothing"
    masked = diff(F([[-np.inf, -1, -2], [-np.inf, -1, -2]]), F([[-np.inf, -2, -1], [-np.inf, -1, -2]]))
    assert masked.argmax_agreement == 0.5, "no class that the original rules out is the largest"


def test_the_drop_is_that_of_the_worst_output():
    table = diff(F([[1, 2], [3, 4]]), F([[1, 2], [4, 3]]))
    image = diff(F([[[3, 4]]]), F([[[3, 3]]]))
    labels = diff(np.array([[1, 2, 3, 4]]), np.array([[1, 2, 3, 5]]))
    assert [d.drop for d in (table, image, labels)] == pytest.approx([0.5, 0.2, 0.25])
    assert numerics.Numerics((labels, image), 1, "data").drop == labels.drop
    assert numerics.Numerics((diff(F([[1, 2]]), F([[1, 2.1]])), image), 1, "data").drop == image.drop
    assert diff(F([[1, 2]]), F([1, 2])).drop == numerics.BROKEN_DROP
    assert diff(F([]), F([])).drop == numerics.Numerics((), 1, "data").drop == 0


def test_argmax_is_for_tables_of_floats_only():
    assert diff(F([[1, 2]]), F([[2, 1]])).argmax_agreement == 0
    assert diff(F([[1], [2]]), F([[1], [2]])).argmax_agreement is None
    assert diff(F([[[1, 2]]]), F([[[1, 2]]])).argmax_agreement is None
    assert diff(np.array([[1, 2]]), np.array([[1, 2]])).argmax_agreement is None


def test_compare_tensors_finds_the_first_divergence():
    text = "g (float[N,4] x) => (float[N,4] y) { a = Relu(x) b = Mul(a, c) y = Sigmoid(b) }"
    text = text.replace("=> (float[N,4] y)", "=> (float[N,4] y) <float[1] c = {2.0}>")
    a, b = ir.text.parse(text), ir.text.parse(text.replace("2.0", "2.2"))
    data = [{"x": np.random.default_rng(k).standard_normal((2, 4), np.float32)} for k in range(3)]
    assert common(a, b) == ["a", "b", "y"]
    rows = compare_tensors(a, b, resolve(data, a))
    assert [r.name for r in rows] == ["a", "b", "y"]
    assert rows[0].sqnr_db == math.inf
    assert rows[1].sqnr_db == pytest.approx(20, abs=1e-4)  # a tenth too much everywhere
    assert [r.name for r in compare_tensors(a, b, resolve(data, a), ["y", "b"])] == ["b", "y"]
    small = compare_tensors(a, b, resolve(data, a), memory_mb=0)
    assert small == rows


def test_outputs_that_are_constants_or_inputs_are_compared():
    text = "g (float[N,2] x) => (float[1] k, float[1] c, float[N,2] x) <float[1] c = {2}> { k = Neg(c) }"
    other = text.replace("{2}", "{1}")
    folded = other.replace("{1}>", "{1}, float[1] k = {-1}>").replace("{ k = Neg(c) }", "{ }")
    for b in (other, folded):
        found = diverge.compare(ir.text.parse(text), ir.text.parse(b), [{"x": F([[1, 2]])}])
        assert [(t.name, t.op, round(t.diff.sqnr_db, 1)) for t in found.outputs] == [
            ("k", "Neg", 6.0),
            ("c", "constant", 6.0),
            ("x", "input", math.inf),
        ]
        assert not found.inner and not found.missing


@pytest.mark.parametrize("axis", [1, -1])
def test_channels_on_other_scales_are_told_from_damage(axis):
    rng = np.random.default_rng(0)
    factors = np.exp(rng.standard_normal(6)).astype(np.float32)
    shape = (1, 6, 1, 1) if axis == 1 else (6,)
    damage, plain = Channels(axis), Channels(axis)
    signal = noise = 0.0
    for _ in range(3):
        a = rng.standard_normal((4, 6, 8, 6), np.float32)
        error = rng.standard_normal(a.shape, np.float32) / 20
        damage.add(a, (a + error) * factors.reshape(shape))
        plain.add(a, a * factors.reshape(shape))
        signal, noise = signal + (a.astype(np.float64) ** 2).sum(), noise + (error.astype(np.float64) ** 2).sum()
    assert damage.sqnr() == pytest.approx(10 * np.log10(signal / noise), abs=0.1)
    assert plain.sqnr() > 120
    assert Channels(axis).sqnr() == -math.inf


def test_compare_tensors_sees_through_equalised_channels():
    """Factors that one layer brings in and the next takes out."""
    weights = "<float[4] c = {1,1,1,1}, float[4,2] w = {1,2,3,4,5,6,7,8}>"
    text = f"g (float[N,4] x) => (float[N,2] y) {weights} {{ a = Mul(x, c) b = Relu(a) y = MatMul(b, w) }}"
    one = ir.text.parse(text)
    two = ir.text.parse(
        text.replace("{1,1,1,1}", "{1,2,4,8}").replace("{1,2,3,4,5,6,7,8}", "{1,2,1.5,2,1.25,1.5,0.875,1}")
    )
    data = [{"x": np.random.default_rng(k).standard_normal((9, 4), np.float32)} for k in range(3)]
    rows = {r.name: r for r in compare_tensors(one, two, resolve(data, one))}
    assert rows["b"].sqnr_db < 0 and rows["b"].rescaled_db > 120
    assert rows["y"].sqnr_db > 120 and rows["y"].rescaled_db is None
