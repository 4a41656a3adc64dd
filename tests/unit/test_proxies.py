"""Which proxies can take a disk, and how they see its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from standby.errors import ConfigurationError
from standby.host.seen_paths import mapped_path
from standby.model.job import ReplicationJob
from standby.server.config import Config, HostConfig, ProxyConfig, RepositoryConfig, load_config
from standby.server.proxies import (
    all_proxies,
    capacities,
    eligible_proxies,
)

JOB = ReplicationJob("nightly", "prod", "dr", "main", ("*",))


def config_of(*proxies: ProxyConfig, prod: str = "hv1", dr: str = "") -> Config:
    return Config(
        Path("standby.toml"),
        "main-site",
        Path("state"),
        {
            "prod": HostConfig("prod", "folder", Path("/vms"), prod, max_tasks=3),
            "dr": HostConfig("dr", "folder", Path("/srv/replicas"), dr),
        },
        {"main": Path("/srv/repository")},
        {"nightly": JOB},
        proxies={proxy.name: proxy for proxy in proxies},
        stores={"main": RepositoryConfig("main", Path("/srv/repository"), "", 5)},
    )


@pytest.mark.parametrize(
    ("path", "folders", "expected"),
    [
        ("/vms/web01/a.vhdx", {"/vms": "/mnt/vms"}, "/mnt/vms/web01/a.vhdx"),
        ("/vms/web01/a.vhdx", {"/vms/": "/mnt/vms/"}, "/mnt/vms/web01/a.vhdx"),
        ("/vms//web01/./a.vhdx", {"/vms": "/mnt"}, "/mnt/web01/a.vhdx"),
        ("/vms/web01/a.vhdx", {"/": "/mnt"}, "/mnt/vms/web01/a.vhdx"),
        ("/vms/web01/a.vhdx", {"/vms": "/"}, "/web01/a.vhdx"),
        ("/vms/web01/a.vhdx", {"/vms": "/short", "/vms/web01": "/long"}, "/long/a.vhdx"),
        ("/vms/web01/a.vhdx", {"/vms/web01": "/long", "/vms": "/short"}, "/long/a.vhdx"),
        ("/vms/web01/a.vhdx", {"/vms/web": "/no"}, None),
        ("/VMS/web01/a.vhdx", {"/vms": "/no"}, None),
        ("/vms/../etc/passwd", {"/vms": "/no"}, None),
        ("/vms/a.vhdx", {}, None),
        ("/vms/a.vhdx", {"/vms/../x": "/no"}, None),
        ("/vms", {"/vms": "/mnt/vms/"}, "/mnt/vms"),
        ("/vms/a.vhdx", {"/vms": "csv1:"}, "csv1:a.vhdx"),
        ("/vms/a.vhdx", {"/vms": "csv1:folder"}, "csv1:folder/a.vhdx"),
        ("/vms/a.vhdx", {"/vms": "D:\\"}, "D:\\a.vhdx"),
        ("C:\\VMs\\Web\\a.vhdx", {"c:\\vms": "/mnt"}, "/mnt/Web/a.vhdx"),
        ("C:\\VMs\\Web\\a.vhdx", {"C:/VMS/": "/mnt"}, "/mnt/Web/a.vhdx"),
        ("C:\\VMs\\a.vhdx", {"C:\\": "/mnt/c"}, "/mnt/c/VMs/a.vhdx"),
        ("C:\\VMs\\a.vhdx", {"C:\\VMs": "E:\\csv\\"}, "E:\\csv\\a.vhdx"),
        ("C:\\VMs\\a.vhdx", {"D:\\VMs": "/no"}, None),
        ("C:\\VMs\\..\\a.vhdx", {"C:\\": "/no"}, None),
        ("\\\\?\\C:\\VMs\\a.vhdx", {"C:\\VMs": "/mnt"}, "/mnt/a.vhdx"),
        ("\\\\Files\\Share\\x\\a.vhdx", {"\\\\files\\share": "/smb"}, "/smb/x/a.vhdx"),
        ("\\\\?\\UNC\\files\\share\\a.vhdx", {"\\\\files\\share\\": "/smb"}, "/smb/a.vhdx"),
        ("\\\\files\\other\\a.vhdx", {"\\\\files\\share": "/no"}, None),
        ("/C:/VMs/a.vhdx", {"C:\\VMs": "/no"}, None),
    ],
)
def test_a_path_is_mapped_by_the_longest_folder(
    path: str, folders: dict[str, str], expected: str | None
) -> None:
    assert mapped_path(path, folders) == expected


def test_a_host_without_proxies_is_served_by_its_own_mover() -> None:
    config = config_of()
    source = eligible_proxies(config, JOB, "source", ["/vms/web01/a.vhdx"])
    assert tuple(source.eligible) == ("host:prod",)
    assert source.eligible["host:prod"].proxy.mover == "hv1"
    assert source.eligible["host:prod"].paths == ("/vms/web01/a.vhdx",)
    assert tuple(eligible_proxies(config, JOB, "target", ["/srv/replicas/x"]).eligible) == (
        "host:dr",
    )


def test_a_configured_proxy_takes_the_place_of_the_hosts_own_mover() -> None:
    paths = {"prod": {"/vms": "/mnt/vms"}}
    config = config_of(ProxyConfig("px1", "m1", 2, paths, "source"))
    source = eligible_proxies(config, JOB, "source", ["/vms/a/1.vhdx", "/vms/a/2.vhdx"])
    assert tuple(source.eligible) == ("px1",)
    assert source.eligible["px1"].paths == ("/mnt/vms/a/1.vhdx", "/mnt/vms/a/2.vhdx")
    assert tuple(eligible_proxies(config, JOB, "target", ["/srv/replicas/x"]).eligible) == (
        "host:dr",
    )
    assert set(all_proxies(config)) == {"px1", "host:prod", "host:dr"}


def test_a_proxy_on_the_hosts_machine_sees_what_the_host_sees() -> None:
    config = config_of(ProxyConfig("px1", "hv1"), ProxyConfig("px2", ""))
    assert tuple(eligible_proxies(config, JOB, "source", ["/vms/a"]).eligible) == ("px1",)
    target = eligible_proxies(config, JOB, "target", ["/srv/replicas/a"])
    assert tuple(target.eligible) == ("px2",)
    assert set(all_proxies(config)) == {"px1", "px2"}


def test_of_no_files_who_sees_a_part_is_named_with_what_it_sees() -> None:
    parts = {"prod": {"/vms/web": "/mnt/web", "/vms/db/": "D:\\db", "/other": "/mnt/other"}}
    config = config_of(
        ProxyConfig("all", "m1", 2, {"prod": {"/": "/host"}}),
        ProxyConfig("parts", "m2", 2, parts),
        ProxyConfig("none", "m3", 2, {"prod": {"/other": "/mnt/other", "/vmsx": "/mnt/x"}}),
    )
    found = eligible_proxies(config, JOB, "source", [])
    assert {name: item.paths for name, item in found.eligible.items()} == {
        "all": ("/host/vms",),
        "parts": ("/mnt/web", "D:\\db"),
    }
    assert found.refused == {"none": "none of its paths for host prod leads to /vms"}


def test_every_layer_of_a_chain_must_be_seen() -> None:
    config = config_of(ProxyConfig("px1", "m1", 2, {"prod": {"/vms": "/mnt"}}))
    source = eligible_proxies(config, JOB, "source", ["/vms/a/child.vhdx", "/golden/base.vhdx"])
    assert source.eligible == {}
    assert "/golden/base.vhdx" in source.refused["px1"]


def test_who_cannot_says_why() -> None:
    paths = {"prod": {"/vms": "/mnt"}}
    config = config_of(
        ProxyConfig("px1", "m1", 2, paths),
        ProxyConfig("px2", "m2", 2, paths, "target"),
        ProxyConfig("px3", "m3", 2, paths),
        ProxyConfig("px4", "m4", 2, {"prod": {"/other": "/mnt"}}),
        ProxyConfig("px5", "m5", 2, paths),
    )
    job = replace(JOB, proxies=("px1", "px2", "px3", "px4"))
    found = eligible_proxies(config, job, "source", ["/vms/a"], avoid={"px3": "mover px3 died"})
    assert list(found.eligible) == ["px1"]
    assert found.refused == {
        "px2": "a proxy of the target side only",
        "px3": "mover px3 died",
        "px4": "none of its paths for host prod leads to /vms/a",
        "px5": "not among the job's proxies",
    }


def test_a_list_in_the_job_leaves_the_hosts_own_mover_out() -> None:
    config = config_of(ProxyConfig("px1", "m1", 2, {}))
    found = eligible_proxies(config, replace(JOB, proxies=("px1",)), "source", ["/vms/a"])
    assert found.eligible == {}
    assert set(found.refused) == {"px1"}


def test_capacities_are_those_of_the_configuration() -> None:
    config = config_of(ProxyConfig("px1", "m1", 2, {"prod": {"/vms": "/mnt"}}))
    limits = capacities(config)
    assert limits.server == 4
    assert limits.hosts == {"prod": 3}
    assert limits.repositories == {"main": 5}
    assert limits.proxies == {"px1": 2, "host:dr": 4}
    assert capacities(config_of()).proxies == {"host:prod": 3, "host:dr": 4}


CONFIGURED = """
[standby]
installation = "main-site"
[movers.m1]
address = "px1.example:9440"
[hosts.prod]
kind = "folder"
path = 'D:\\VMs'
mover = "m1"
max_tasks = 6
[hosts.dr]
kind = "folder"
path = "replicas"
[repositories.main]
path = "data:repository"
mover = "m1"
max_tasks = 8
[proxies.px1]
mover = "m1"
side = "source"
[jobs.nightly]
source = "prod"
target = "dr"
machines = ["*"]
proxies = ["px1"]
priority = 2
weight = 4
"""


def test_the_file_says_where_things_are_and_how_much_they_take(tmp_path: Path) -> None:
    (tmp_path / "standby.toml").write_text(CONFIGURED, encoding="utf-8")
    config = load_config(tmp_path)
    assert config.hosts["prod"] == HostConfig("prod", "folder", Path("D:\\VMs"), "m1", 6)
    assert config.hosts["dr"] == HostConfig("dr", "folder", tmp_path / "replicas")
    assert config.stores["main"] == RepositoryConfig("main", Path("data:repository"), "m1", 8)
    assert config.repositories == {"main": Path("data:repository")}
    assert config.proxies["px1"].side == "source"
    job = config.job("nightly")
    assert (job.proxies, job.target_proxies, job.priority, job.weight) == (("px1",), (), 2, 4)
    found = eligible_proxies(config, job, "source", ["D:\\VMs\\web01\\a.vhdx"])
    assert found.eligible["px1"].paths == ("D:\\VMs\\web01\\a.vhdx",)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('proxies = ["px1"]', 'proxies = ["px2"]', "there is no proxy named 'px2'. did you mean"),
        ('proxies = ["px1"]', 'target_proxies = ["px1"]', "px1 is a proxy of the source side only"),
        ('side = "source"', 'side = "left"', "'left' is not known"),
        ("priority = 2", "priority = 11", "out of range"),
        ("weight = 4", "weight = 0", "out of range"),
        ("max_tasks = 6", "max_tasks = 0", "out of range"),
        ("max_tasks = 8", 'max_tasks = "8"', "it must be a whole number"),
        ('mover = "m1"\nmax_tasks = 6', 'mover = "m2"', "there is no mover named 'm2'"),
        ('"data:repository"', '" "', "is empty"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert CONFIGURED.count(old) == 1
    (tmp_path / "standby.toml").write_text(CONFIGURED.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        load_config(tmp_path)
    assert message in str(caught.value)
