"""Make trained ONNX models small and fast after training, and prove what it cost.

    import onnxslim_opt as slim

    result = slim.optimize("model.onnx", "prune,lowrank,quant", data=[{"image": x} for x in images])
    result.save("small.onnx")
    print(result.report.verdict, result.report.latency)

Names are loaded when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ir import Model, errors, load, save
    from .ir.errors import (
        BadInput,
        DataError,
        LimitsNotMet,
        MissingExtra,
        ModelError,
        OptionError,
        OutputError,
        PassError,
        SlimError,
    )
    from .passes.base import Context, LossyPass, Pass, PassResult, Skip
    from .passes.optimize import Result, optimize
    from .passes.pipeline import Pipeline
    from .passes.report import Report
    from .passes.target import Target
    from .runtime.feeds import Feeds

    __version__: str

_HOMES = {
    **dict.fromkeys(("Model", "errors", "load", "save"), "ir"),
    **dict.fromkeys(
        (
            "BadInput",
            "DataError",
            "LimitsNotMet",
            "MissingExtra",
            "ModelError",
            "OptionError",
            "OutputError",
            "PassError",
            "SlimError",
        ),
        "ir.errors",
    ),
    **dict.fromkeys(("Context", "LossyPass", "Pass", "PassResult", "Skip"), "passes.base"),
    **dict.fromkeys(("Result", "optimize"), "passes.optimize"),
    "Pipeline": "passes.pipeline",
    "Report": "passes.report",
    "Target": "passes.target",
    "Feeds": "runtime.feeds",
}

__all__ = [
    "BadInput",
    "Context",
    "DataError",
    "Feeds",
    "LimitsNotMet",
    "LossyPass",
    "MissingExtra",
    "Model",
    "ModelError",
    "OptionError",
    "OutputError",
    "Pass",
    "PassError",
    "PassResult",
    "Pipeline",
    "Report",
    "Result",
    "Skip",
    "SlimError",
    "Target",
    "errors",
    "load",
    "optimize",
    "save",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("onnxslim-opt")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
