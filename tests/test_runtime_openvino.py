"""Timing in OpenVINO, for the target of that name."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from onnxslim_opt.ir.errors import DataError, ModelError
from onnxslim_opt.passes.target import Target
from onnxslim_opt.runtime import latency, openvino
from onnxslim_opt.runtime.session import Session
from toys import feeds, model

from onnxslim_opt import ir, optimize

pytest.importorskip("openvino")
from onnxslim_opt.runtime.openvino import OpenVinoSession, version


@pytest.fixture
def net():
    return model()


def test_it_computes_what_onnx_runtime_computes(net, tmp_path):
    ir.save(net, tmp_path / "m.onnx")
    for source in (net, ir.to_bytes(net), tmp_path / "m.onnx"):
        ours = OpenVinoSession(source)
        for feed in feeds(3):
            for name, value in Session(net).run(feed).items():  # in bfloat16 where the processor has it
                assert np.abs(ours.run(feed)[name] - value).max() <= 0.02 * np.ptp(value)
    assert version()[:2] == "20"


def test_trouble_is_one_line(net):
    net.graph.nodes[0].op = "NoSuchOperator"
    with pytest.raises(ModelError, match=r"OpenVINO refuses the model.*NoSuchOperator"):
        OpenVinoSession(net)
    with pytest.raises(DataError, match="OpenVINO cannot run these feeds"):
        OpenVinoSession(model()).run({"x": np.array(["text"])})


def test_timings_of_one_runtime_are_not_taken_for_anothers(net):
    timings = latency.Timings(engine="openvino")
    assert isinstance(latency.start(net, timings=timings), OpenVinoSession)
    latency.bench([net], feeds(1)[0], timings=timings, seconds=0.01, max_runs=7)
    timings.engine = "onnxruntime"
    latency.bench([net], feeds(1)[0], timings=timings, seconds=0.01, max_runs=7)
    assert len(timings.entries) == 2
    assert timings.replayed == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals as POSIX has them")
def test_a_model_that_openvino_crashes_on_is_rolled_back(net, monkeypatch):
    monkeypatch.setattr(openvino, "_survived", set())
    monkeypatch.setattr(openvino, "TRIAL", "import os, signal; os.kill(os.getpid(), signal.SIGFPE)")
    result = optimize(net, "quant:compute=all:floor=0", data=feeds(16), target="openvino")
    step = result.report.steps[-1]
    assert not step["kept"] and "crashes on the model (SIGFPE)" in step["reason"]
    assert all(n.op != "QuantizeLinear" for n in result.model.graph.nodes)
    assert result.report.verdict == "ok"


def test_the_openvino_target_is_judged_by_its_own_clock(net):
    assert Target.named("openvino").native
    result = optimize(net, "quant", data=feeds(16), target="openvino")
    assert result.report.tool["timed_in"] == "openvino"
    assert result.report.latency["speedup"] > 0


def test_an_exact_pass_that_openvino_runs_slower_is_rolled_back(net, monkeypatch):
    real, simplified = latency.compare, optimize(net, "simplify").model
    assert len(simplified.graph.nodes) < len(net.graph.nodes)

    def slower(a, b, *rest, **options):
        timing = real(a, b, *rest, **options)
        sizes = [len(m.graph.nodes) if isinstance(m, ir.Model) else len(net.graph.nodes) for m in (a, b)]
        return replace(timing, speedup=0.5 if sizes[0] > sizes[1] else 2.0 if sizes[0] < sizes[1] else 1.0)

    monkeypatch.setattr(latency, "compare", slower)
    result = optimize(net, "simplify", data=feeds(16), target="openvino")
    (step,) = result.report.steps
    assert not step["kept"] and "rolled back: it runs at 0.50x the speed" in step["reason"]
    assert len(result.model.graph.nodes) == len(net.graph.nodes)
