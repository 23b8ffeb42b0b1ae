"""Runs `cases/<pass>/*.onnxtxt`: a model before, a pipeline, the model after, in ONNX text that a human reads.

    // what is shown, and why it is right
    --- before
    g (float[N,3] x) => (float[N,3] y) { y = Identity(x) }
    --- pipeline clean
    --- after
    ...

`after` is compared up to the names of inner tensors: the two graphs are walked from their outputs. Both `before` and
the result are then run on the same random inputs. A `--- opset 13` line sets the operator set (17 otherwise).
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import suite
from onnxslim_opt.ir import order, shapes, text, verify
from onnxslim_opt.passes.clean import Clean
from onnxslim_opt.passes.fold import Fold
from onnxslim_opt.passes.fuse import Fuse
from onnxslim_opt.passes.simplify import Simplify

from onnxslim_opt import ir

FOLDER = Path(__file__).resolve().parent / "cases"
PASSES = {p.name: p for p in (Clean, Fold, Fuse, Simplify)}
PASSES |= {f"fuse:{option}": functools.partial(Fuse, **{option: True}) for option in ("compact", "contrib")}
_TYPES = {"float": np.float32, "double": np.float64, "int64": np.int64, "int32": np.int32, "bool": np.bool_}


def found(name: str) -> list[Path]:
    """The case files of one pass."""
    return sorted((FOLDER / name).glob("*.onnxtxt"))


def sections(path: Path) -> dict[str, str]:
    """The parts of a case file by their first word; single-line ones hold the rest of that line."""
    parts: dict[str, str] = {}
    for part in re.split(r"^--- ", path.read_text(), flags=re.M)[1:]:
        head, _, body = part.partition("\n")
        word, _, rest = head.partition(" ")
        parts[word] = rest.strip() if rest else body
    return parts


def parse(source: str, opset: str) -> ir.Model:
    """A model from the text of a case, with the given opset."""
    own = ', "com.microsoft" : 1' if "com.microsoft" in source else ""
    return text.parse(f'<ir_version: 10, opset_import: ["" : {opset}{own}]>\n{source.strip()}')


def apply(model: ir.Model, pipeline: str) -> ir.Model:
    """Run the passes named in `pipeline`, as the pipeline does: shapes before, order after."""
    for name in pipeline.split(","):
        shapes.refresh(model)
        PASSES[name.strip()]().run(model)
        order.sort(model)
        verify.check(model)
    return model


def random_feeds(session: Any, seed: int = 0) -> dict[str, Any]:
    """Random inputs; every symbolic size is 3."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for info in session.get_inputs():
        size = [d if isinstance(d, int) else 3 for d in info.shape]
        kind = _TYPES[info.type[len("tensor(") : -1]]
        feeds[info.name] = np.asarray(rng.standard_normal(size) * 2).astype(kind)
    return feeds


def difference(a: ir.Model, b: ir.Model) -> str | None:
    """Where two models differ, names of inner tensors aside; None when nowhere."""
    if [t.name for t in a.outputs] != [t.name for t in b.outputs]:
        return "outputs"
    if len(list(a.nodes())) != len(list(b.nodes())):
        return f"{len(list(a.nodes()))} nodes, not {len(list(b.nodes()))}"
    return next((d for d in (_tensor(x, y, {}) for x, y in zip(a.outputs, b.outputs)) if d), None)


def _tensor(x: Any, y: Any, seen: dict[int, Any]) -> str | None:
    if id(x) in seen:
        return None if seen[id(x)] is y else f"'{x.name}' is shared differently"
    seen[id(x)] = y
    if isinstance(x, gs.Constant) or isinstance(y, gs.Constant):
        return None if _equal(x, y) else f"constant '{x.name}'"
    if not x.inputs or not y.inputs:
        return None if x.name == y.name and not x.inputs and not y.inputs else f"'{x.name}' or '{y.name}'"
    return _node(x.inputs[0], y.inputs[0], seen)


def _equal(x: Any, y: Any) -> bool:
    if not (isinstance(x, gs.Constant) and isinstance(y, gs.Constant)) or x.dtype != y.dtype or x.shape != y.shape:
        return False
    if np.dtype(x.dtype).kind == "f":
        return bool(np.allclose(x.values, y.values, rtol=1e-5, atol=1e-6))
    return bool(np.array_equal(x.values, y.values))


def _node(m: gs.Node, n: gs.Node, seen: dict[int, Any]) -> str | None:
    if m.op != n.op or len(m.inputs) != len(n.inputs) or len(m.outputs) != len(n.outputs):
        return f"node '{m.name}' ({m.op}) is not '{n.name}' ({n.op})"
    if set(m.attrs) != set(n.attrs) or any(not _attribute(m.attrs[k], n.attrs[k]) for k in m.attrs):
        return f"attributes of '{m.name}' ({m.op}): {m.attrs}, not {n.attrs}"
    return next((d for d in (_tensor(x, y, seen) for x, y in zip(m.inputs, n.inputs)) if d), None)


def _attribute(a: Any, b: Any) -> bool:
    if isinstance(a, gs.Graph):
        return isinstance(b, gs.Graph) and [n.op for n in a.nodes] == [n.op for n in b.nodes]
    if isinstance(a, gs.Constant):
        return isinstance(b, gs.Constant) and _equal(a, b)
    return bool(np.allclose(a, b)) if isinstance(a, float) else a == b


def check(path: Path) -> None:
    """Run one case file: structure first, then numbers."""
    parts = sections(path)
    opset = parts.get("opset", "17")
    before = ir.to_bytes(parse(parts["before"], opset))
    result = apply(parse(parts["before"], opset), parts["pipeline"])
    if "after" in parts:
        wrong = difference(result, parse(parts["after"], opset))
        if wrong:
            raise AssertionError(f"{path.name}: {wrong}; got\n{text.show(result)}")
    declared = [list(m.graph.output) for m in (onnx.ModelProto.FromString(before), ir.to_proto(result))]
    assert declared[0] == declared[1], f"{path.name}: the declared outputs changed"
    one, two = suite.session(before), suite.session(ir.to_bytes(result))
    assert suite.interface(one) == suite.interface(two), f"{path.name}: the interface changed"
    for seed in (0, 1):
        feeds = random_feeds(one, seed)
        for x, y in zip(one.run(None, feeds), two.run(None, feeds)):
            assert x.shape == y.shape and x.dtype == y.dtype, path.name
            scale = float(np.abs(x[np.isfinite(x)]).max(initial=1e-3)) if x.dtype.kind == "f" else 0.0
            np.testing.assert_allclose(y, x, rtol=1e-5 if scale else 0, atol=1e-5 * scale, err_msg=path.name)
