"""What every command's call must fit: known parameters of the right types, in one parameter set."""

from __future__ import annotations

import contextlib
import functools
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperv.dialect.values import CimInstance, Hashtable, PSObject, SizedInt, UInt32, UInt64
from hyperv.dialect.world import Call
from hyperv.world.errors import binding_error

_COMMON = frozenset(
    [
        "debug",
        "erroraction",
        "errorvariable",
        "informationaction",
        "informationvariable",
        "outvariable",
        "outbuffer",
        "pipelinevariable",
        "verbose",
        "warningaction",
        "warningvariable",
    ]
)
_OBJECTS = {
    "VirtualMachine": ("VirtualMachine",),
    "VMNetworkAdapterBase": ("VMNetworkAdapter",),
    "VMNetworkAdapter": ("VMNetworkAdapter",),
    "HardDiskDrive": ("HardDiskDrive",),
    "VMDriveController": ("VMScsiController",),
    "VMComponentObject": ("HardDiskDrive", "VMNetworkAdapter"),
}
"""Parameters' types of the Hyper-V module to the objects that fit them."""

CIM_CLASS = "Microsoft.Management.Infrastructure.CimClass"


@dataclass(frozen=True)
class Signature:
    """A command's published parameters: `sets` maps names to (mandatory, optional)."""

    name: str
    parameters: Mapping[str, str]
    by_value: tuple[str, ...]
    sets: Mapping[str, tuple[frozenset[str], frozenset[str]]]
    values: Mapping[str, list[str]]


@functools.cache
def signatures() -> Mapping[str, Signature]:
    """Of all commands that the model has, by lower-case name."""
    facts = json.loads(Path(__file__).with_name("cmdlets.json").read_text())
    result = {}
    for name, fact in facts.items():
        by_value = [key for key, how in fact["pipeline"].items() if "ByValue" in str(how)]
        sets = {
            key: (frozenset(mandatory), frozenset(optional))
            for key, (mandatory, optional) in fact["sets"].items()
        }
        result[name.lower()] = Signature(
            name, fact["parameters"], tuple(by_value), sets, fact.get("values", {})
        )
    return result


class Bound:
    """The parameters of a call, by the names of the documents; what came down the pipeline stands
    under the parameter that takes it."""

    def __init__(self, call: Call) -> None:
        self.signature = signatures()[call.name.lower()]
        self.values: dict[str, Any] = {}
        known = {name.lower(): name for name in self.signature.parameters}
        for key, value in call.parameters.items():
            if key.lower() in _COMMON:
                continue
            name = known.get(key.lower())
            if name is None:
                raise self.error(
                    f"A parameter cannot be found that matches parameter name '{key}'.",
                    "NamedParameterNotFound",
                )
            self.values[name] = self._converted(name, value)
        self.piped = ""
        if call.inputs is not None:
            free = [name for name in self.signature.by_value if name not in self.values]
            self.piped = next((n for n in free if n == "InputObject"), free[0] if free else "")
            if not self.piped:
                raise self.error(
                    "The input object cannot be bound to any parameters for the command.",
                    "InputObjectNotBound",
                )
        self._check_sets()

    def error(self, message: str, error_id: str) -> Exception:
        """A call that does not fit."""
        return binding_error(message, error_id, self.signature.name)

    def _check_sets(self) -> None:
        given = set(self.values) | ({self.piped} if self.piped else set())
        fits = [
            name
            for name, (mandatory, optional) in self.signature.sets.items()
            if given <= mandatory | optional
        ]
        if not fits:
            raise self.error(
                "Parameter set cannot be resolved using the specified named parameters.",
                "AmbiguousParameterSet",
            )
        whole = [name for name in fits if self.signature.sets[name][0] <= given]
        if not whole:
            missing = sorted(self.signature.sets[fits[0]][0] - given)
            raise self.error(
                "Cannot process command because of one or more missing mandatory parameters: "
                f"{' '.join(missing)}.",
                "MissingMandatoryParameter",
            )

    def _converted(self, name: str, value: Any) -> Any:
        """A value as the parameter takes it: what PowerShell converts by itself, and no more."""
        wanted = self.signature.parameters[name].removeprefix("System.")
        if wanted == "switch":
            return bool(value)
        if wanted == "StringCollection":
            items = value if isinstance(value, list) else [value]
            return [self._one(name, "String", item) for item in items]
        if wanted.endswith("[]"):
            items = value if isinstance(value, list) else [value]
            return [self._one(name, wanted[:-2], item) for item in items]
        return self._one(name, wanted, value)

    def _one(self, name: str, wanted: str, value: Any) -> Any:
        if wanted == "String" and isinstance(value, str | int) and not isinstance(value, bool):
            return str(int(value)) if isinstance(value, SizedInt) else str(value)
        if wanted == "UInt32" and isinstance(value, int):
            return UInt32(int(value))
        if wanted == "Int32" and isinstance(value, int) and -(2**31) <= value < 2**31:
            return int(value)
        if wanted in ("Int64", "Int16") and isinstance(value, int) and not isinstance(value, bool):
            return int(value)
        if wanted == "Boolean" and isinstance(value, bool):
            return value
        if wanted == "Version" and isinstance(value, str):
            return value
        if wanted in _OBJECTS and isinstance(value, PSObject):
            if value.ps_type.rpartition(".")[2] in _OBJECTS[wanted]:
                return value
        elif name in self.signature.values:
            for each in self.signature.values[name]:
                if each.lower() == str(getattr(value, "name", value)).lower():
                    return each
        if wanted == "Guid":
            with contextlib.suppress(ValueError, AttributeError, TypeError):
                return uuid.UUID(str(value))
        if wanted == "PSObject" and value is not None:
            return value
        if wanted == "UInt64" and isinstance(value, int):
            return UInt64(int(value))
        if wanted == "Collections.IDictionary" and isinstance(value, Hashtable):
            return value
        if wanted.endswith("CimInstance") and isinstance(value, CimInstance):
            return value
        if wanted == CIM_CLASS and isinstance(value, PSObject) and value.ps_type == CIM_CLASS:
            return value
        raise self.error(
            f"Cannot bind parameter '{name}'. Cannot convert the "
            f'"{value}" value of type "{type(value).__name__}" to type "{wanted}".',
            "CannotConvertArgumentNoMessage" if value is not None else "ParameterArgumentNull",
        )

    def get(self, name: str, default: Any = None) -> Any:
        """A parameter's value."""
        return self.values.get(name, default)
