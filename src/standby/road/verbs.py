"""Verbs: what the backup server asks of a mover, by name (VERBS.md lists them)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from standby.errors import ProtocolError


class Verbs(Protocol):
    """What a role answers to: `call` for each Call, `close` when the server is gone."""

    def call(self, verb: str, arguments: dict[str, Any]) -> Any: ...
    def close(self) -> None: ...


def answered(verbs: Mapping[str, Callable[..., Any]], verb: str, arguments: dict[str, Any]) -> Any:
    """`called`, with a result in builtins: values as dicts, bytes as base64 text."""
    result = called(verbs, verb, arguments)
    return result if result is NotImplemented else msgspec.to_builtins(result)


def called(verbs: Mapping[str, Callable[..., Any]], verb: str, arguments: dict[str, Any]) -> Any:
    """What that one of `verbs` returns; NotImplemented where it is not among them. Raises
    ProtocolError for arguments that it does not take, or that are not of its types."""
    function = verbs.get(verb)
    if function is None:
        return NotImplemented
    try:
        return function(**arguments)
    except msgspec.ValidationError as exc:
        raise ProtocolError("backup server", f"{verb}: {exc}") from exc
    except TypeError as exc:
        if exc.__traceback__ and exc.__traceback__.tb_next:  # raised within: a bug of ours
            raise
        raise ProtocolError("backup server", f"{verb}: {exc}") from exc
