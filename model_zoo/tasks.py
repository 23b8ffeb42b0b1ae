"""The digits task: what the zoo's own models are calibrated on and judged by, as the command line takes it.

    onnxslim opt digits_resnet.onnx -p prune,quant \\
        --data model_zoo/tasks.py:digits_data --metric model_zoo/tasks.py:digits_metric

The file is loaded by its path, without its package, so it imports nothing but NumPy. The images are 8x8 with
17 grey levels; they are enlarged to 32x32, so that a model on them has work that can be measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

Feeds = dict[str, np.ndarray]

SIZE = 32
FEEDS, BATCH = 64, 8  # 512 calibration images
TEST_BATCH = 100
_CODES = {"train": 0, "calibration": 1, "test": 2}


def _enlarge(images: np.ndarray) -> np.ndarray:
    """Bilinear, half-pixel centres: uint8 [n, 8, 8] from 0 to 16 to float32 [n, 1, 32, 32] from 0 to 1.

    The weights are multiples of 1/8 and the pixels small integers, so float32 holds every result exactly
    and the images are the same to the bit on every machine.
    """
    source = images.shape[-1]
    centre = np.clip((np.arange(SIZE) + 0.5) * source / SIZE - 0.5, 0, source - 1)
    left = np.minimum(centre.astype(int), source - 2)
    weight = np.zeros((SIZE, source), np.float32)
    weight[np.arange(SIZE), left] = 1 - (centre - left)
    weight[np.arange(SIZE), left + 1] = centre - left
    return (weight @ images.astype(np.float32) @ weight.T)[:, None] / np.float32(16)


def digits_split(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 [n, 1, 32, 32] in 0 to 1 and labels int64 [n] of "train", "calibration" or "test".

    The three parts share no image; the zoo's models were trained on "train" and "calibration" together.
    """
    with np.load(Path(__file__).with_name("digits.npz")) as stored:
        chosen = stored["split"] == _CODES[part]
        return _enlarge(stored["images"][chosen]), stored["labels"][chosen].astype(np.int64)


def digits_data() -> Iterator[Feeds]:
    """64 feeds {"image": float32 [8, 1, 32, 32]} of training images without their labels, to calibrate on."""
    images, _ = digits_split("calibration")
    for start in range(0, FEEDS * BATCH, BATCH):
        yield {"image": images[start : start + BATCH]}


def digits_metric(run: Callable[[Feeds], Feeds]) -> float:
    """Top-1 accuracy (0 to 1) of `run` on the 600 labelled test images, which no model was trained on."""
    images, labels = digits_split("test")
    starts = range(0, len(images), TEST_BATCH)
    logits = [run({"image": images[start : start + TEST_BATCH]})["logits"] for start in starts]
    return float(np.mean(np.concatenate(logits).argmax(1) == labels))
