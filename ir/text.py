"""ONNX text in and out, for tests: what a human reads is what is compared."""

from __future__ import annotations

import onnx
import onnx.parser
import onnx.printer

from .errors import ModelError
from .exporting import to_proto
from .importing import from_proto
from .model import Model

_HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'


def parse(source: str) -> Model:
    """A model from ONNX text; a header of IR version 8 and opset 17 is added where there is none.

    Raises ModelError with the parser's own message.
    """
    source = source.strip()
    if not source.startswith("<"):
        source = _HEADER + source
    try:
        return from_proto(onnx.parser.parse_model(source))
    except onnx.parser.ParseError as error:
        raise ModelError(f"ONNX text cannot be parsed: {error}") from error


def show(model: Model) -> str:
    """The model as ONNX text (inner shapes left out)."""
    return onnx.printer.to_text(to_proto(model, shapes=False))
