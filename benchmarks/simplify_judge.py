"""The judge of `simplify.py`: prepares models with their inputs, and compares results with ONNX Runtime alone."""

from __future__ import annotations

import importlib.util
import itertools
import pickle
import random
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

SHARED = (Path(__file__).resolve().parents[2] / "shared").resolve()


def answer(task: str, **question: Any) -> dict[str, Any]:
    """Prepare a case, run a reference, judge a result, or time."""
    return TASKS[task](**{k: Path(v) if k in ("source", "folder", "target") else v for k, v in question.items()})


def session(path: Path, optimize: bool = False) -> ort.InferenceSession:
    """A quiet session on one thread; without ONNX Runtime's own rewriting unless asked."""
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(s: ort.InferenceSession, feeds: dict[str, Any]) -> list[Any]:
    """All outputs; feeds of inputs that are there."""
    have = {i.name for i in (*s.get_inputs(), *s.get_overridable_initializers())}
    return s.run(None, {k: v for k, v in feeds.items() if k in have})  # type: ignore[no-any-return]


# -- cases of the backend suite


def prepare(source: Path, variant: str, folder: Path) -> dict[str, Any]:
    """Write the variant of a case with its feeds and outputs; "ok" when ONNX Runtime reproduces the case."""
    proto = onnx.load(source)
    data = source.parent / "test_data_set_0"
    constants = {t.name for t in proto.graph.initializer}
    every = len(list(data.glob("input_*.pb"))) >= len(proto.graph.input)
    listed = [i for i in proto.graph.input if every or i.name not in constants]
    feeds = {i.name: read(data / f"input_{k}.pb", i) for k, i in enumerate(listed)}
    expected = [read(data / f"output_{k}.pb", o) for k, o in enumerate(proto.graph.output)]
    if variant != "A":
        freeze(proto, feeds, keep=1 if variant == "B" else 0)
    onnx.save(proto, folder / "original.onnx")
    s = session(folder / "original.onnx")
    outputs = run(s, feeds)
    if not all(same(a, b) for a, b in zip(outputs, run(s, feeds))):
        return {"outcome": "not deterministic"}
    if not all(b is None or same(a, b) for a, b in zip(outputs, expected)):
        return {"outcome": "not reproduced"}
    (folder / "case.pickle").write_bytes(pickle.dumps((feeds, outputs)))
    return {"outcome": "ok", "nodes": count(proto.graph)}


def read(path: Path, info: onnx.ValueInfoProto) -> Any:
    """An input or output of a case; None when there is no file."""
    if not path.exists():
        return None
    kinds = {"sequence_type": onnx.SequenceProto, "optional_type": onnx.OptionalProto}
    convert = {"sequence_type": numpy_helper.to_list, "optional_type": numpy_helper.to_optional}
    kind = info.type.WhichOneof("value")
    proto = kinds.get(kind, onnx.TensorProto)()
    proto.ParseFromString(path.read_bytes())
    return convert.get(kind, numpy_helper.to_array)(proto)


def freeze(proto: onnx.ModelProto, feeds: dict[str, Any], keep: int) -> None:
    """Tensor inputs after the first `keep` become initializers."""
    constants = {t.name for t in proto.graph.initializer}
    inputs = list(proto.graph.input)
    del proto.graph.input[:]
    for k, info in enumerate(inputs):
        if info.name in constants or k < keep or not isinstance(feeds.get(info.name), np.ndarray):
            proto.graph.input.append(info)
        else:
            proto.graph.initializer.append(numpy_helper.from_array(feeds.pop(info.name), info.name))
    proto.ir_version = max(proto.ir_version, 4)


def same(a: Any, b: Any) -> bool:
    """Equal in kind, type and shape, floats to 1e-3 relative and 1e-5 absolute."""
    if isinstance(a, (list, tuple)) or isinstance(b, (list, tuple)):
        both = isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b)
        return both and all(same(x, y) for x, y in zip(a, b))
    if a is None or b is None:
        return a is b
    x, y = np.asarray(a), np.asarray(b)
    if x.shape != y.shape or (x.dtype != y.dtype and x.dtype.kind not in "OSU"):
        return False
    if x.dtype.kind in "OSU":
        return bool((x.astype(str) == y.astype(str)).all())
    if x.dtype.kind in "biu":
        return bool((x == y).all())
    wide = np.complex128 if x.dtype.kind == "c" else np.float64
    return bool(np.allclose(x.astype(wide), y.astype(wide), rtol=1e-3, atol=1e-5, equal_nan=True))


# -- whole models


def reference(source: Path, folder: Path) -> dict[str, Any]:
    """The outputs of a model on two feeds, and how far ONNX Runtime's own optimiser moves them."""
    original = folder / "original.onnx"
    original.unlink(missing_ok=True)
    original.symlink_to(source)
    feeds = model_feeds(source)
    s = session(original)
    outputs = [run(s, f) for f in feeds]
    fast = session(original, optimize=True)
    noise = max(difference(a, run(fast, f)) for a, f in zip(outputs, feeds))
    (folder / "case.pickle").write_bytes(pickle.dumps((feeds, outputs)))
    nodes = count(onnx.load(original, load_external_data=False).graph)
    return {"outcome": "ok", "nodes": nodes, "bytes": source.stat().st_size, "noise": noise}


def model_feeds(source: Path) -> list[dict[str, Any]]:
    """Two feeds: real ones for the shared models, random ones otherwise."""
    names = [i.name for i in session(source).get_inputs()]
    tasks = SHARED / "tasks.py"
    if source.parent == SHARED / "models" and tasks.exists():
        spec = importlib.util.spec_from_file_location("tasks", tasks)
        module: Any = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        spec.loader.exec_module(module)  # type: ignore[union-attr]
        real = itertools.islice(getattr(module, f"{source.stem}_data")(), 2)
        return [dict(zip(names, f.values())) if len(names) == 1 else f for f in real]
    from onnxslim_opt.runtime import feeds
    from onnxslim_opt.runtime.sources import DataOptions

    from onnxslim_opt import ir

    model = ir.load(source)
    if model.header.only_defaults:
        model.freeze_defaults()
    return list(itertools.islice(feeds.resolve(None, model, DataOptions(samples=2)), 2))


def difference(a: list[Any], b: list[Any]) -> float:
    """The largest difference of any float output, relative to the largest value of that output."""
    worst = 0.0
    for x, y in zip(a, b):
        if isinstance(x, list):
            worst = max(worst, difference(x, y))
        elif x.shape != y.shape or x.dtype != y.dtype or (x.dtype.kind != "f" and not np.array_equal(x, y)):
            return float("inf")
        elif x.dtype.kind == "f" and x.size:
            gap = np.abs(x.astype(np.float64) - y)
            worst = max(worst, float(np.nanmax(gap)) / max(float(np.nanmax(np.abs(x))), 1e-12))
    return worst


# -- both


def count(graph: onnx.GraphProto) -> int:
    """Nodes of a graph and of all its subgraphs; a Constant is storage, not a node."""
    inner = [a.g for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH]
    return sum(n.op_type != "Constant" for n in graph.node) + sum(map(count, inner))


def interface(path: Path) -> Any:
    """Names, types and symbolic shapes of what a caller must give and gets."""
    graph = onnx.load(path, load_external_data=False).graph
    constants = {t.name for t in graph.initializer}

    def plain(info: onnx.ValueInfoProto) -> Any:
        shape = info.type.tensor_type.shape.dim
        return info.name, info.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in shape]

    return [plain(i) for i in graph.input if i.name not in constants], [plain(o) for o in graph.output]


def judge(folder: Path, target: Path) -> dict[str, Any]:
    """The outcome of one result: ok, wrong, interface, refused."""
    feeds, expected = pickle.loads((folder / "case.pickle").read_bytes())
    graph = onnx.load(target, load_external_data=False).graph
    found = {"nodes": count(graph), "size": target.stat().st_size}
    before, after = interface(folder / "original.onnx"), interface(target)
    if [i[0] for i in before[1]] != [o[0] for o in after[1]] or any(i not in before[0] for i in after[0]):
        return found | {"outcome": "interface"}
    found["renamed"] = before != after
    try:
        s = session(target)
    except Exception as error:
        return found | {"outcome": "refused", "error": str(error)[:200]}
    if isinstance(feeds, list):
        gap = max(difference(a, run(s, f)) for a, f in zip(expected, feeds))
        return found | {"outcome": "ok" if gap < 1e-3 else "wrong", "difference": gap}
    return found | {"outcome": "ok" if same(expected, run(s, feeds)) else "wrong"}


def latency(folder: Path, seconds: float) -> dict[str, Any]:
    """Median ratio original / tool of the process's CPU time, in turns of random order."""
    feeds, _ = pickle.loads((folder / "case.pickle").read_bytes())
    tools = ("original", "onnxslim-opt", "onnxslim-opt-contrib", "onnxsim")
    names = [n for n in tools if (folder / f"{n}.onnx").exists()]
    sessions = {n: session(folder / f"{n}.onnx", optimize=True) for n in names}
    start = time.process_time()
    for s in sessions.values():
        run(s, feeds[0])
        run(s, feeds[0])
    repeat = max(1, int(0.01 * 2 * len(sessions) / max(time.process_time() - start, 1e-6)))
    taken: dict[str, list[float]] = {n: [] for n in names}
    order, end = random.Random(0), time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken["original"]) < 5:
        for name in order.sample(names, len(names)):
            begin = time.process_time()
            for _ in range(repeat):
                run(sessions[name], feeds[0])
            taken[name].append(time.process_time() - begin)
    ratios = {n: statistics.median(a / b for a, b in zip(taken["original"], taken[n])) for n in names[1:]}
    halves = {f"{n}_spread": spread(taken["original"], taken[n]) for n in names[1:]}
    return {"outcome": "ok", "pairs": len(taken["original"]), **ratios, **halves}


def spread(a: list[float], b: list[float]) -> list[float]:
    """Quartiles of the pairwise ratios."""
    ratios = sorted(x / y for x, y in zip(a, b))
    return [round(ratios[len(ratios) // 4], 3), round(ratios[3 * len(ratios) // 4], 3)]


TASKS = {"prepare": prepare, "reference": reference, "judge": judge, "latency": latency}
