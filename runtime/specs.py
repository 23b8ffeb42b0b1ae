"""What a model takes: names, types and shapes of its inputs, from a `Model` or a running session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from ..ir.model import Model

ORT_DTYPES: dict[str, Any] = {
    "float": np.float32,
    "double": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8e5m2": ml_dtypes.float8_e5m2,
    "float8e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "int4": ml_dtypes.int4,
    "uint4": ml_dtypes.uint4,
    "bool": np.bool_,
    "string": np.object_,
    "complex64": np.complex64,
    "complex128": np.complex128,
    **{f"{u}int{n}": getattr(np, f"{u}int{n}") for u in ("", "u") for n in (8, 16, 32, 64)},
}

Dims = tuple["int | str | None", ...]


@dataclass(frozen=True)
class InputSpec:
    """One graph input.

    dtype: numpy (or ml_dtypes) type; None for sequence, optional and map types, which are not looked into.
    shape: int, str (symbolic) or None (unknown) per dimension; None when the rank is unknown.
    optional: the model runs without it (it has a default value, or is of an optional type).
    """

    name: str
    dtype: Any
    shape: Dims | None
    optional: bool = False

    @property
    def rank(self) -> int | None:
        """Number of dimensions, None when unknown."""
        return None if self.shape is None else len(self.shape)

    @property
    def batch(self) -> int | None:
        """The first dimension, when the model fixes it."""
        first = self.shape[0] if self.shape else None
        return first if isinstance(first, int) else None

    def __str__(self) -> str:
        dims = "?" if self.shape is None else ",".join("?" if d is None else str(d) for d in self.shape)
        kind = "?" if self.dtype is None else np.dtype(self.dtype).name
        return f"{self.name}: {kind}[{dims}]"


def model_inputs(model: Model) -> dict[str, InputSpec]:
    """The inputs of a `Model`, by name, in order; those with a default value are optional."""
    specs = {}
    for tensor in model.graph.inputs:
        proto = model.header.protos.get(tensor.name)
        kind = proto.type.WhichOneof("value") if proto is not None else "tensor_type"
        shape = None if tensor.shape is None else tuple(tensor.shape)
        optional = tensor.name in model.header.defaults or kind == "optional_type"
        dtype = None if tensor.dtype is None else np.dtype(tensor.dtype)
        specs[tensor.name] = InputSpec(tensor.name, dtype, shape, optional)
    return specs


def session_inputs(session: Any) -> dict[str, InputSpec]:
    """The inputs of an `onnxruntime.InferenceSession`, by name, in order, those with a default last."""
    specs = {}
    for arg, default in (
        *((a, False) for a in session.get_inputs()),
        *((a, True) for a in session.get_overridable_initializers()),
    ):
        dtype = dtype_of(arg.type)
        shape = tuple(arg.shape) if dtype is not None else None
        specs[arg.name] = InputSpec(arg.name, dtype, shape, default or arg.type.startswith("optional("))
    return specs


def dtype_of(kind: str) -> Any:
    """The numpy (or ml_dtypes) type of what ONNX Runtime calls "tensor(float)"; None for what is no tensor."""
    found = ORT_DTYPES.get(kind[len("tensor(") : -1]) if kind.startswith("tensor(") else None
    return None if found is None else np.dtype(found)


def required(specs: Mapping[str, InputSpec]) -> list[InputSpec]:
    """The inputs that every feed must have."""
    return [s for s in specs.values() if not s.optional]


def fits(spec: InputSpec, shape: Sequence[int]) -> bool:
    """Whether an array of this shape may be fed: equal rank, and equal wherever the model fixes a dimension."""
    if spec.shape is None:
        return True
    return len(shape) == len(spec.shape) and all(not isinstance(d, int) or d == n for d, n in zip(spec.shape, shape))


def kind_of(dtype: Any) -> str:
    """'f', 'i', 'b', 'c' or 'O': the class of a type within which values may be converted."""
    dtype = np.dtype(dtype)
    if dtype.name.startswith(("bfloat", "float")):
        return "f"
    if dtype.name.startswith(("int", "uint")):
        return "i"
    return {"U": "O", "S": "O"}.get(dtype.kind, dtype.kind)


def rename_feeds(feeds: Mapping[str, Any], inputs: Mapping[str, InputSpec]) -> dict[str, Any]:
    """The feeds under the model's own name, when model and feeds have exactly one input and only the names differ.

    Data and metric scripts are often written for another export of the same network. Rank, fixed dimensions and
    the kind of type must fit; otherwise the feeds come back as they are (and validation says what is wrong).
    """
    needed = required(inputs)
    if len(feeds) != 1 or len(needed) != 1 or next(iter(feeds)) in inputs:
        return dict(feeds)
    spec, value = needed[0], next(iter(feeds.values()))
    same_kind = spec.dtype is None or kind_of(np.asarray(value).dtype) == kind_of(spec.dtype)
    return {spec.name: value} if same_kind and fits(spec, np.shape(value)) else dict(feeds)


def halved(feeds: Mapping[str, Any], inputs: Mapping[str, InputSpec]) -> dict[str, Any]:
    """The feeds with float32 arrays as fp16 or bf16 where an input takes that: such a model runs on float data."""
    found = dict(feeds)
    for name, value in feeds.items():
        wanted = inputs[name].dtype if name in inputs else None
        if wanted in _HALVES and isinstance(value, np.ndarray) and value.dtype == np.float32:
            found[name] = value.astype(wanted)
    return found


_HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))

__all__ = ["InputSpec", "fits", "halved", "kind_of", "model_inputs", "rename_feeds", "required", "session_inputs"]
