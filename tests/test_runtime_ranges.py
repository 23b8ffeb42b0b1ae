"""Ranges and histograms against numpy, whatever the order, the shape and the memory."""

import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnxslim_opt.ir.errors import ModelError
from onnxslim_opt.runtime import DataOptions, Session, ranges, resolve
from onnxslim_opt.runtime.histograms import Histogram

from onnxslim_opt import ir

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"
NET = ir.text.parse(
    "g (float[N,3,H,W] x) => (float[N,3,H,W] y) <float[1,3,1,1] c = {1.0, -2.0, 30.0}>"
    " { a = Relu(x) b = Mul(a, c) y = Neg(b) i = Shape(b) }"
)


def data(n=5):
    rng = np.random.default_rng(0)
    # every feed of another size and scale: nothing may depend on the first one's range
    return [{"x": (10.0 ** (k - 2) * rng.standard_normal((1 + k, 3, 4 + k, 5))).astype(np.float32)} for k in range(n)]


@pytest.mark.parametrize("memory_mb", [0, 512])
def test_ranges_match_numpy(memory_mb):
    feeds = resolve(data(), NET)
    found = ranges.collect(NET, ["x", "b", "a", "c"], feeds, axes={"b": 1}, memory_mb=memory_mb)
    assert list(found) == ["x", "b", "a", "c"]
    x = [f["x"] for f in data()]
    a = [np.maximum(v, 0) for v in x]
    b = [v * np.float32([1, -2, 30]).reshape(1, 3, 1, 1) for v in a]
    for name, values in {"x": x, "a": a, "b": b}.items():
        flat = np.concatenate([v.ravel() for v in values]).astype(np.float64)
        r = found[name]
        assert (r.min, r.max, r.count, r.nonfinite) == (flat.min(), flat.max(), flat.size, 0)
        assert r.mean == pytest.approx(flat.mean(), rel=1e-6)
        assert r.std == pytest.approx(flat.std(), rel=1e-5)
        assert r.histogram.total == flat.size
    np.testing.assert_array_equal(found["b"].channel_min, np.min([v.min((0, 2, 3)) for v in b], 0))
    np.testing.assert_array_equal(found["b"].channel_max, np.max([v.max((0, 2, 3)) for v in b], 0))
    assert found["c"].count == 15


def test_histograms_count_exactly_what_lies_in_each_bin():
    found = ranges.collect(NET, ["b"], resolve(data(), NET), bins=256)["b"].histogram
    flat = np.concatenate([Session(NET, outputs=["b"]).run(f)["b"].ravel() for f in data()]).astype(np.float64)
    expected = np.bincount(np.floor(flat / found.width).astype(int) - found.start, minlength=256)
    np.testing.assert_array_equal(found.counts, expected)
    used = np.flatnonzero(found.counts)
    assert used[-1] - used[0] >= 127  # at least half of the bins carry the range


def test_no_histogram_and_integers():
    found = ranges.collect(NET, ["i"], resolve(data(2), NET), bins=None)
    assert found["i"].histogram is None
    assert (found["i"].min, found["i"].max, found["i"].count) == (1, 5, 8)


def test_values_that_are_not_finite_are_counted_apart():
    model = ir.text.parse("g (float[N] x) => (float[N] y) { y = Log(x) }")
    found = ranges.collect(model, ["y"], resolve([{"x": np.float32([-1, 0, 1, np.e])}], model), axes={"y": 0})["y"]
    assert (found.min, found.count, found.nonfinite) == (0, 2, 2)
    assert found.max == pytest.approx(1) and found.histogram.total == 2


def test_waves_keep_to_the_memory():
    feeds = resolve([{"x": np.ones((1, 3, 256, 256), np.float32)}], NET)  # 768 KB a tensor
    assert ranges.plan(NET, ["y", "x", "a", "b"], feeds, memory_mb=512) == [["x", "a", "b", "y"]]
    assert ranges.plan(NET, ["y", "x", "a", "b"], feeds, memory_mb=5) == [["x", "a"], ["b", "y"]]
    assert ranges.plan(NET, ["y", "x", "a", "b"], feeds, memory_mb=1) == [["x"], ["a"], ["b"], ["y"]]
    assert ranges.plan(NET, [], feeds, memory_mb=1) == []


def test_unknown_names_are_told():
    with pytest.raises(ModelError, match="'nope'"):
        ranges.collect(NET, ["nope"], resolve(data(1), NET))


def test_progress_is_asked_for():
    seen = []
    ranges.collect(NET, ["a"], resolve(data(3), NET), progress=lambda i, label, n: seen.append((label, n)) or i)
    assert seen == [("ranges", 3)]


floats = hnp.arrays(
    np.float32,
    st.integers(0, 40),
    # 36 decades: beyond that a quotient by the width underflows in float32, and a negative speck counts as zero
    elements=st.floats(-(2.0**60), 2.0**60, width=32).map(lambda v: v if abs(v) > 2.0**-60 else 0.0),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(floats, max_size=5))
def test_histogram_holds_any_floats(parts):
    whole, merged = Histogram(64), Histogram(64)
    for part in parts:
        whole.add(part)
        single = Histogram(64)
        single.add(part)
        merged.merge(single)
    flat = np.concatenate([np.zeros(0, np.float32), *parts])
    for h in (whole, merged):
        assert h.total == flat.size
        if not flat.size:
            continue
        place = np.floor(flat.astype(np.float64) / h.width).astype(np.int64) - h.start
        np.testing.assert_array_equal(h.counts, np.bincount(place, minlength=64))
        assert h.low <= flat.min() and flat.max() < h.high


def test_histogram_helpers():
    h = Histogram(2048)
    values = np.random.default_rng(1).standard_normal(200_000).astype(np.float32)
    for part in np.array_split(values, 7):
        h.add(part)
    q = np.array([0.0, 0.001, 0.1, 0.5, 0.9, 0.999, 1.0])
    np.testing.assert_allclose(h.quantile(q), np.quantile(values, q), atol=2 * h.width)
    t = h.trimmed()
    assert t.total == h.total and t.counts[0] > 0 and t.counts[-1] > 0
    assert t.low <= values.min() <= t.low + t.width and t.high - t.width <= values.max() <= t.high
    np.testing.assert_allclose(h.centers, (h.edges[1:] + h.edges[:-1]) / 2)
    assert (h.edges == 0.0).any()
    zeros = Histogram(16)
    zeros.add(np.zeros(5, np.float32))
    zeros.add(np.float32([1, -1]))
    assert zeros.total == 7 and zeros.counts[-zeros.start] == 5
    assert Histogram(8).trimmed().total == 0 and Histogram(8).quantile(0.5) == 0


@pytest.mark.skipif(not SHARED.exists(), reason="the shared models are not here")
@pytest.mark.parametrize("name", ["yolox_nano", "ppocrv3_det", "silero_vad_16k_op15"])
def test_all_tensors_of_real_models(name):
    pytest.importorskip("PIL")
    model = ir.load(SHARED / "models" / f"{name}.onnx")
    feeds = resolve(f"{SHARED}/tasks.py:{name}_data", model, DataOptions(samples=2))
    names = [t.name for n in model.graph.nodes for t in n.outputs if t.name]
    found = ranges.collect(model, names, feeds, memory_mb=64)
    out = model.graph.outputs[0].name
    values = [Session(model).run(f)[out] for f in feeds]
    assert found[out].count == sum(v.size for v in values)
    assert found[out].max == pytest.approx(max(float(v.max()) for v in values), rel=1e-5)
    assert all(r.histogram.total == r.count for r in found.values())
