"""Embedded instances: the CIM-XML texts (DSP0201) that WMI methods give, parsed here and not in
scripts.

    <INSTANCE CLASSNAME="Msvm_VirtualHardDiskSettingData">
      <PROPERTY NAME="Path" TYPE="string"><VALUE>C:\\vm\\a.vhdx</VALUE></PROPERTY>
      <PROPERTY.ARRAY NAME="…"><VALUE.ARRAY><VALUE>…</VALUE></VALUE.ARRAY></PROPERTY.ARRAY>

A property without VALUE is null.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field

TEXT_SIZE_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Instance:
    """An instance: its class, its properties by name as text, its arrays as texts; null ones are
    left out."""

    class_name: str
    values: dict[str, str] = field(default_factory=dict)
    arrays: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def text(self, name: str) -> str:
        """The property, '' where it is null or missing."""
        return self.values.get(name, "")

    def number(self, name: str) -> int:
        """The property as a whole number, 0 where it is null or missing; ValueError for another
        text."""
        return int(self.values.get(name, "") or 0)


def parse_instance(text: str, class_name: str) -> Instance:
    """The instance in `text`; ValueError where it is none of that class, or more than a description
    can be."""
    if len(text) > TEXT_SIZE_MAX or "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError(f"an embedded instance of {class_name} is expected, not {text[:60]!r}")
    try:
        root = ElementTree.fromstring(text.lstrip("\ufeff"))
    except ElementTree.ParseError as exc:
        raise ValueError(f"an embedded instance of {class_name} is damaged: {exc}") from exc
    found = root if root.tag == "INSTANCE" else root.find(".//INSTANCE")
    if found is None or found.get("CLASSNAME", "").lower() != class_name.lower():
        raise ValueError(f"an embedded instance of {class_name} is expected, not <{root.tag}>")
    values: dict[str, str] = {}
    arrays: dict[str, tuple[str, ...]] = {}
    for element in found:
        name = element.get("NAME", "")
        if element.tag == "PROPERTY":
            value = element.find("VALUE")
            if value is not None:
                values[name] = value.text or ""
        elif element.tag == "PROPERTY.ARRAY" and element.find("VALUE.ARRAY") is not None:
            arrays[name] = tuple(value.text or "" for value in element.iter("VALUE"))
    return Instance(found.get("CLASSNAME", ""), values, arrays)


def key_in(path: str, key: str = "InstanceID") -> str:
    """The key's value in an object path (`\\\\HOST\\root\\…:Class.InstanceID="Microsoft:…"`), with
    its backslashes undoubled; '' where the path has none."""
    start = path.find(f'.{key}="')
    if start < 0:
        start = path.find(f',{key}="')
    if start < 0:
        return ""
    text = path[start + len(key) + 3 :]
    taken: list[str] = []
    index = 0
    while index < len(text) and text[index] != '"':
        if text[index] == "\\" and index + 1 < len(text):
            index += 1
        taken.append(text[index])
        index += 1
    return "".join(taken) if index < len(text) else ""
