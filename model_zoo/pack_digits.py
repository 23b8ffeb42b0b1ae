"""Makes `digits.npz` from scikit-learn's copy of the UCI digits; kept so that the file can be checked.

    python model_zoo/pack_digits.py OUT.npz

The split is stored with the images rather than drawn at load time: NumPy does not promise that a seeded
generator gives the same permutation in every version, and another one would test on images trained on.
"""

import sys
from typing import Any

import numpy as np

SEED = 1998  # the year the data set was donated
TEST_PER_CLASS = 60
CALIBRATION_PER_CLASS = 52  # 520 images, of which tasks.py feeds 512
TRAIN, CALIBRATION, TEST = 0, 1, 2


def split_of(labels: np.ndarray) -> np.ndarray:
    """uint8 [n]: TRAIN, CALIBRATION or TEST for each image, as many of each class in the latter two."""
    rng = np.random.default_rng(SEED)
    split = np.full(len(labels), TRAIN, np.uint8)
    for digit in range(10):
        rows = rng.permutation(np.flatnonzero(labels == digit))
        split[rows[:TEST_PER_CLASS]] = TEST
        split[rows[TEST_PER_CLASS : TEST_PER_CLASS + CALIBRATION_PER_CLASS]] = CALIBRATION
    return split


def main(out: str) -> None:
    """Writes images uint8 [1797, 8, 8] (0 to 16), labels uint8 [1797] and split uint8 [1797]."""
    from sklearn.datasets import load_digits  # type: ignore  # optional: only this script needs it

    digits: Any = load_digits()
    labels = digits.target.astype(np.uint8)
    np.savez_compressed(out, images=digits.images.astype(np.uint8), labels=labels, split=split_of(labels))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python model_zoo/pack_digits.py OUT.npz")
    main(sys.argv[1])
