"""External data of messages that are kept as they are: functions, training information, attributes of several tensors.

Nobody decodes their tensors, so nobody would look for the files that these name. The data is taken into the message.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import Message
from onnx import TensorProto

from .errors import ModelError
from .values import ExternalValues, lazy_values

M = TypeVar("M", bound=Message)


def external_tensors(message: Message) -> Iterator[TensorProto]:
    """Every tensor inside a message, at any depth, whose data lies in a file."""
    queue = [message]
    while queue:
        found = queue.pop()
        if isinstance(found, TensorProto):
            if found.data_location == TensorProto.EXTERNAL:
                yield found
            continue
        for field, value in found.ListFields():
            if field.message_type is not None:
                queue.extend([value] if isinstance(value, Message) else value)


def embedded(message: M, base: Path | None, room: int) -> tuple[M, list[ExternalValues]]:
    """A copy that holds the data its tensors name, and where that came from; the message itself where there is none.

    Raises ModelError as `lazy_values` does, and where the data takes more than `room` bytes.
    """
    values = [v for t in external_tensors(message) if isinstance(v := lazy_values(t, base), ExternalValues)]
    if not values:
        return message, values
    if sum(v.packed_nbytes for v in values) > room:
        raise ModelError(
            f"the external data of '{values[0].tensor.name}' and others in functions and attributes exceeds 2 GiB, "
            "which no message holds; inline the functions first"
        )
    copy = type(message)()
    copy.CopyFrom(message)
    for tensor, held in zip(external_tensors(copy), values, strict=True):
        tensor.raw_data = held.raw()[: held.packed_nbytes].tobytes()
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return copy, values
