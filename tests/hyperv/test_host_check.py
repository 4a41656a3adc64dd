"""What a Hyper-V host's doctor finds, on simulated hosts with faults of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from clocks import HeldClock
from hyperv.certificates import Authority
from hyperv.clusters import ADDRESS, SimulatedCluster
from hyperv.installation import PASSWORD, SimulatedHost
from hyperv.world import DiskSpec, World
from hyperv.world.account import Share
from hyperv.world.machines import RECOVERY, Host
from hyperv.wsman import CommandLine, Result, WsmanServer
from hyperv.wsman import Quotas as WsmanQuotas
from standby.clock import SYSTEM_CLOCK
from standby.errors import HostCertificateRefused
from standby.host.hyperv.credentials import Access
from standby.host.hyperv.doctor import clock_finding, double_hop, examined, refused
from standby.host.hyperv.doctor_rows import HostFinding, Level
from standby.host.hyperv.doctor_rows import Share as DocShare
from standby.host.hyperv.door import Door
from standby.host.hyperv.machines import HostMachine
from standby.server.config import Config, ProxyConfig, load_config
from standby.server.fleet import Fleet
from standby.server.host_check import (
    Map,
    checked_host,
    checked_nodes,
    cluster_doors,
    down_finding,
    looking,
    maps_of,
    seen_findings,
    share_findings,
)
from standby.units import MiB

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(HeldClock(), tmp_path)
    made.add_host("hv1")
    return made


@pytest.fixture
def host(world: World) -> Iterator[SimulatedHost]:
    with SimulatedHost(world, "hv1") as made:
        yield made


def _found(host: SimulatedHost) -> dict[str, HostFinding]:
    with host.door() as door:
        return {item.what: item for item in examined(door.access, door, host.world.clock).findings}


def _access(**more: Any) -> Access:
    return Access("prod", "hv1.example.test", 5986, "ntlm", **more)


def test_a_sound_host_has_a_line_for_each_thing_and_no_remedy(
    world: World, host: SimulatedHost
) -> None:
    world.add_machine("web", "hv1", [16 * MiB])
    found = _found(host)
    assert list(found) == [
        *("reachability", "TLS", "version", "clock", "rights", "services", "quotas", "VMs")
    ]
    assert {item.level for item in found.values()} == {Level.OK}
    assert {item.remedy for item in found.values()} == {""}
    assert found["version"].text == "Microsoft Windows Server 2022 Datacenter (build 20348)"
    assert host.scripts == 3


def test_shares_are_told_but_for_the_systems_own(world: World, host: SimulatedHost) -> None:
    world.hosts["hv1"].shares = [Share("vms", "D:\\VMs", {"EXAMPLE\\backup": "Full"})]
    with host.door() as door:
        shares = examined(door.access, door, world.clock).shares
    assert shares is not None
    assert [(item.name, item.path, item.access) for item in shares] == [
        ("vms", "D:\\VMs", ["Allow:Full:EXAMPLE\\backup"])
    ]


# --- what keeps the host from answering -----------------------------------------------------------


def test_a_host_that_does_not_answer(world: World) -> None:
    host = SimulatedHost(world, "hv1")
    with host:
        access = host.door().access
    with Door(access, lambda reference, where: PASSWORD, HeldClock()) as door:
        (found,) = examined(access, door, world.clock).findings
    assert (found.level, found.what) == (Level.ERROR, "reachability")
    assert f"127.0.0.1:{access.port}" in found.text
    assert found.remedy


def test_wrong_credentials(host: SimulatedHost) -> None:
    host.server.users["backup"] = "another"
    (found,) = _found(host).values()
    assert (found.level, found.what) == (Level.ERROR, "credentials")
    assert "[hosts.hv1.credentials]" in found.remedy
    assert PASSWORD not in str(found)


def test_an_account_that_may_not_open_a_shell(host: SimulatedHost) -> None:
    host.server.faults.arm("Create", "denied", 9)
    (found,) = _found(host).values()
    assert (found.level, found.what) == (Level.ERROR, "rights")
    assert "S-1-5-32-578" in found.remedy


def test_a_quota_that_is_used_up(world: World, host: SimulatedHost) -> None:
    host.server.faults.arm("Create", "quota", 9)
    with host.door() as door:
        door = Door(door.access, lambda reference, where: PASSWORD, HeldClock())
        (found,) = examined(door.access, door, world.clock).findings
        door.close()
    assert (found.level, found.what) == (Level.ERROR, "quotas")
    assert "winrm set winrm/config/winrs" in found.remedy


CONSTRAINED = (
    b'#< CLIXML\r\n<Objs Version="1.1.0.1" xmlns="http://schemas.microsoft.com/powershell/2004/04">'
    b'<S S="Error">Cannot invoke method. Method invocation is supported only on core types in this '
    b'language mode._x000D__x000A_</S><S S="Error">    + FullyQualifiedErrorId : '
    b"MethodInvocationNotSupportedInConstrainedLanguage_x000D__x000A_</S></Objs>"
)


def test_constrained_language() -> None:
    def refusing(line: CommandLine, stdin: bytes) -> Result:
        return Result(stderr=CONSTRAINED, exit_code=1)

    with WsmanServer(refusing, {"backup": PASSWORD}) as server:
        access = Access("hv1", "127.0.0.1", server.port, "basic", False, "backup", "env:HV")
        with Door(access, lambda reference, where: PASSWORD) as door:
            (found,) = examined(access, door, HeldClock()).findings
    assert (found.level, found.what) == (Level.ERROR, "language mode")
    assert "AppLocker" in found.remedy


def test_a_certificate_that_is_not_trusted() -> None:
    found = refused(_access(), HostCertificateRefused("prod", "hv1.example.test", "self-signed"))
    assert (found.level, found.what) == (Level.ERROR, "TLS")
    assert 'ca = "PATH"' in found.remedy


@pytest.mark.parametrize(
    ("name", "days", "level"),
    [("authority", 90, Level.OK), ("self-signed", 90, Level.OK), ("authority", 5, Level.WARNING)],
)
def test_how_long_a_certificate_is_good(
    host: SimulatedHost, tmp_path: Path, name: str, days: int, level: Level
) -> None:
    until = datetime.now(UTC) + timedelta(days=days, minutes=5)
    authority = Authority(tmp_path, name)
    tls = authority.issue("hv1", until=until)
    with WsmanServer(host._execute, host.server.users, tls) as server:
        access = replace(host.door().access, is_tls=True, ca=authority.file, port=server.port)
        with Door(access, lambda reference, where: PASSWORD) as door:
            told = examined(access, door, SYSTEM_CLOCK).findings
    found = next(item for item in told if item.what == "TLS")
    assert found.level is level, found
    assert f"good until {until:%Y-%m-%d}" in found.text
    assert ("renew it" in found.remedy) is (level is Level.WARNING)


# --- what the host tells --------------------------------------------------------------------------


def test_an_account_without_rights(world: World, host: SimulatedHost) -> None:
    world.hosts["hv1"].groups = ["S-1-1-0"]
    found = _found(host)
    assert found["rights"].level is Level.ERROR
    assert "-Member 'EXAMPLE\\backup'" in found["rights"].remedy
    assert found["shares"].level is Level.WARNING


def test_a_hyper_v_administrator_is_enough_but_for_shares(
    world: World, host: SimulatedHost
) -> None:
    world.hosts["hv1"].groups = ["S-1-5-32-578", "S-1-5-32-580"]
    found = _found(host)
    assert found["rights"].level is Level.OK
    assert found["shares"].level is Level.WARNING


def test_hyper_v_that_denies_its_services(world: World, host: SimulatedHost) -> None:
    world.hosts["hv1"].denied = {"Msvm_VirtualSystemManagementService"}
    found = _found(host)
    assert found["services"].level is Level.ERROR
    assert "Hyper-V Administrators" in found["services"].remedy


def test_a_service_that_does_not_run(world: World, host: SimulatedHost) -> None:
    world.hosts["hv1"].stopped = {"Msvm_VirtualSystemManagementService"}
    found = _found(host)["services"]
    assert (found.level, found.text) == (Level.ERROR, "vmms does not run")
    assert found.remedy == "on the host: Start-Service vmms"


def test_small_quotas(host: SimulatedHost) -> None:
    host.server.quotas = WsmanQuotas(max_shells_per_user=5)
    found = _found(host)["quotas"]
    assert (found.level, found.text) == (
        Level.WARNING,
        "MaxShellsPerUser is 5: 3 scripts run at once",
    )
    assert "MaxShellsPerUser" in found.remedy


def test_quotas_that_may_not_be_read(host: SimulatedHost) -> None:
    host.server.quotas = WsmanQuotas(is_readable=False)
    assert _found(host)["quotas"].level is Level.WARNING


@pytest.mark.parametrize("skew_s", [40.0, -40.0])
def test_a_clock_that_is_off(world: World, host: SimulatedHost, skew_s: float) -> None:
    world.hosts["hv1"].skew_s = skew_s
    found = _found(host)["clock"]
    which = "ahead of" if skew_s > 0 else "behind"
    assert (found.level, found.text) == (Level.WARNING, f"40 s {which} this machine's")
    assert "w32tm" in found.remedy


def test_a_clock_that_kerberos_refuses() -> None:
    access = replace(_access(), transport="kerberos")
    found = clock_finding(access, NOON + timedelta(seconds=301), NOON, NOON)
    assert found.level is Level.ERROR


# --- VMs ------------------------------------------------------------------------------------------


def test_vms_without_change_tracking_or_with_disks_that_are_refused(
    world: World, host: SimulatedHost
) -> None:
    world.hosts["hv1"] = Host("hv1", 2016)
    world.add_machine("old", "hv1", [16 * MiB], version="5.0")
    world.add_machine("raw", "hv1", [DiskSpec(kind="physical")])
    found = _found(host)
    assert "Update-VMVersion -Name 'old'" in found["VM old"].remedy
    assert "pass-through" in found["VM raw"].text
    assert {item.level for item in (found["VM old"], found["VM raw"])} == {Level.WARNING}
    assert "VMs" not in found


def test_a_vm_with_a_recovery_snapshot(world: World, host: SimulatedHost) -> None:
    machine = world.add_machine("web", "hv1", [16 * MiB])
    world.recovery_snapshot(machine)
    assert [item.kind for item in machine.checkpoints] == [RECOVERY]
    found = _found(host)["VM web"]
    assert found.level is Level.WARNING
    assert "Get-VMSnapshot -VMName 'web' -SnapshotType Recovery" in found.remedy


def test_a_replica_is_told_and_is_no_warning(world: World, host: SimulatedHost) -> None:
    world.add_machine("copy", "hv1", [16 * MiB], notes="standby-replica: nightly")
    assert _found(host)["VM copy"].level is Level.OK


def test_a_cluster_without_credssp(world: World) -> None:
    world.add_cluster("east", ["n1", "n2"])
    with SimulatedHost(world, "n1") as host:
        found = _found(host)["double hop"]
    assert found.level is Level.WARNING
    assert "Add-ClusterVirtualMachineRole -VMName" in found.remedy
    assert "Enable-WSManCredSSP -Role Server" in found.remedy


def test_credssp_needs_no_remedy_for_the_double_hop() -> None:
    assert not list(double_hop(replace(_access(), transport="credssp"), ["east"], []))
    assert [item.what for item in double_hop(_access(), ["east"], [])] == ["double hop"]


# --- proxies and shares ---------------------------------------------------------------------------

TOML = """
[standby]
installation = "main"

[hosts.hv1]
kind = "folder"
path = "."

[hosts.dr]
kind = "folder"
path = "."

[repositories.r]
path = "r"

[proxies.linux1]
paths.hv1 = { 'D:\\VMs' = "/mnt/hv1" }

[jobs.nightly]
source = "hv1"
target = "dr"
repository = "r"
machines = ["*"]
"""


def _config(tmp_path: Path, *changes: tuple[str, str]) -> Config:
    text = TOML
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file = tmp_path / "standby.toml"
    file.write_text(text)
    return load_config(file)


def _maps(config: Config) -> list[Map]:
    return maps_of(config, Access("hv1", "hv1.example.test", 5986, "ntlm"))


def _machine(world: World, host: SimulatedHost) -> HostMachine:
    world.add_machine("web", "hv1", [16 * MiB])
    with host.door() as door:
        inventory = examined(door.access, door, world.clock).inventory
    assert inventory is not None
    return inventory.machines[0]


def test_a_proxy_that_sees_the_disks(tmp_path: Path, world: World, host: SimulatedHost) -> None:
    config = _config(tmp_path, ("D:\\VMs", "C:\\Hyper-V"))
    asked: list[tuple[str, str]] = []

    def look(proxy: ProxyConfig, path: str) -> str:
        asked.append((proxy.name, path))
        return ""

    found = list(seen_findings("hv1", _maps(config), [_machine(world, host)], look))
    assert asked == [("linux1", "/mnt/hv1/web")]
    assert found == [HostFinding(Level.OK, "proxy linux1", "sees C:\\Hyper-V\\web as /mnt/hv1/web")]


def test_a_proxy_whose_mount_is_away(tmp_path: Path, world: World, host: SimulatedHost) -> None:
    config = _config(tmp_path, ("D:\\VMs", "C:\\Hyper-V"))
    machines = [_machine(world, host)]
    (found,) = seen_findings("hv1", _maps(config), machines, lambda proxy, path: "does not exist")
    assert found.level is Level.ERROR
    assert found.text == "C:\\Hyper-V\\web should be /mnt/hv1/web there: does not exist"
    assert "[proxies.linux1.paths] hv1" in found.remedy


def test_a_folder_that_no_proxy_sees(tmp_path: Path, world: World, host: SimulatedHost) -> None:
    machines = [_machine(world, host)]
    maps = _maps(_config(tmp_path))
    found = list(seen_findings("hv1", maps, machines, lambda proxy, path: ""))
    assert found[0].level is Level.ERROR
    assert found[0].text == "none of linux1 sees C:\\Hyper-V\\web (VM web)"


def test_a_host_without_a_proxy(world: World, host: SimulatedHost) -> None:
    machines = [_machine(world, host)]
    (found,) = seen_findings("hv2", [], machines, lambda proxy, path: "")
    assert (found.level, found.text) == (Level.ERROR, "no proxy sees its disks")
    assert "hv2 = { 'C:\\Hyper-V\\web' = \"/mnt/hv2\" }" in found.remedy


def test_a_folder_that_is_not_shared(tmp_path: Path) -> None:
    (found,) = share_findings(
        _maps(_config(tmp_path)), [DocShare("other", "E:\\")], "Read", "EX\\backup"
    )
    assert (found.level, found.text) == (Level.WARNING, "no share of the host shows D:\\VMs")
    assert found.remedy == (
        "on the host: New-SmbShare -Name 'VMs' -Path 'D:\\VMs' -CachingMode None "
        "-ReadAccess 'EX\\backup'"
    )


@pytest.mark.parametrize(
    ("path", "access", "level"),
    [
        ("D:\\", ["Allow:Read:EX\\backup"], Level.OK),
        ("d:\\vms", ["Allow:Full:Everyone"], Level.OK),
        ("D:\\VMs", ["Deny:Full:Everyone"], Level.WARNING),
        ("D:\\VMs", [], Level.WARNING),
    ],
)
def test_rights_of_the_share(tmp_path: Path, path: str, access: list[str], level: Level) -> None:
    (found,) = share_findings(
        _maps(_config(tmp_path)), [DocShare("v", path, False, access)], "Read", "EX"
    )
    assert found.level is level
    assert ("Grant-SmbShareAccess" in found.remedy) is (level is Level.WARNING)


def test_a_target_s_share_has_to_let_write(tmp_path: Path) -> None:
    share = DocShare("v", "D:\\VMs", False, ["Allow:Read:EX\\backup"])
    (found,) = share_findings(_maps(_config(tmp_path)), [share], "Full", "EX\\backup")
    assert found.text == "v shows D:\\VMs, and lets nobody write it"
    assert "-AccessRight Full" in found.remedy


def test_movers_on_the_host_itself_need_no_share(tmp_path: Path) -> None:
    config = _config(tmp_path, ('"/mnt/hv1"', "'D:\\VMs'"))
    assert list(share_findings(_maps(config), [], "Read", "EX\\backup")) == []


def test_a_host_and_its_proxies_in_one(tmp_path: Path, world: World, host: SimulatedHost) -> None:
    config = _config(tmp_path, ("D:\\VMs", "C:\\Hyper-V"), ("/mnt/hv1", str(tmp_path / "hv1")))
    world.add_machine("web", "hv1", [16 * MiB])
    world.hosts["hv1"].shares = [Share("vms", "C:\\Hyper-V", {"EXAMPLE\\backup": "Full"})]
    fleet = Fleet(config, world.clock)
    with host.door() as door, looking(config, fleet, world.clock) as look:
        (node,) = checked_nodes(config, [door], world.clock, look)
    fleet.close()
    assert node.address == "127.0.0.1"
    assert {item.level for item in node.findings} == {Level.OK}
    assert [item.what for item in node.findings][-2:] == ["proxy linux1", "shares"]


def test_a_host_that_cannot_be_asked_is_told_once(tmp_path: Path, host: SimulatedHost) -> None:
    host.server.users["backup"] = "another"
    with host.door() as door:
        found = checked_host(_config(tmp_path), door, HeldClock(), lambda proxy, path: "")
    assert [item.what for item in found] == ["credentials"]


# --- clusters -------------------------------------------------------------------------------------


def test_every_node_of_a_cluster_is_asked_by_its_own_name(tmp_path: Path, world: World) -> None:
    world.add_cluster("east", ["n1", "n2", "n3"])
    world.add_machine("web", "n2", [16 * MiB])
    world.kill("n3")
    with SimulatedCluster(world, "east") as cluster:
        doors = cluster_doors("prod", ADDRESS, cluster.open_door, [])
        config = _config(
            tmp_path,
            ("[hosts.hv1]", "[hosts.prod]"),
            ('source = "hv1"', 'source = "prod"'),
            ("paths.hv1 = { 'D:\\VMs'", "paths.prod = { 'C:\\ClusterStorage\\Volume1'"),
        )
        found = checked_nodes(config, doors.open, world.clock, lambda proxy, path: "")
    assert [door.access.host for door in doors.open] == ["prod/n1", "prod/n2"]
    assert doors.down == ("n3",)
    told = {item.what: item for item in found[1].findings}
    assert told["proxy linux1"].text == "sees C:\\ClusterStorage\\Volume1\\web as /mnt/hv1/web"
    assert "[hosts.prod.credentials]" in told["double hop"].remedy


def test_a_cluster_of_which_no_node_answers_is_told_by_its_name(world: World) -> None:
    world.add_cluster("east", ["n1"])
    with SimulatedCluster(world, "east") as cluster:
        cluster.hosts["n1"].server.users["backup"] = "another"
        doors = cluster_doors("prod", ADDRESS, cluster.open_door, [])
        (door,) = doors.open
        (found,) = examined(door.access, door, world.clock).findings
    assert found.what == "credentials"
    assert "[hosts.prod.credentials]" in found.remedy


def test_a_node_that_is_down_has_a_remedy() -> None:
    assert down_finding("n3").remedy.endswith("Start-ClusterNode -Name 'n3'")
