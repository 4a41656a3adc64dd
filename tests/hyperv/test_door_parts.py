"""The door's parts by themselves: the configuration, what is sent, and what comes back."""

from __future__ import annotations

import base64
import dataclasses
import json
import tracemalloc
import zlib
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from standby import errors
from standby.errors import (
    ConfigurationError,
    HostAccessDenied,
    HostAnswerWrong,
    HostCallFailed,
    ScriptFailed,
)
from standby.errors.crossing import error_from_wire, error_to_wire
from standby.host.hyperv import answers, clixml
from standby.host.hyperv.answers import Moment, moment, ranges, read_answer
from standby.host.hyperv.credentials import Access, parse_access, parse_cluster
from standby.host.hyperv.payload import payload
from standby.host.hyperv.quotas import Quotas
from standby.host.hyperv.quotas import read as read_quotas
from standby.host.hyperv.verbs import Verb
from standby.strict_toml import Table

SIGNING = {"username": "EXAMPLE\\backup", "password": "env:HV"}
TICKETS = {"transport": "kerberos", "username": "backup@EXAMPLE.COM"}
BY_FILE = {"transport": "certificate", "certificate": "me.pem", "key": "me.key"}


def parsed(values: dict[str, Any]) -> Access:
    table = Table("/etc/standby.toml", "hosts.prod", values)
    access = parse_access("prod", table)
    table.done()
    return access


# --- the configuration ---


@pytest.mark.parametrize(
    ("values", "url", "transport"),
    [
        ({}, "https://hv1.example:5986/wsman", "ntlm"),
        ({"tls": False}, "http://hv1.example:5985/wsman", "ntlm"),
        ({"address": "hv1:443"}, "https://hv1:443/wsman", "ntlm"),
        ({"address": "10.0.0.1"}, "https://10.0.0.1:5986/wsman", "ntlm"),
        ({"address": "[fe80::1]:99"}, "https://[fe80::1]:99/wsman", "ntlm"),
        ({"credentials": TICKETS}, "https://hv1.example:5986/wsman", "kerberos"),
        ({"credentials": TICKETS, "tls": False}, "http://hv1.example:5985/wsman", "kerberos"),
        ({"credentials": BY_FILE}, "https://hv1.example:5986/wsman", "certificate"),
        ({"credentials": SIGNING | {"transport": "credssp"}}, "https://hv1.example:5986/wsman",
         "credssp"),
    ],
)  # fmt: skip
def test_an_access_is_read(values: dict[str, Any], url: str, transport: str) -> None:
    access = parsed({"address": "hv1.example", "credentials": SIGNING} | values)
    assert (access.url, access.transport) == (url, transport)


def test_files_of_an_access_are_beside_the_configuration() -> None:
    keytab = TICKETS | {"keytab": "hv.keytab", "delegate": True}
    access = parsed({"address": "hv1.example", "ca": "ca.pem", "credentials": keytab})
    assert (str(access.ca), str(access.keytab)) == ("/etc/ca.pem", "/etc/hv.keytab")
    assert access.delegate


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"address": "http://hv1.example"}, "is no address"),
        ({"address": "hv1 example"}, "is no address"),
        ({"address": ""}, "is no address"),
        ({"address": "hv1:0"}, "is no address"),
        ({"address": "hv1:65536"}, "is no address"),
        ({"address": "hv1/wsman"}, "is no address"),
        ({"address": "me@hv1"}, "is no address"),
        ({"address": 5}, "address.*text"),
        ({"tls": "no"}, "tls.*true or false"),
        ({"ca": ""}, "ca.*is empty"),
        ({"validate": False}, "validate.*unknown key"),
        ({"credentials": {}}, "username"),
        ({"credentials": "env:HV"}, "credentials.*table"),
        ({"credentials": {"username": " ", "password": "env:HV"}}, "username.*is empty"),
        ({"credentials": {"username": "me"}}, "password"),
        ({"credentials": SIGNING | {"password": "Secret1!"}}, "must not stand in this file"),
        ({"credentials": SIGNING | {"password": "env:1 2"}}, "must not stand in this file"),
        ({"credentials": SIGNING | {"transport": "kerberoz"}}, "kerberos"),
        ({"credentials": SIGNING | {"transport": "NTLM"}}, "ntlm"),
        ({"credentials": SIGNING | {"keytab": "x"}}, "keytab.*unknown key"),
        ({"credentials": SIGNING | {"delegate": True}}, "delegate.*unknown key"),
        ({"credentials": SIGNING | {"transport": "basic"}, "tls": False}, "show the secret"),
        ({"credentials": SIGNING | {"transport": "credssp"}, "tls": False}, "show the secret"),
        ({"credentials": BY_FILE, "tls": False}, "over HTTP"),
        ({"credentials": {"transport": "certificate", "key": "x"}}, "certificate"),
        ({"credentials": {"transport": "certificate", "certificate": "x"}}, "key"),
        ({"credentials": BY_FILE | {"password": "env:HV"}}, "password.*unknown key"),
        ({"credentials": TICKETS, "address": "hv1"}, "write it with its domain"),
        ({"credentials": TICKETS, "address": "10.0.0.1"}, "Kerberos knows hosts by name"),
        ({"credentials": TICKETS, "address": "[fe80::1]"}, "Kerberos knows hosts by name"),
        ({"credentials": TICKETS | {"username": "EXAMPLE\\backup"}}, "the realm in capitals"),
        ({"credentials": TICKETS | {"keytab": "x", "password": "env:HV"}}, "beside a password"),
        ({"credentials": TICKETS | {"keytab": ""}}, "keytab.*is empty"),
    ],
)
def test_an_access_that_cannot_work_or_is_not_safe_is_refused(
    values: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"(?s){says}") as refused:
        parsed({"address": "hv1.example", "credentials": SIGNING} | values)
    assert "Secret1!" not in str(refused.value)
    assert str(refused.value).startswith("/etc/standby.toml: [hosts.prod")


def test_a_clusters_nodes_are_reached_alike() -> None:
    values = {"address": "cl1", "nodes": ["hv1.example", "hv2:99"], "credentials": SIGNING}
    found = parse_cluster("prod", Table("standby.toml", "hosts.prod", values))
    assert [(it.address, it.port, it.username) for it in found] == [
        ("cl1", 5986, "EXAMPLE\\backup"),
        ("hv1.example", 5986, "EXAMPLE\\backup"),
        ("hv2", 99, "EXAMPLE\\backup"),
    ]
    with pytest.raises(ConfigurationError, match="'a b' is no address"):
        parse_cluster("prod", Table("standby.toml", "hosts.prod", values | {"nodes": ["a b"]}))


# --- what is sent ---


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ([1], "an object"),
        ({"a": [1 << 63]}, "beyond Int64"),
        ({"a": {"b": 1, "B": 2}}, "cannot tell apart"),
        ({"": 1}, "cannot tell apart"),
        ({"a": "x" * (1 << 20)}, "ask for fewer"),
    ],
)
def test_a_request_that_51_would_read_otherwise_is_our_mistake(request_: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        payload("param($request)", request_, "ab")


def test_a_payload_is_ascii_whatever_the_request_holds() -> None:
    data = payload("param($request)", {"name": "größe 🙂 '\"$(x)`"}, "ab")
    text = base64.b64decode(data, validate=True).decode()
    written = text.partition("-text '")[2].partition("'")[0]
    assert json.loads(base64.b64decode(written)) == {"name": "größe 🙂 '\"$(x)`"}


# --- the error stream ---

XML = (
    '#< CLIXML\r\n<Objs Version="1.1.0.1" xmlns="http://schemas.microsoft.com/powershell/2004/04">'
)
PROGRESS = (
    '<Obj S="progress" RefId="0"><TN RefId="0"><T>System.Object</T></TN><MS><I64 N="SourceId">1'
    '</I64><S N="Record">Preparing modules</S></MS></Obj>'
)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"", []),
        (b"\xef\xbb\xbf", []),
        (f"{XML}</Objs>".encode(), []),
        (f"{XML}{PROGRESS}</Objs>".encode(), []),
        (f'{XML}<S S="warning">careful_x000D__x000A_</S></Objs>'.encode(),
         [("warning", "careful")]),
        (f'{XML}<S S="Error">a_x000D__x000A_</S><S S="Error">b_x000A_</S></Objs>'.encode(),
         [("error", "a\nb")]),
        (f'{XML}<S S="Error">a_x000A_</S></Objs>{XML}<S S="Error">b</S></Objs>'.encode(),
         [("error", "a\nb")]),
        (f'{XML}<S S="Error">größer als_x000A_</S></Objs>'.encode("cp1252"),
         [("error", "gr\ufffd\ufffder als")]),
        (f'{XML}<S S="Error">キー</S></Objs>'.encode("cp932"), None),
        (f'{XML}<S S="Error">_xD83D__xDE42_ _x005F_x000A_ _xD83D_</S></Objs>'.encode(),
         [("error", "🙂 _x000A_ \ufffd")]),
        (f'{XML}<S S="Error">a &lt;b&gt; &amp; c</S></Objs>'.encode(), [("error", "a <b> & c")]),
        (f'{XML}<S S="Error">a\x00b</S></Objs>'.encode(), [("error", "a\ufffdb")]),
        (f'{XML}<S S="Error">cut off_x000D__x0'.encode(), [("error", "cut off\r_x0")]),
        (f'{XML}<S S="Error">one_x000A_</S><S S="Err'.encode(), [("error", "one")]),
        (f'{XML}<S S="Error">a & b</S></Objs>'.encode(), [("error", "a & b")]),
        (b"The command line is too long.\r\n", [("error", "The command line is too long.")]),
        (f'before {XML}<S S="verbose">v</S></Objs> after'.encode(),
         [("error", "before"), ("verbose", "v"), ("error", "after")]),
        (f'{XML}<Obj S="information" RefId="1"><ToString>told</ToString><Props><S N="x">no</S>'
         f'<Obj><S S="Error">inner</S></Obj></Props></Obj></Objs>'.encode(),
         [("information", "told")]),
        (f'{XML}<Obj S="Error" RefId="1"><ToString>as an object</ToString></Obj></Objs>'.encode(),
         [("error", "as an object")]),
    ],
)  # fmt: skip
def test_an_error_stream_is_read(data: bytes, wanted: list[tuple[str, str]] | None) -> None:
    found = clixml.records(data)
    if wanted is None:
        assert [record.kind for record in found] == ["error"]
    else:
        assert [(record.kind, record.text) for record in found] == wanted
    for record in found:
        record.text.encode()  # whoever logs or sends it can


@pytest.mark.parametrize("piece", ["<Objs ", '<S S="', '<S S="Error">', "_x000A_", "<Objs><S"])
def test_an_error_stream_takes_no_longer_for_being_strange(piece: str) -> None:
    data = (piece * (clixml.SIZE_MAX // len(piece))).encode()
    assert len(clixml.first_lines(clixml.records(data))) <= 5


# --- answers ---


class Seen(msgspec.Struct):
    name: str = "?"
    size: int = 0
    at: Moment | None = None


LOOK = Verb("look", Seen, text="param($request)")


def written(document: Any, form: str = "plain", mark: str = "ab") -> bytes:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    if form == "deflate":
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        data = packer.compress(data) + packer.flush()
    body = base64.b64encode(data)
    return b"\n<standby %s %s %d>\n%s\n</standby %s>\n" % (
        mark.encode(), form.encode(), len(body), body, mark.encode(),
    )  # fmt: skip


def answered(value: Any, **options: Any) -> Seen:
    step = {"id": "1", "value": value}
    return read_answer("hv1", LOOK, "ab", written({"steps": [step]}, **options)).value("1")


def test_what_51_makes_of_values_is_undone() -> None:
    assert answered({"name": None, "size": None}) == Seen()
    assert answered({"size": (1 << 64) - 1}).size == (1 << 64) - 1
    assert answered({"size": (1 << 53) + 1}).size == (1 << 53) + 1
    assert answered({"name": "x" * 200_000}, form="deflate").name == "x" * 200_000
    at = datetime(2026, 3, 1, 12, 30, 15, 250_000, tzinfo=UTC)
    milliseconds = int(at.timestamp() * 1000)
    for text in (
        f"/Date({milliseconds})/",
        f"/Date({milliseconds}+0200)/",
        "2026-03-01T12:30:15.25Z",
        "2026-03-01T14:30:15.250+02:00",
        "2026-03-01T12:30:15.2500000",
    ):
        assert answered({"at": text}).at == at
    assert moment("/Date(-62135596800000)/") == datetime(1, 1, 1, tzinfo=UTC)  # DateTime.MinValue
    wrapped = {"steps": {"value": [{"id": "1", "value": {"size": 5}}], "Count": 1}}
    assert read_answer("hv1", LOOK, "ab", written(wrapped)).value("1").size == 5


@pytest.mark.parametrize(
    ("stdout", "says"),
    [
        (b"", "there is none"),
        (written({"steps": []}, mark="cd"), "there is none"),
        (written({"steps": []}) * 2, "there are 2"),
        (written({"steps": []})[:-20], "cut off"),
        (written({"steps": []}).replace(b">\n", b">\nstray ", 1), "cut off"),
        (b"\n<standby ab plain 99999999999999999999>\nAAAA\n</standby ab>\n", "cut off"),
        (b"\n<standby ab plain 4>\n!!!!\n</standby ab>\n", "damaged"),
        (b"\n<standby ab deflate 4>\nAAAA\n</standby ab>\n", "damaged"),
        (written(b'{"steps": []}')[:-20] + b"\n</standby cd>\n", "cut off"),
        (written(b"{"), "(?i)truncated"),
        (written(b"\xff\xfe"), "(?i)malformed|invalid|json"),
        (written(b"[" * 100_000), "(?i)recursion"),
        (written(b'{"steps": ' + b"[" * 900 + b"]" * 900 + b"}"), "(?i)expected|recursion"),
        (written([1]), "(?i)expected"),
        (written({"steps": [{"value": 1}]}), "(?i)required field `id`"),
        (written({"steps": [{"id": "1", "value": {"size": "5"}}]}), "about '1'.*int.*size"),
        (written({"steps": [{"id": "1", "value": {"size": 1.5}}]}), "about '1'.*int"),
        (written({"steps": [{"id": "1", "value": {"at": "yesterday"}}]}), "about '1'"),
        (written({"steps": [{"id": "1", "value": {"at": "/Date(99999999999999999)/"}}]}), "beyond"),
        (written({"steps": [{"id": "1", "value": {"at": 5}}]}), "about '1'"),
        (written({"steps": [{"id": "1"}]}), "about '1'"),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_refused(stdout: bytes, says: str) -> None:
    with pytest.raises(HostAnswerWrong, match=says) as refused:
        read_answer("hv1", LOOK, "ab", stdout, ("it ran out of memory",))
    assert "it ran out of memory" in str(refused.value)


def test_an_answer_that_unpacks_to_too_much_takes_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answers, "ANSWER_SIZE_MAX", 1 << 20)
    bomb = written(bytes(64 << 20), form="deflate")
    tracemalloc.start()
    try:
        with pytest.raises(HostAnswerWrong, match="larger than 1048576 bytes"):
            read_answer("hv1", LOOK, "ab", bomb)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_one_id_answered_twice_or_not_at_all_is_no_answer_about_it() -> None:
    step = {"id": "1", "value": {"size": 5}}
    answer = read_answer("hv1", LOOK, "ab", written({"steps": [step, step]}))
    for id, count in (("1", 2), ("2", 0)):
        with pytest.raises(HostAnswerWrong, match=f"{count} answers about '{id}'"):
            answer.value(id)


@pytest.mark.parametrize(
    ("error", "kind", "hresult"),
    [
        ({"message": "no", "hresult": -2147024891}, HostAccessDenied, None),
        ({"message": "no", "wmi": 32769}, HostAccessDenied, None),
        ({"message": "no (0x80041003)", "hresult": -2146233088}, HostAccessDenied, None),
        ({"message": "in use", "hresult": -2147024864}, ScriptFailed, 0x80070020),
        ({"message": "in use (0x80070020)", "hresult": -2146233087}, ScriptFailed, 0x80070020),
        ({"message": "odd", "kind": "0x800700201"}, ScriptFailed, 0),
        ({"message": "odd", "hresult": None, "category": "NotSpecified"}, ScriptFailed, 0),
    ],
)
def test_an_error_of_the_host_is_typed(
    error: dict[str, Any], kind: type[HostCallFailed], hresult: int | None
) -> None:
    for document in ({"error": error}, {"steps": [{"id": "1", "error": error}]}):
        with pytest.raises(kind) as found:
            read_answer("hv1", LOOK, "ab", written(document)).value("1")
        if isinstance(found.value, ScriptFailed):
            assert found.value.hresult == hresult


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", []),
        ("\r\n", []),
        ("0,4096", [[0, 4096]]),
        ("0,1\r\n2,3\r\n", [[0, 1], [2, 3]]),
        (f"{(1 << 63) - 1},1", [[(1 << 63) - 1, 1]]),
    ],
)
def test_ranges_are_lines(text: str, wanted: list[list[int]]) -> None:
    assert ranges(text).tolist() == wanted
    assert ranges(text).shape == (len(wanted), 2)


@pytest.mark.parametrize(
    "text", ["1", "1,2,3", "1,2,3\n4", "1\n2,3,4", "-1,2", "1_0,2", "1.5,2", "1, 2", "a,b", ",",
             "1,2\n\n3,4", f"{1 << 63},1", "\u0661,\u0662"],
)  # fmt: skip
def test_what_are_no_ranges_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        ranges(text)


# --- limits, and errors on their way ---


def test_what_a_host_says_of_its_limits_is_kept_within_sense() -> None:
    def said(**values: str) -> Quotas:
        inner = "".join(f"<{name}>{text}</{name}>" for name, text in values.items())
        return read_quotas(f"<Config>{inner}</Config>".encode())

    assert said(MaxShellsPerUser="2147483647").scripts_at_once(8) == 8
    assert said(MaxShellsPerUser="1").scripts_at_once(8) == 1
    assert said(MaxShellsPerUser="0").shells_per_user == 5
    assert said(MaxShellsPerUser="-3", MaxEnvelopeSizekb="many").shells_per_user == 5
    assert said(MaxEnvelopeSizekb="1").chunk_bytes == 1024
    assert said(MaxTimeoutms="500").operation_s == 1
    assert said(MaxTimeoutms="4294967295").operation_s == 20


def kinds(root: type[HostCallFailed]) -> list[type[HostCallFailed]]:
    return [one for child in root.__subclasses__() for one in (child, *kinds(child))]


def public_kinds() -> list[type[HostCallFailed]]:
    return [one for one in kinds(HostCallFailed) if one.__name__ in errors.__all__]


@pytest.mark.parametrize("kind", public_kinds())
def test_an_error_of_a_host_keeps_its_type_on_its_way(kind: type[HostCallFailed]) -> None:
    samples = {"int": 7, "float": 7.5, "tuple[str, ...]": ("a", "b")}
    values = {f.name: samples.get(str(f.type), f"the {f.name}") for f in dataclasses.fields(kind)}
    sent = json.loads(json.dumps(error_to_wire(kind(**values))))
    found = error_from_wire(sent)
    assert type(found) is kind
    assert str(found) == str(kind(**values))
    assert found.exit_code == 12
