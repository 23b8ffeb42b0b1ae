"""Trains the zoo's own models on the digits and exports them to ONNX; the files in this folder came from it.

    python model_zoo/train.py [NAME ...] --out DIR

Needs PyTorch, onnx and ONNX Runtime, about six minutes of two CPU cores, and no GPU. A run is repeatable by
its seed on one machine with one version of PyTorch; elsewhere the weights come out a little different.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
OPSET = 17
SEED = 0
BATCH = 32
THREADS = 2
# name: (epochs, peak learning rate, weight decay); the transformer has no locality built in and needs longer
SCHEDULE = {
    "digits_resnet": (30, 3e-3, 0.02),
    "digits_mobilenet": (40, 3e-3, 0.02),
    "digits_vit": (90, 1e-3, 0.05),
}
LABEL_SMOOTHING = 0.05
WARM_UP = 0.1  # share of the steps


def _sibling(name: str) -> Any:
    """A module of this folder, loaded by its path, so that the script needs no installed package."""
    spec = importlib.util.spec_from_file_location(f"_zoo_{name}", HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _training_set(tasks: Any) -> tuple[np.ndarray, np.ndarray]:
    """All images but the test's: float32 [1197, 1, 32, 32] and labels int64 [1197]."""
    parts = [tasks.digits_split(part) for part in ("train", "calibration")]
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def _augment(torch: Any, x: Any) -> Any:
    """Random rotation, scale, shear, shift, contrast and noise for each of a batch [n, 1, 32, 32]."""
    n = len(x)

    def draw(spread: float) -> Any:
        return (torch.rand(n) * 2 - 1) * spread

    angle, scale, shear = draw(math.radians(12)), 1 + draw(0.1), draw(0.1)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = [torch.stack([cos, shear - sin, draw(0.15)], 1), torch.stack([sin, cos, draw(0.15)], 1)]
    grid = torch.nn.functional.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(x, grid, align_corners=False)
    contrast = 1 + draw(0.15)[:, None, None, None]
    return (moved * contrast + 0.05 * torch.randn(x.shape)).clamp(0, 1)


def _batches(torch: Any, x: Any, y: Any) -> Iterator[tuple[Any, Any]]:
    """One epoch in random order; the incomplete last batch is left out."""
    order = torch.randperm(len(x))
    for start in range(0, len(x) - BATCH + 1, BATCH):
        rows = order[start : start + BATCH]
        yield _augment(torch, x[rows]), y[rows]


def _rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine to zero: factor on the peak learning rate."""
    warm = WARM_UP * steps
    return step / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def train(name: str, images: np.ndarray, labels: np.ndarray, seed: int = SEED) -> Any:
    """A trained network of that name, in evaluation mode.

    images: float32 [n, 1, 32, 32]; labels: int64 [n]. The weights of the last epoch are taken: nothing is
    chosen by its test accuracy.
    """
    import torch  # type: ignore  # optional: only training needs it

    torch.manual_seed(seed)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    net = _sibling("networks").NETWORKS[name]()
    epochs, peak, decay = SCHEDULE[name]
    steps = epochs * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), peak, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step + 1, steps + 1))
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=LABEL_SMOOTHING)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    for epoch in range(epochs):
        total = 0.0
        for batch, target in _batches(torch, x, y):
            optimizer.zero_grad()
            loss = loss_of(net(batch), target)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        print(f"{name}: epoch {epoch + 1}/{epochs}, loss {total * epochs / steps:.3f}", file=sys.stderr)
    return net.eval()


def export(net: Any, path: Path) -> None:
    """Writes the network to ONNX as users' files look: BatchNorms separate, nothing folded, batch dynamic."""
    import onnx
    import torch  # type: ignore  # optional: only training needs it

    torch.onnx.export(
        net,
        (torch.zeros(2, 1, 32, 32),),
        str(path),
        opset_version=OPSET,
        dynamo=False,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,  # EVAL would fuse the BatchNorms
    )
    model = onnx.load(str(path))
    onnx.helper.set_model_props(
        model,
        {
            "task": "digits",
            "data": "Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak), UCI, CC BY 4.0",
        },
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def accuracy(path: Path) -> float:
    """Top-1 of the file on the test images, by ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: np.asarray(value) for name, value in zip(names, session.run(names, feeds))}

    return _sibling("tasks").digits_metric(run)


def _require(modules: tuple[str, ...]) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f"training needs {', '.join(missing)}: pip install {' '.join(missing)}")


def main(argv: list[str] | None = None) -> None:
    """The command: trains, exports and prints one line for each model."""
    parser = argparse.ArgumentParser(description="Train the zoo's own models and export them to ONNX.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SCHEDULE)}; all by default")
    parser.add_argument("--out", type=Path, required=True, help="folder for the .onnx files")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args(argv)
    unknown = [name for name in options.names if name not in SCHEDULE]
    if unknown:
        parser.error(f"no network {', '.join(unknown)}; there are {', '.join(SCHEDULE)}")
    _require(("torch", "onnx", "onnxruntime"))
    options.out.mkdir(parents=True, exist_ok=True)
    images, labels = _training_set(_sibling("tasks"))
    for name in options.names or SCHEDULE:
        started = time.perf_counter()
        path = options.out / f"{name}.onnx"
        export(train(name, images, labels, options.seed), path)
        size, seconds = path.stat().st_size, time.perf_counter() - started
        print(f"{name}: test accuracy {accuracy(path):.4f}, {size} bytes, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
