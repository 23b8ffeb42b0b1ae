"""Latency in turns, and timings that replay to the byte."""

import json
import time

import numpy as np
import pytest
from onnxslim_opt.ir.errors import BadInput, OutputError
from onnxslim_opt.runtime import Session, Timings, latency, resolve

from onnxslim_opt import ir


def chain(depth, width=96):
    steps = " ".join(f"t{k + 1} = MatMul(t{k}, w)" for k in range(depth))
    ends = f"(float[64,{width}] t0) => (float[64,{width}] t{depth})"
    model = ir.text.parse(f"g {ends} <float[1] w = {{0}}> {{ {steps} }}")
    weight = ir.edit.constant(model, "w", np.eye(width, dtype=np.float32))
    for node in model.graph.nodes:
        node.inputs[1] = weight
    return model


@pytest.fixture(scope="module")
def models():
    return chain(4), chain(16)


FEED = {"t0": np.ones((64, 96), np.float32)}


def test_the_deeper_model_is_slower(models):
    result = latency.compare(models[1], models[0], FEED, seconds=1)
    assert result.speedup > 1.5
    assert result.before_ms > result.after_ms > 0
    assert result.runs >= 7 and result.threads == 1
    assert set(result.to_json()) == {"before_ms", "after_ms", "speedup", "threads", "runs"}


def test_a_model_beside_itself_is_exactly_as_fast(models):
    result = latency.compare(models[0], ir.to_bytes(models[0]), FEED, seconds=0.1)
    assert result.speedup == 1 and result.before_ms == result.after_ms


def test_one_after_the_other_loads_each_in_its_turn_and_replays(models, tmp_path):
    loaded = []

    def make(model):
        loaded.append(model)
        return Session(model)

    timings = Timings(tmp_path / "t.json")
    result = latency.apart(models[1], models[0], FEED, make=make, timings=timings, seconds=0.5)
    assert [models.index(m) for m in loaded] == [1, 0, 0, 1]
    assert result.speedup > 1.5 and result.before_ms > result.after_ms > 0 and result.runs >= 6
    assert latency.apart(models[1], models[0], FEED, make=make, timings=timings) == result
    assert len(loaded) == 4 and timings.replayed == 1
    assert latency.apart(models[0], models[0], FEED, make=make, seconds=0.1).speedup == 1


def test_bench_any_number_and_in_any_form(models, tmp_path):
    ir.save(models[1], tmp_path / "m.onnx")
    feeds = resolve([FEED], models[0])
    rows = latency.bench([models[0], Session(models[1]), tmp_path / "m.onnx"], feeds, seconds=0.3)
    assert len(rows) == 3
    assert rows[0].speedup == 1 and rows[1] == rows[2]  # the same content is the same speed
    assert rows[1].speedup < 1 / 1.5


def test_time_budget_and_run_limits(models):
    assert latency.compare(models[0], models[1], FEED, seconds=0, min_runs=7).runs == 7
    assert latency.compare(models[0], models[1], FEED, seconds=60, min_runs=3, max_runs=5).runs == 5


def test_timings_replay_instead_of_measuring(models, tmp_path, monkeypatch):
    path = tmp_path / "t.json"
    timings = Timings(path)
    first = latency.compare(*models, FEED, seconds=0.1, timings=timings)
    small = latency.time_models(models, timings=timings, seconds=0.05)
    timings.save()
    content = path.read_bytes()
    again = Timings(path)
    monkeypatch.setattr(latency, "_in_turns", lambda *a: pytest.fail("measured again"))
    assert latency.compare(*models, FEED, seconds=0.1, timings=again) == first
    assert latency.time_models(models, timings=again, seconds=0.05) == small
    again.save()
    assert path.read_bytes() == content
    assert again.replayed == 2
    header = json.loads(content)
    assert header["machine"]["cpu"] and header["machine"]["onnxruntime"]


def test_keys_depend_on_content_threads_and_shape(models):
    timings = Timings()
    for kwargs in ({}, {"threads": 2}):
        latency.compare(*models, FEED, seconds=0, min_runs=1, max_runs=1, timings=timings, **kwargs)
    latency.compare(*models[::-1], FEED, seconds=0, min_runs=1, max_runs=1, timings=timings)
    assert len(timings.entries) == 3
    latency.compare(models[0].copy(), models[1], FEED, timings=timings)
    assert len(timings.entries) == 3


def test_time_models_in_turns(models):
    slow, fast = latency.time_models([models[1], models[0]])
    assert slow / fast > 1.5
    same = latency.time_models([models[0], models[0].copy()])
    assert same[0] == same[1]


def test_measure_gives_what_a_replay_would(tmp_path):
    timings = Timings(tmp_path / "t.json")
    value = timings.measure("k", lambda: {"ms": (1.25, 0.1 + 0.2)})
    timings.save()
    assert (
        Timings(tmp_path / "t.json").measure("k", lambda: pytest.fail("called")) == value == {"ms": [1.25, 0.1 + 0.2]}
    )


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 9, "machine": {}, "timings": {}}'])
def test_bad_timings_files(tmp_path, content):
    path = tmp_path / "t.json"
    path.write_text(content)
    with pytest.raises(BadInput, match=r"t\.json"):
        Timings(path)


def test_timings_without_a_place(tmp_path):
    Timings().save()
    timings = Timings(tmp_path / "none" / "t.json")
    with pytest.raises(OutputError, match=r"t\.json"):
        timings.save()


def test_sequences_of_different_shapes_are_timed():
    model = ir.text.parse("g (seq(float[n,3]) x) => (float[m,3] y) { y = ConcatFromSequence <axis = 0> (x) }")
    feed = {"x": [np.ones((2, 3), np.float32), np.ones((5, 3), np.float32)]}
    timings = Timings()
    assert latency.bench([model], feed, timings=timings, seconds=0.02)[0].ms > 0
    assert latency.apart(model, model.copy(), feed, timings=timings, seconds=0.02).speedup == 1


def test_every_model_has_every_place_in_a_round():
    """Who always runs behind the same model is measured with the caches that it leaves."""
    ran = []

    class Fake:
        clock = staticmethod(time.perf_counter)

        def __init__(self, name):
            self.name = name

        def run(self, feed):
            ran.append(self.name)
            time.sleep(0.03)  # longer than what is averaged over, or run once before it is timed

    rows = latency._in_turns([(Fake(name), {}) for name in "abc"], 0.0, 12, 12)
    rounds = [ran[k : k + 3] for k in range(len(ran) - 36, len(ran), 3)]
    assert len(rows) == 3 and all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert all({r[place] for r in rounds} == {"a", "b", "c"} for place in range(3))
