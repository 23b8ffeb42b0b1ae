"""Twin tests over whole architectures: detectors written here, exported networks and the shared models where they are.

Exports are looked for in `$ONNXSLIM_EXPORTS` (or `../exports`), one folder an exporter: see
`benchmarks/export_transformers.py`. Without that folder only the detectors are tested.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import ROOT, SHARED
from onnxslim_opt.passes.prune import groups
from onnxslim_opt.passes.simplify import Simplify
from prune_detectors import c2f_stack, yolov5, yolov8
from prune_twin import check, run

from onnxslim_opt import ir

EXPORTS = Path(os.environ.get("ONNXSLIM_EXPORTS", ROOT.parent / "exports"))
RATIOS = (0.1, 0.5, 0.9, 1.0)
DETECTORS: dict[str, Callable[[], ir.Model]] = {"yolov5": yolov5, "yolov8": yolov8, "c2f_stack": lambda: c2f_stack(64)}
STAY = {  # shared models from which nothing may go, and why
    "dtln_1": ("meets what stays at LSTM", "graph output"),  # the units' states are inputs and outputs
    "dtln_2": ("meets what stays", "graph output", "statistics of ReduceMean"),
    "silero_vad": ("it stands in a branch",),  # everything lies in the branches of one If
}
FLAT = ("alexnet", "vgg11", "vgg16", "vgg16_bn", "vgg19_bn")  # whose classifiers take the places of one image size
LENGTHS = {"silero_vad_16k_op15": 576, "inception_v3": 96} | dict.fromkeys(FLAT, 224)  # dynamic axes that refuse 64


def loaded(path: Path) -> ir.Model:
    """As the pass gets it: simplified; with outputs before their sigmoid, and zero weights made random."""
    model = ir.load(path)
    if {t.name for t in model.inputs} > set(model.header.defaults) > set():
        model.freeze_defaults()
    Simplify().run(model)
    rng = np.random.default_rng(5)
    for tensor in model.constants().values():  # zero heads and layer scales of 1e-6 would hide everything
        shape = tuple(tensor.shape)
        if tensor.dtype == np.float32 and np.prod(shape) > 1 and np.abs(tensor.values).max() < 1e-3:
            scale = shape[-1] ** -0.5 if len(shape) == 2 else 1.0
            tensor.values = (rng.uniform(0.5, 1.5, shape) * rng.choice([-scale, scale], shape)).astype(np.float32)
    for k, tensor in enumerate(model.graph.outputs):  # a saturated sigmoid would hide every error, or blow one up
        maker = ir.edit.producer(tensor)
        if maker is not None and maker.op == "Sigmoid":
            model.graph.outputs[k] = maker.inputs[0]
            ir.edit.sweep(model)
    ir.shapes.refresh(model)
    return model


def feeds(model: ir.Model, batch: int = 2, length: int = 64) -> dict[str, np.ndarray]:
    """Random inputs; dimensions called batch, and dynamic first axes, have `batch` samples."""
    rng, found = np.random.default_rng(1), {}
    for tensor in model.inputs:
        first = [k == 0 or d in ("batch", "N") for k, d in enumerate(tensor.shape)]
        shape = [d if isinstance(d, int) else batch if first[k] else length for k, d in enumerate(tensor.shape)]
        if np.issubdtype(tensor.dtype, np.integer):
            found[tensor.name] = rng.integers(0, 30, shape).astype(tensor.dtype)
        else:
            found[tensor.name] = rng.standard_normal(shape).astype(tensor.dtype)
    return found


def judge(model: ir.Model, ratios: tuple[float, ...], norms: str, length: int = 64) -> None:
    """Every ratio equals its twin, passes the checker, and runs at other batch sizes where the original does."""
    given = feeds(model, length=length)
    found = groups(model, given, norms=norms)
    assert all(row.pinned or row.channels for row in found.describe())
    looked_at = found.flow.sizes[model.inputs[0].name][0]  # the twin's masks of batch × heads are of this batch
    given = feeds(model, batch=looked_at, length=length)
    for seed, ratio in enumerate(ratios):
        _, small, _ = check(model, given, ratio, seed, found)
        proto = ir.to_proto(small)
        onnx.checker.check_model(proto, full_check=True)
        if isinstance(model.inputs[0].shape[0], str):
            for batch in (1, 5):
                before, after = (run(p, feeds(model, batch, length)) for p in (ir.to_proto(model), proto))
                assert [x.shape for x in before] == [x.shape for x in after]


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_equal_their_twins(name: str) -> None:
    judge(DETECTORS[name](), (0.5,), "pin")


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_equal_their_twins_at_every_ratio(name: str) -> None:
    judge(DETECTORS[name](), RATIOS, "pin")


def _exports() -> list[str]:
    return sorted(str(p.relative_to(EXPORTS)) for p in EXPORTS.glob("*/*.onnx")) if EXPORTS.is_dir() else []


@pytest.mark.slow
@pytest.mark.parametrize("norms", ["pin", "allow"])
@pytest.mark.parametrize("name", _exports() or [pytest.param("-", marks=pytest.mark.skip(reason="no exports here"))])
def test_exported_networks_equal_their_twins(name: str, norms: str) -> None:
    judge(loaded(EXPORTS / name), RATIOS, norms, LENGTHS.get(Path(name).stem, 64))


@pytest.mark.slow
@pytest.mark.parametrize("path", [*sorted((SHARED / "models").glob("*.onnx"))] or [None], ids=lambda p: p and p.stem)
def test_shared_models_equal_their_twins(path: Path | None) -> None:
    if path is None:
        pytest.skip("the shared models are not here")
    model = loaded(path)
    if path.stem in STAY:
        rows = groups(model, feeds(model)).describe()
        assert rows and all(any(why in (r.pinned or "") for why in STAY[path.stem]) for r in rows)
        return
    judge(model, RATIOS, "pin", LENGTHS.get(path.stem, 64))
