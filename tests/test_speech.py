"""Recurrent speech models with nested If and LSTM keep their quality under every pass that shrinks weights."""

import sys

import pytest
from onnxslim_opt.passes.pace import Pace

from onnxslim_opt import optimize

LABELLED = ("silero_vad", "silero_vad_16k_op15")
SPECS = ("fp16", "bf16", "quant", "dynquant", "dynquant:contrib=true")


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", [*LABELLED, "dtln_1", "dtln_2"])
def test_speech_models(shared, monkeypatch, name, spec):
    """Valid, smaller, every layer that was left alone named, and AUC within 0.002 where there are labels."""
    sys.path.insert(0, str(shared))
    import tasks

    # Runs of 0.06 ms: the clock of a busy machine may roll a pass back, which is not what is looked at here.
    monkeypatch.setattr(Pace, "judge", lambda self, before, after: (self.compare(before, after), ""))
    metric = getattr(tasks, f"{name}_metric", None)
    result = optimize(shared / "models" / f"{name}.onnx", spec, data=getattr(tasks, f"{name}_data"), metric=metric)
    report, step = result.report, result.report.steps[-1]
    assert report.verdict == "ok" and step["kept"], step["reason"]
    assert report.output["bytes"] < (0.55 if spec.endswith("16") else 0.4) * report.input["bytes"]
    reasons = [s["reason"] for s in step["skipped"]]
    assert all(reasons)
    if spec in ("quant", "dynquant"):
        assert any("LSTM" in r for r in reasons) or name == "dtln_2"
    if metric is not None:
        assert report.metric["after"] >= report.metric["before"] - 0.002
