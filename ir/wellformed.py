"""Whether a node is what its operator's definition allows: so many inputs, and attributes of the declared types.

ONNX Runtime refuses anything else when it loads a model; here it is refused first, in one clear line, so that no rule
ever meets a Transpose whose `perm` is a text. What the definition does not know (operators and attributes of others,
or of the runtime's own past) is left alone.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import AttributeProto

from .errors import ModelError

_DOMAINS = ("", "ai.onnx.ml")
_ELEMENTS = frozenset(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}


@dataclass(frozen=True)
class Definition:
    """How many inputs are allowed, which may not be left out, how many outputs, (type, required) by attribute."""

    inputs: range
    needed: tuple[int, ...]
    outputs: int
    attributes: dict[str, tuple[int, bool]]


@functools.lru_cache(maxsize=4096)
def _definition(op: str, version: int, domain: str) -> Definition | None:
    """What onnx says of an operator; None for an unknown one."""
    try:
        schema = onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return None
    attributes = {n: (int(a.type.value), bool(a.required)) for n, a in schema.attributes.items()}  # type: ignore[attr-defined]
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    needed = tuple(k for k, p in enumerate(schema.inputs) if p.option == single)
    return Definition(range(schema.min_input, schema.max_input + 1), needed, schema.max_output, attributes)


def check_node(node: onnx.NodeProto, name: str, version: int) -> None:
    """Raise ModelError, naming the node, unless it fits its operator's definition.

    version: of the node's domain; 0 where the model does not import it. Only the default domain and ai.onnx.ml are
    looked at.
    """
    domain = "" if node.domain == "ai.onnx" else node.domain
    if domain not in _DOMAINS:
        return
    if version < 1:
        raise ModelError(f"node '{name}' ({node.op_type}) is of {domain or 'ai.onnx'}, which the model does not import")
    found = _definition(node.op_type, version, domain)
    if found is None:
        return
    where = f"node '{name}' ({node.op_type})"
    allowed, count = found.inputs, len(node.input)
    if count not in allowed:
        bounds = f"asks for {allowed[0]}" if count < allowed[0] else f"allows {allowed[-1]}"
        raise ModelError(f"{where} has {count} inputs; opset {version} {bounds}")
    missing = [k for k in found.needed if k < count and not node.input[k]]
    if missing:
        raise ModelError(f"{where} lacks its input {missing[0]}")
    if len(node.output) > found.outputs or not node.output:
        raise ModelError(f"{where} has {len(node.output)} outputs; opset {version} allows 1 to {found.outputs}")
    given = {a.name for a in node.attribute}
    if len(given) != len(node.attribute):
        raise ModelError(f"{where} has an attribute twice")
    for attribute in node.attribute:
        _check_attribute(attribute, where, found.attributes)
    unset = [n for n, (_, required) in found.attributes.items() if required and n not in given]
    if unset:
        raise ModelError(f"{where} lacks attribute '{unset[0]}'")


def _check_attribute(attribute: AttributeProto, where: str, known: dict[str, tuple[int, bool]]) -> None:
    if not isinstance(attribute.name, str):  # bytes where they are no text
        raise ModelError(f"{where} has an attribute whose name is no text: {attribute.name!r}")
    if attribute.name not in known or attribute.ref_attr_name:
        return
    wanted = known[attribute.name][0]
    if attribute.type != wanted:
        raise ModelError(f"{where}: attribute '{attribute.name}' is {_kind(attribute.type)}, not {_kind(wanted)}")
    if attribute.name == "to" and wanted == AttributeProto.INT and attribute.i not in _ELEMENTS:
        raise ModelError(f"{where}: attribute 'to' is {attribute.i}, which is no element type")


def _kind(number: Any) -> str:
    return AttributeProto.AttributeType.Name(number) if number in AttributeProto.AttributeType.values() else str(number)
