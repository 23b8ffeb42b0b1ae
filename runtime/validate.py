"""Checking one feed against the model's inputs, before ONNX Runtime meets it: names, types, shapes, finite values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..ir.errors import DataError
from .specs import InputSpec, fits, kind_of, rename_feeds, required

Note = Callable[[str], None]


class Validator:
    """Makes raw feeds ready to run: `validator(feed, index)`.

    specs: the model's inputs. note: receives one line for every kind of thing that was adapted. extras: names that
    are no inputs are left out with a note (labels in an .npz file) where they are otherwise an error.
    """

    def __init__(self, specs: Mapping[str, InputSpec], note: Note, extras: bool = False):
        self.specs, self.note, self.extras = specs, note, extras

    def __call__(self, raw: Any, index: int) -> dict[str, Any]:
        if not isinstance(raw, Mapping):
            raise DataError(
                f"feed {index} is a {type(raw).__name__}; expected a dict of arrays by input name ({self.expected()})"
            )
        feed = self.names(dict(raw), index)
        return {name: self.value(self.specs[name], value, index) for name, value in feed.items()}

    def expected(self) -> str:
        """The model's inputs, for messages."""
        return "; ".join(str(s) for s in self.specs.values()) or "none"

    def names(self, feed: dict[str, Any], index: int) -> dict[str, Any]:
        """The feed under the model's names, in the model's order."""
        renamed = rename_feeds(feed, self.specs)
        if renamed.keys() != feed.keys():
            old, new = next(iter(feed)), next(iter(renamed))
            self.note(f'feeds call the input "{old}", the model calls it "{new}": taken as the same')
        missing = [s.name for s in required(self.specs) if renamed.get(s.name) is None]
        unknown = [n for n in renamed if n not in self.specs]
        if missing:
            has = ", ".join(f"'{n}'" for n in feed) or "nothing"
            raise DataError(f"feed {index} lacks input '{missing[0]}': it has {has}; the model takes {self.expected()}")
        if unknown and not self.extras:
            raise DataError(f"feed {index} names '{unknown[0]}', which is no input: the model takes {self.expected()}")
        for name in unknown:
            self.note(f"the data's '{name}' is no input of the model and is left out")
        return {n: renamed[n] for n in self.specs if renamed.get(n) is not None}

    def value(self, spec: InputSpec, value: Any, index: int) -> Any:
        """One input's value: converted, checked, contiguous."""
        if spec.dtype is None:
            return value
        if hasattr(value, "numpy") and not isinstance(value, np.ndarray):  # a torch or tensorflow tensor
            value = value.numpy()
        array = self.convert(spec, np.asarray(value), index)
        self.shape(spec, array, index)
        self.finite(spec, array, index)
        return array if array.flags.c_contiguous else np.ascontiguousarray(array)

    def convert(self, spec: InputSpec, array: np.ndarray, index: int) -> np.ndarray:
        """Safe conversions only: among floats, and among integers that fit."""
        want = np.dtype(spec.dtype)
        if array.dtype == want or (kind_of(want) == "O" and kind_of(array.dtype) == "O"):
            return array.astype(object) if want.kind == "O" else array
        kinds = kind_of(array.dtype) + kind_of(want)
        if kinds == "ff":
            with np.errstate(over="ignore"):  # told below
                new = array.astype(want)
            fine = np.array_equal(np.isfinite(new), np.isfinite(array))
        elif kinds == "ii":
            new = array.astype(want)
            fine = bool((new.astype(array.dtype) == array).all() and ((new < 0) == (array < 0)).all())
        else:
            fine = False
        if not fine:
            raise DataError(
                f"feed {index}, input '{spec.name}': type {array.dtype.name} does not fit, the model takes {want.name}"
            )
        self.note(f"input '{spec.name}': {array.dtype.name} converted to {want.name}")
        return new

    def shape(self, spec: InputSpec, array: np.ndarray, index: int) -> None:
        """Rank and fixed dimensions."""
        if fits(spec, array.shape):
            return
        hint = ""
        if spec.batch is not None and array.ndim == spec.rank and array.shape[0] != spec.batch:
            hint = f"; a batch of {array.shape[0]} where the model's batch is fixed at {spec.batch}"
        elif spec.rank is not None and array.ndim == spec.rank - 1:
            hint = "; is the batch axis missing?"
        raise DataError(
            f"feed {index}, input '{spec.name}': shape {list(array.shape)} does not fit, the model takes {spec}{hint}"
        )

    def finite(self, spec: InputSpec, array: np.ndarray, index: int) -> None:
        """No NaN, no infinity, and not empty where the model does not ask for it."""
        if array.size == 0 and 0 not in (spec.shape or ()):
            # Dynamic caches are legitimately empty at the first step; an empty first axis is no sample at all.
            if array.ndim and array.shape[0] == 0:
                raise DataError(f"feed {index}, input '{spec.name}' is empty: shape {list(array.shape)}")
            return
        if kind_of(array.dtype) not in "fc":
            return
        values = array if array.dtype.kind in "fc" else array.astype(np.float32)
        if not np.isfinite(values).all():
            what = "NaN" if np.isnan(values).any() else "an infinite value"
            raise DataError(f"feed {index}, input '{spec.name}' contains {what}")


__all__ = ["Validator"]
