"""Filling in fields of the contract with values that came from a caller."""

from collections.abc import Mapping
from typing import Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from trunkline.errors import InvalidArgumentError

_ACCEPTED: Final[Mapping[int, str]] = {
    FieldDescriptor.TYPE_UINT32: "integers in [0, 2**32)",
    FieldDescriptor.TYPE_INT32: "integers in [-2**31, 2**31)",
    FieldDescriptor.TYPE_UINT64: "integers in [0, 2**64)",
    FieldDescriptor.TYPE_FLOAT: "numbers",
    FieldDescriptor.TYPE_BOOL: "True or False",
    FieldDescriptor.TYPE_STRING: "text",
    FieldDescriptor.TYPE_MESSAGE: "a mapping with keys and values of the field's types",
}


def assign(message: Message, path: str, value: object, *, within: str = "") -> None:
    """Sets the field at a dotted path; lists and mappings are copied into repeated and map fields.

    Raises InvalidArgumentError if the field cannot hold the value; it names the path after
    `within`, which says where in the request `message` stands.
    """
    *parents, name = path.split(".")
    for parent in parents:
        message = getattr(message, parent)
    try:
        message.MergeFrom(type(message)(**{name: value}))
    except (TypeError, ValueError) as error:
        accepted = _ACCEPTED[message.DESCRIPTOR.fields_by_name[name].type]
        shown = repr(value)[:200]
        raise InvalidArgumentError(
            f"{within}{path}: got {shown}, expected {accepted}",
            reason="INVALID_ARGUMENT",
            field=within + path,
            value=shown,
            accepted=accepted,
        ) from error
