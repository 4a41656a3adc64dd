"""Embedded instances: CIM-XML (DSP0201), as CimSerializer, and methods, write and read it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from hyperv.dialect.values import CimInstance, PSEnum, PSObject
from hyperv.dialect.world import DotNetType, PSError
from hyperv.world.schema import CimClass, typed

_SPACE = "Microsoft.Management.Infrastructure.Serialization"


class MalformedError(Exception):
    """Text that is no embedded instance of the class it claims."""


@dataclass(frozen=True)
class Embedded:
    """An embedded instance that a script sent: its class and the values it sets."""

    class_name: str
    values: Mapping[str, Any]


def rendered(kind: CimClass, values: Mapping[str, Any]) -> str:
    """The text of an instance; properties without a value have no VALUE."""
    root = ElementTree.Element("INSTANCE", CLASSNAME=kind.name)
    for name, type_name in kind.properties.items():
        if type_name.endswith("REF") or type_name == "object":
            continue
        is_array = type_name.endswith("[]")
        tag = "PROPERTY.ARRAY" if is_array else "PROPERTY"
        element = ElementTree.SubElement(root, tag, NAME=name, TYPE=type_name.removesuffix("[]"))
        value = values.get(name)
        if value is None:
            continue
        if is_array:
            array = ElementTree.SubElement(element, "VALUE.ARRAY")
            for item in value:
                ElementTree.SubElement(array, "VALUE").text = _text(item)
        else:
            ElementTree.SubElement(element, "VALUE").text = _text(value)
    return ElementTree.tostring(root, encoding="unicode")


def parsed(text: str, classes: Mapping[str, CimClass], wanted: str) -> Embedded:
    """What a script sent; MalformedError unless it is an instance of `wanted` whose properties
    and types are the class's."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as exc:
        raise MalformedError(f"not XML: {exc}") from exc
    kind = classes.get(root.get("CLASSNAME", "").lower())
    if root.tag != "INSTANCE" or kind is None or not kind.is_a(wanted):
        raise MalformedError(f"{root.tag} {root.get('CLASSNAME')} is no {wanted}")
    values: dict[str, Any] = {}
    for element in root:
        if element.tag not in ("PROPERTY", "PROPERTY.ARRAY"):
            continue
        name = kind.property_named(element.get("NAME", ""))
        if name is None:
            raise MalformedError(f"{kind.name} has no {element.get('NAME')}")
        type_name = kind.properties[name]
        written = element.get("TYPE", "") + ("[]" if element.tag == "PROPERTY.ARRAY" else "")
        if written != type_name:
            raise MalformedError(f"{name} is {type_name}, not {written}")
        if len(element):
            values[name] = _value(element, type_name)
    return Embedded(kind.name, values)


def _value(element: ElementTree.Element, type_name: str) -> Any:
    one = type_name.removesuffix("[]")
    texts = [value.text or "" for value in element.iter("VALUE")]
    items = [typed(one, _parsed_scalar(one, text)) for text in texts]
    return items if type_name.endswith("[]") else items[0]


def _parsed_scalar(type_name: str, text: str) -> Any:
    if type_name == "string":
        return text
    if type_name == "boolean":
        return text.lower() == "true"
    if type_name == "datetime":
        return _parsed_time(text)
    return int(text)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y%m%d%H%M%S.%f+000")
    if isinstance(value, timedelta):
        hours, rest = divmod(value.seconds, 3600)
        return (
            f"{value.days:08d}{hours:02d}{rest // 60:02d}{rest % 60:02d}"
            f".{value.microseconds:06d}:000"
        )
    return str(value)


def _parsed_time(text: str) -> datetime | timedelta:
    if text.endswith(":000"):
        return timedelta(
            days=int(text[:8]),
            hours=int(text[8:10]),
            minutes=int(text[10:12]),
            seconds=int(text[12:14]),
        )
    return datetime.strptime(text[:21], "%Y%m%d%H%M%S.%f").replace(tzinfo=UTC)


def serializer_types(classes: Mapping[str, CimClass]) -> dict[str, DotNetType]:
    """CimSerializer and its options, as .NET has them."""
    none = PSEnum(f"{_SPACE}.InstanceSerializationOptions", "None", 0)

    def serialize(instance: Any, options: Any) -> bytes:
        if not isinstance(instance, CimInstance) or options != none:
            raise PSError(
                'Cannot find an overload for "Serialize" and the argument count: "2".',
                "NotSpecified",
                "MethodCountCouldNotFindBest",
                exception_type="System.Management.Automation.MethodException",
            )
        kind = classes[instance.class_name.lower()]
        return rendered(kind, dict(instance.properties.items())).encode("utf-16-le")

    name = f"{_SPACE}.CimSerializer"
    made = DotNetType(
        name,
        statics={
            "Create": lambda: PSObject((name, "System.Object"), methods={"Serialize": serialize})
        },
    )
    options = DotNetType(f"{_SPACE}.InstanceSerializationOptions", constants={"None": none})
    return {name: made, options.name: options}
