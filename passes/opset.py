"""Raising the opset: for operators that came later, or quantize/dequantize pairs per channel (from opset 13 on).

The converter is onnx's own. What it hands back is believed only after it was checked, loaded and run beside the model
as it was.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from .. import ir
from ..ir import Model
from ..runtime import Session
from ..runtime.feeds import Feeds

PER_CHANNEL = 13
TOLERANCE = 1e-5  # of the largest value of an output: kernels may sum in another order


def raised(model: Model, feeds: Feeds | None, version: int = PER_CHANNEL) -> tuple[Model | None, str]:
    """A new model at `version`, or None and the reason why there is none. Without feeds its values are not compared."""
    if model.header.functions:
        return None, "the model has functions of its own, which the opset converter does not carry over"
    try:
        proto = onnx.version_converter.convert_version(ir.to_proto(model), version)
        proto.ir_version = max(proto.ir_version, model.header.ir_version, 7)
        _unlist(proto, model)
        new = ir.from_proto(proto)
        _declare(new, model)
        new.header = replace(model.header, opsets=new.header.opsets, ir_version=new.header.ir_version)
        why = _differs(model, new, feeds) if feeds is not None else ""
    except Exception as error:  # the converter raises whatever its C++ part throws
        return None, f"raising the opset to {version} failed: {str(error).strip().splitlines()[0][:160]}"
    return (None, why) if why else (new, "")


def _declare(new: Model, model: Model) -> None:
    """Give outputs the types that the model declares: the converter writes what it infers in their place."""
    for output, declared in zip(new.graph.outputs, model.graph.outputs):
        if not isinstance(output, gs.Constant):
            output.dtype, output.shape = declared.dtype, declared.shape


def _unlist(proto: onnx.ModelProto, model: Model) -> None:
    """Take constants out of the inputs, where IR versions below 4 list them: later ones would read them as defaults."""
    constants = {c.name for c in proto.graph.initializer} - set(model.header.defaults)
    kept = [i for i in proto.graph.input if i.name not in constants]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)


def _differs(model: Model, new: Model, feeds: Feeds) -> str:
    """Why the converted model is not the same, by running both on the first feed; "" when it is."""
    feed = next(iter(feeds))
    before, after = Session(model).run(feed), Session(new).run(feed)
    for name, value in before.items():
        other = after.get(name)
        if other is None or getattr(other, "shape", None) != getattr(value, "shape", None):
            return f"the opset converter changed output '{name}'"
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size:
            gap = np.abs(value.astype(np.float64) - other.astype(np.float64)).max()
            if not gap <= TOLERANCE * max(1.0, float(np.abs(value).max())):
                return f"the opset converter changed the values of output '{name}' by up to {gap:.3g}"
    return ""
