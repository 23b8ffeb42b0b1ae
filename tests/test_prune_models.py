"""Pruning on the shared real models: every one equals its masked twin at every ratio."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from onnxslim_opt.passes.prune import groups
from prune_twin import check

from onnxslim_opt import ir

MODELS = Path(__file__).resolve().parents[2] / "shared" / "models"
FREE = {  # name: (at least so many units may go, seconds for propagation and groups)
    "squeezenet1_1": (2900, 3),
    "cifar10_resnet20": (300, 3),
    "yolox_nano": (5400, 3),
    "mlperftiny_vww96": (1400, 3),
    "fastestdet": (1400, 3),
    "vit_pgd_2_3_16": (250, 3),
    "ultraface_rfb320": (1700, 3),
    "osnet_x0_25": (1700, 3),
    "kwt1": (4900, 4),
    "ppocrv3_det": (3500, 3),
    "dnsmos_sig_bak_ovr": (600, 3),
    "basic_pitch": (70, 3),
}


def _load(name: str) -> ir.Model:
    path = MODELS / f"{name}.onnx"
    if not path.exists():
        pytest.skip("shared models are not here")
    model = ir.load(path)
    if {t.name for t in model.inputs} > set(model.header.defaults) > set():
        model.freeze_defaults()
    for k, tensor in enumerate(model.graph.outputs):  # a saturated sigmoid would hide every error, or blow one up
        maker = ir.edit.producer(tensor)
        if maker is not None and maker.op == "Sigmoid":
            model.graph.outputs[k] = maker.inputs[0]
            ir.edit.sweep(model)
    ir.shapes.refresh(model)
    return model


def _feeds(model: ir.Model) -> dict[str, np.ndarray]:
    rng, feeds = np.random.default_rng(1), {}
    for tensor in model.inputs:
        shape = [d if isinstance(d, int) else 1 if k == 0 else 64 for k, d in enumerate(tensor.shape)]
        feeds[tensor.name] = rng.standard_normal(shape).astype(np.float32)
    return feeds


@pytest.mark.parametrize("name", FREE)
def test_real_model_equals_its_twin(name: str) -> None:
    model = _load(name)
    feeds = _feeds(model)
    start = time.perf_counter()
    found = groups(model, feeds)
    assert time.perf_counter() - start < 3 * FREE[name][1]  # a busy machine is allowed some room
    assert len(found.units) >= FREE[name][0]
    check(model, feeds, 0.5, 0, found)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", FREE)
def test_real_model_equals_its_twin_at_every_ratio(name: str, ratio: float, seed: int) -> None:
    model = _load(name)
    check(model, _feeds(model), ratio, seed)
