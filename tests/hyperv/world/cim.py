"""The CIM cmdlets, on one host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hyperv.dialect.values import CimInstance, Hashtable, PSObject, UInt32
from hyperv.dialect.world import Call, PSError
from hyperv.world import errors
from hyperv.world.associations import ASSOCIATIONS, associated
from hyperv.world.binding import CIM_CLASS, Bound
from hyperv.world.machines import Job
from hyperv.world.methods import Methods
from hyperv.world.rows import Row, Rows, job_values
from hyperv.world.schema import (
    CIMV2,
    CimClass,
    WrongTypeError,
    checked,
    new_instance,
    reference,
    typed,
)
from hyperv.world.wql import QueryError, condition, parse_query

_INFRASTRUCTURE = "Microsoft.Management.Infrastructure"


class Cim:
    """The service behind the cmdlets."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.methods = Methods(rows)

    # --- Get-CimClass, New-CimInstance -----------------------------------------------------------

    def get_class(self, call: Call) -> Iterator[object]:
        """Get-CimClass."""
        bound = Bound(call)
        self._refuse(bound, "CimSession", "ComputerName", "MethodName", "PropertyName")
        self._refuse(bound, "QualifierName")
        kind = self._class(bound, bound.get("ClassName"), "GetCimClassCommand")
        yield self._described(kind)

    def _described(self, kind: CimClass) -> PSObject:
        """A class as an object; its instances keep the class itself beside it."""
        declared = f"{_INFRASTRUCTURE}.CimPropertyDeclaration"
        properties = [
            PSObject(
                (declared, "System.Object"),
                {
                    "Name": name,
                    "CimType": _cim_type(type_name),
                    "Flags": "Property, ReadOnly" if name in kind.read_only else "Property",
                    "ReferenceClassName": None,
                },
                text=name,
            )
            for name, type_name in kind.properties.items()
        ]
        methods = [
            PSObject(
                (f"{_INFRASTRUCTURE}.CimMethodDeclaration", "System.Object"),
                {"Name": name, "ReturnType": "UInt32"},
                text=name,
            )
            for name in kind.methods
        ]
        return PSObject(
            (CIM_CLASS, "System.Object"),
            {
                "CimClassName": kind.name,
                "CimSuperClassName": kind.base,
                "CimClassProperties": properties,
                "CimClassMethods": methods,
                "CimSystemProperties": self._system_properties(kind.name, kind.namespace),
            },
            text=f"{kind.namespace}:{kind.name}".replace("\\", "/"),
        )

    def _system_properties(self, class_name: str, namespace: str) -> PSObject:
        return PSObject(
            (f"{_INFRASTRUCTURE}.CimSystemProperties", "System.Object"),
            {
                "Namespace": namespace.replace("\\", "/"),
                "ServerName": self.rows.host.name.upper(),
                "ClassName": class_name,
                "Path": None,
            },
        )

    def new_instance(self, call: Call) -> Iterator[object]:
        """New-CimInstance, of a client's copy only: nothing of Hyper-V is created like that."""
        bound = Bound(call)
        self._refuse(bound, "CimSession", "ComputerName", "ResourceUri", "Key")
        if not bound.get("ClientOnly"):
            raise PSError("Not supported ", "NotImplemented", "HRESULT 0x8004100c", 0x8004100C)
        described = bound.get("CimClass")
        if described is None:
            kind = self._class(bound, bound.get("ClassName"), "NewCimInstanceCommand")
        else:
            kind = self.rows.classes[described.get("CimClassName").lower()]
        values = {}
        for key, value in (bound.get("Property") or Hashtable()).items():
            name = kind.property_named(str(key))
            if name is None:
                raise self._client_error(
                    f'No matching property "{key}" could be found in the class.',
                    "NewCimInstanceCommand",
                )
            try:
                values[name] = checked(kind.properties[name], value)
            except WrongTypeError:
                raise self._client_error(
                    f'Unable to create the value of property "{name}": it is not of type '
                    f"{_cim_type(kind.properties[name])}.",
                    "NewCimInstanceCommand",
                ) from None
        yield self._shown(Row(kind, values))

    def _client_error(self, message: str, command: str) -> PSError:
        return PSError(
            message,
            "InvalidArgument",
            "System.ArgumentException",
            exception_type="System.ArgumentException",
            command_type=f"{errors.CIM_COMMANDS}.{command}",
        )

    # --- Get-CimInstance -------------------------------------------------------------------------

    def get_instance(self, call: Call) -> Iterator[object]:
        """Get-CimInstance."""
        bound = Bound(call)
        self._refuse(bound, "CimSession", "ComputerName", "ResourceUri", "QueryDialect")
        command = "GetCimInstanceCommand"
        given = bound.get("InputObject")
        if given is not None or bound.piped:
            instances = [given] if given is not None else list(call.inputs or [])
            for instance in instances:
                yield self._shown(self.find(instance, command))
            return
        text = bound.get("Filter") or ""
        properties = bound.get("Property")
        class_name = bound.get("ClassName")
        if bound.get("Query"):
            try:
                query = parse_query(bound.get("Query"))
            except QueryError:
                raise errors.cim_error(errors.INVALID_QUERY, command) from None
            class_name, properties, text = query.class_name, query.properties, query.where
        kind = self._class(bound, class_name, command)
        self._check_right(kind.name, command)
        if properties is not None:
            unknown = [name for name in properties if kind.property_named(name) is None]
            if unknown:
                raise errors.cim_error(errors.INVALID_QUERY, command)
        if bound.get("KeyOnly"):
            properties = list(kind.keys)
        try:
            is_wanted = condition(text, kind)
        except QueryError:
            raise errors.cim_error(errors.INVALID_QUERY, command) from None
        for row in self._all(kind, command):
            if is_wanted(row.values):
                yield self._shown(row, properties)

    def _all(self, kind: CimClass, command: str) -> Iterator[Row]:
        try:
            yield from self.rows.of(kind.name)
        except KeyError:
            raise NotImplementedError(f"the model has no instances of {kind.name}") from None

    def find(self, instance: Any, command: str) -> Row:
        """The row that an instance of a script stands for, as it is now; the error that the host
        gives where there is none any more."""
        if not isinstance(instance, CimInstance):
            raise errors.cim_error(errors.INVALID_PARAMETER, command)
        kind = self.rows.classes.get(instance.class_name.lower())
        if kind is None:
            raise errors.cim_error(errors.INVALID_CLASS, command)
        self._check_right(kind.name, command)
        key = tuple(str(instance.get(name)).lower() for name in kind.keys)
        for row in self._all(kind, command):
            if tuple(str(row.values.get(name)).lower() for name in row.kind.keys) == key:
                return row
        raise errors.cim_error(
            errors.NOT_FOUND,
            command,
            "The requested object could not be found. ",
        )

    def _shown(self, row: Row, properties: list[str] | None = None) -> CimInstance:
        instance = new_instance(row.kind, row.values, properties)
        instance.properties["PSComputerName"] = None
        instance.properties["CimClass"] = _ClassOf(self, row.kind)
        instance.properties["CimSystemProperties"] = self._system_properties(
            row.kind.name, row.kind.namespace
        )
        return instance

    # --- Get-CimAssociatedInstance ---------------------------------------------------------------

    def get_associated(self, call: Call) -> Iterator[object]:
        """Get-CimAssociatedInstance: each instance once, by whatever association it was found."""
        bound = Bound(call)
        self._refuse(bound, "CimSession", "ComputerName", "ResourceUri", "KeyOnly")
        command = "GetCimAssociatedInstanceCommand"
        wanted = bound.get("ResultClassName")
        if wanted is not None:
            wanted = self._class(bound, wanted, command, is_of_input=True).name
        by = bound.get("Association")
        if by is not None and by.lower() not in (name.lower() for name in ASSOCIATIONS):
            if by.lower() not in self.rows.classes:
                raise errors.cim_error(errors.INVALID_CLASS, command)
            raise NotImplementedError(f"the model has no association {by}")
        given = bound.get("InputObject")
        for instance in [given] if given is not None else list(call.inputs or []):
            source = self.find(instance, command)
            seen = set()
            for name, row in associated(self.rows, source):
                if by is not None and name.lower() != by.lower():
                    continue
                if wanted is not None and not row.kind.is_a(wanted):
                    continue
                key = (row.kind.name, *(row.values.get(key) for key in row.kind.keys))
                if key not in seen:
                    seen.add(key)
                    yield self._shown(row)

    # --- Invoke-CimMethod ------------------------------------------------------------------------

    def invoke(self, call: Call) -> Iterator[object]:
        """Invoke-CimMethod."""
        bound = Bound(call)
        self._refuse(bound, "CimSession", "ComputerName", "ResourceUri", "Query", "CimClass")
        self._refuse(bound, "QueryDialect")
        command = "InvokeCimMethodCommand"
        given = bound.get("InputObject")
        if given is None and not bound.piped:
            raise NotImplementedError("the model's methods are called on instances")
        for instance in [given] if given is not None else list(call.inputs or []):
            row = self.find(instance, command)
            method = row.kind.method_named(bound.get("MethodName"))
            if method is None:
                raise errors.cim_error(errors.METHOD_NOT_FOUND, command)
            arguments = self._arguments(row.kind, method, bound.get("Arguments"), command)
            if not self.methods.knows(row.kind.name, method):
                raise NotImplementedError(f"the model has no {row.kind.name}.{method}")
            world = self.rows.world
            world.arrive(self.rows.host.name, f"{row.kind.name}.{method}", arguments)
            outputs = self.methods.call(row, method, arguments)
            yield self._result(row.kind, method, outputs)

    def _arguments(
        self, kind: CimClass, method: str, given: Hashtable | None, command: str
    ) -> dict[str, Any]:
        """By the method's own names; references are what they refer to."""
        inputs = kind.methods[method].inputs
        named = {name.lower(): name for name in inputs}
        arguments = {}
        for key, value in (given or Hashtable()).items():
            name = named.get(str(key).lower())
            if name is None:
                raise errors.cim_error(errors.INVALID_METHOD_PARAMETERS, command)
            type_name = inputs[name]
            try:
                value = checked(type_name, value)
            except WrongTypeError:
                raise errors.cim_error(
                    errors.TYPE_MISMATCH, command, f'Type mismatch for parameter "{name} " '
                ) from None
            if type_name.endswith(" REF") and value is not None:
                target = self.find(value, command)
                if not target.kind.is_a(type_name.removesuffix(" REF")):
                    raise errors.cim_error(errors.INVALID_METHOD_PARAMETERS, command)
                value = target.of
            elif type_name.endswith(" REF[]") and value is not None:
                value = [self.find(each, command) for each in value]
                wanted = type_name.removesuffix(" REF[]")
                if not all(target.kind.is_a(wanted) for target in value):
                    raise errors.cim_error(errors.INVALID_METHOD_PARAMETERS, command)
            arguments[name] = value
        return arguments

    def _result(self, kind: CimClass, method: str, outputs: dict[str, Any]) -> PSObject:
        properties: dict[str, Any] = {}
        for name, type_name in kind.methods[method].outputs.items():
            value = outputs.pop(name, None)
            if isinstance(value, Job):
                job_class = self.rows.classes[value.class_name.lower()]
                value = reference(job_class, job_values(value))
            elif isinstance(value, Row):
                value = reference(value.kind, value.values)
            elif type_name.endswith(" REF[]") and value is not None:
                value = [reference(row.kind, row.values) for row in value]
            properties[name] = typed(type_name, value)
        properties["ReturnValue"] = UInt32(outputs.pop("ReturnValue", 0))
        properties["PSComputerName"] = None
        assert not outputs, f"{method} has no {', '.join(outputs)}"
        name = f"{_INFRASTRUCTURE}.CimMethodResult"
        return PSObject((f"{name}#{kind.name}#{method}", name, "System.Object"), properties)

    # --- both --------------------------------------------------------------------------------

    def _class(
        self, bound: Bound, name: str, command: str, *, is_of_input: bool = False
    ) -> CimClass:
        """The class of that name in the namespace of the call."""
        kind = self.rows.classes.get((name or "").lower())
        if is_of_input and bound.get("Namespace") is None:
            if kind is None:
                raise errors.cim_error(errors.INVALID_CLASS, command)
            return kind
        namespace = (bound.get("Namespace") or CIMV2).replace("/", "\\").lower()
        known = {k.namespace.lower() for k in self.rows.classes.values()}
        if not self.rows.host.cluster:
            known.discard(r"root\mscluster")
        if namespace not in known:
            raise errors.cim_error(errors.INVALID_NAMESPACE, command)
        if kind is None or kind.namespace.lower() != namespace:
            raise errors.cim_error(errors.INVALID_CLASS, command)
        return kind

    def _check_right(self, class_name: str, command: str) -> None:
        denied = {name.lower() for name in self.rows.host.denied}
        if class_name.lower() in denied or "*" in denied:
            raise errors.cim_error(errors.ACCESS_DENIED, command)

    def _refuse(self, bound: Bound, *names: str) -> None:
        """Parameters that exist and that the model does not follow."""
        for name in names:
            if bound.get(name) is not None:
                raise NotImplementedError(f"the model has no {bound.signature.name} -{name}")


class _ClassOf(PSObject):
    """An instance's class, described only where a script looks at it."""

    def __init__(self, cim: Cim, kind: CimClass) -> None:
        super().__init__((CIM_CLASS, "System.Object"), text=kind.name)
        self._cim = cim
        self._kind = kind

    def get(self, name: str) -> Any:
        if not self.properties:
            self.properties = self._cim._described(self._kind).properties
        return self.properties[name]


def _cim_type(type_name: str) -> str:
    if type_name.endswith("REF"):
        return "Reference"
    one, is_array, _ = type_name.partition("[]")
    names = {"datetime": "DateTime", "boolean": "Boolean", "string": "String", "object": "Instance"}
    text = names.get(one) or one.replace("uint", "UInt").replace("sint", "SInt")
    return text + ("Array" if is_array else "")
