"""Loads and simplifies damaged models in a process of its own, which may die or hang without taking the tests along.

python fuzzing.py FIRST END       one line a mutant: its number, the stage it reached, and what came of it
"""

from __future__ import annotations

import collections
import os
import select
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TIMEOUT = 10.0  # seconds for one mutant
START = 120.0  # seconds for the imports and seeds, on a busy machine
MEMORY = 6 << 30  # bytes of address space: damaged sizes must end in an error, not in the machine's swap
ELEMENTS = 1 << 20  # of an input: above, the model is simplified and not run
# What may come of a mutant. "runtime": ONNX Runtime dies of the mutant itself, as it came.
FINE = ("refused", "simplified", "same", "runtime")


def run(first: int, end: int) -> dict[int, str]:
    """What came of each mutant. Those that are not `FINE` are bugs: a crash, a hang, a foreign error, wrong values."""
    found: dict[int, str] = {}
    while first < end:
        first = _one_process(first, end, found)
    return found


def _one_process(first: int, end: int, found: dict[int, str]) -> int:
    """Work through mutants until all are done or the process dies; returns the next one."""
    command = [sys.executable, str(Path(__file__)), str(first), str(end)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    at, stage = first, "start"
    for line in _lines(process):
        number, stage, rest = line.split(" ", 2)
        at = int(number)
        if stage == "end":
            found[at] = rest
            at, stage = at + 1, "start"
    if process.poll() is None:
        process.kill()
        found[at] = "runtime" if stage == "runtime" else f"hangs in {stage}"
    elif process.wait() and at < end:
        found[at] = "runtime" if stage == "runtime" else f"dies in {stage}, exit code {process.returncode}"
    process.wait()
    return at + 1 if at < end else end


def _lines(process: Any) -> Iterator[str]:
    """Lines of the process's output; ends when it closes, or says nothing for too long."""
    rest, limit = b"", START
    while select.select([process.stdout], [], [], limit)[0]:
        data, limit = os.read(process.stdout.fileno(), 1 << 16), TIMEOUT
        if not data:
            process.wait()
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from (line.decode() for line in lines)


def summary(found: dict[int, str]) -> str:
    """Counts by outcome, and the bugs one by one."""
    counts = collections.Counter(w if w in FINE else "bug" for w in found.values())
    bugs = [f"{number}: {what}" for number, what in sorted(found.items()) if what not in FINE]
    return "\n".join([str(dict(counts)), *bugs])


def _work(first: int, end: int) -> None:
    import resource
    import warnings

    import mutations
    import onnxruntime

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    onnxruntime.set_default_logger_severity(4)
    warnings.simplefilter("ignore")
    mutations.seeds()
    for number in range(first, end):
        try:
            what = _outcome(mutations.mutant(number), number)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            text = " ".join(str(error).split())[:120]
            what = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {text}"
        _say(number, "end", what)


def _say(number: int, stage: str, text: str = "") -> None:
    print(number, stage, text, flush=True)


def _outcome(data: bytes, number: int) -> str:
    from onnxslim_opt.ir import verify
    from onnxslim_opt.ir.errors import SlimError
    from onnxslim_opt.passes.simplify import Simplify

    from onnxslim_opt import ir

    try:
        _say(number, "load")
        model = ir.from_bytes(data)
        _say(number, "simplify")
        Simplify().run(model)
        verify.check(model)
        result = ir.to_bytes(model)
    except SlimError:
        return "refused"
    _say(number, "runtime")
    session, feeds, expected = _reference(data)
    if not expected:
        return "simplified"
    _say(number, "result")
    return _compare(session, result, feeds, expected)


def _reference(data: bytes) -> tuple[Any, dict[str, Any], list[Any]]:
    """A session on the mutant, random feeds and its outputs; no outputs where it cannot be run, or not twice alike."""
    import casefiles
    import numpy as np
    import suite

    try:
        session = suite.session(data)
        sizes = [[d if isinstance(d, int) else 3 for d in i.shape] for i in session.get_inputs()]
        if any(min(s, default=1) < 0 or np.prod([float(d) for d in s]) > ELEMENTS for s in sizes):
            return session, {}, []
        feeds = casefiles.random_feeds(session)
        expected = session.run(None, feeds)
        return session, feeds, expected if suite.same(expected, session.run(None, feeds)) else []
    except Exception:  # whatever the runtime has against a damaged model
        return None, {}, []


def _compare(session: Any, result: bytes, feeds: dict[str, Any], expected: list[Any]) -> str:
    import suite

    after = suite.session(result)
    if suite.interface(session)[0] != suite.interface(after)[0]:
        return "the inputs changed"
    if [o.name for o in session.get_outputs()] != [o.name for o in after.get_outputs()]:
        return "the outputs changed"
    got = after.run(None, feeds)
    return next((w for x, y in zip(expected, got) if (w := _differs(x, y))), "same")


def _differs(x: Any, y: Any) -> str:
    import numpy as np
    import suite

    if not isinstance(x, np.ndarray) or x.dtype.kind != "f":
        return "" if suite.same(x, y) else "values"
    if x.shape != y.shape or x.dtype != y.dtype:
        return f"{x.dtype}{x.shape} became {y.dtype}{y.shape}"
    wide, other = x.astype(np.float64), y.astype(np.float64)
    scale = np.abs(wide[np.isfinite(wide)]).max(initial=0.0)
    if scale > 1e6:  # damaged weights: what is added to them is below their rounding
        return ""
    rough = 1e-2 if x.dtype == np.float16 else 1e-4
    close = np.allclose(other, wide, rtol=rough, atol=rough * scale, equal_nan=True)
    return "" if close else "values"


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _work(int(sys.argv[1]), int(sys.argv[2]))
