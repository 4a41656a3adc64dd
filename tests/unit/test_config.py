"""standby.toml: what is read, what is refused and with which hint."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from datetime import time, timedelta
from pathlib import Path

import pytest

from standby.errors import ConfigurationError, UnknownName
from standby.model.job import ReplicationJob
from standby.server.config import Config, Limits, MoverConfig, ProxyConfig, load_config
from standby.server.schedule import Calendar, CalendarTime, Schedule
from standby.server.template import config_template
from standby.server.wan_config import WanConfig
from standby.server.watch_config import LogConfig
from standby.strict_toml import format_duration, parse_duration
from standby.units import GiB, MiB

MINIMAL = """
[standby]
installation = "main-site"
[hosts.prod]
kind = "folder"
path = "vms"
[hosts.dr]
kind = "folder"
path = "/srv/replicas"
[repositories.main]
path = "repository"
[jobs.nightly]
source = "prod"
target = "dr"
machines = ["web*", "db01"]
"""


def load(folder: Path, text: str) -> Config:
    (folder / "standby.toml").write_text(text, encoding="utf-8")
    return load_config(folder)


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(folder, text)
    return str(caught.value).removeprefix(f"{folder / 'standby.toml'}: ")


def test_a_minimal_file_has_every_default_filled_in(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL)
    assert config.installation == "main-site"
    assert config.path == tmp_path / "standby.toml"
    assert config.state_database == tmp_path / "standby-state.sqlite"
    assert config.hosts["prod"].path == tmp_path / "vms"
    assert config.hosts["dr"].path == Path("/srv/replicas")
    assert config.repositories == {"main": tmp_path / "repository"}
    assert config.jobs == {
        "nightly": ReplicationJob("nightly", "prod", "dr", "main", ("web*", "db01"))
    }
    assert config.job("nightly").rpo_s == 0
    assert (config.movers, config.proxies, config.schedules) == ({}, {}, {})
    assert config.limits == Limits(max_tasks=4, task_memory=64 * MiB)


def test_every_key_of_a_job_is_read(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        MINIMAL
        + """
exclude_machines = ["web9"]
exclude_disks = ["db01:scsi:0:1"]
repository = "main"
restore_points = 3
suffix = "-dr"
compression = "high"
verify_writes = "device"
rpo = "1d12h"
max_tasks = 5
max_machines = 6
checkpoint_max_age = "30m"
checkpoint_max_growth = "64 GiB"
seed = { web01 = true, web02 = false }
map = { db01 = "old-db" }
schedule = { daily = "22:00" }
""",
    )
    assert config.job("nightly") == ReplicationJob(
        name="nightly",
        source="prod",
        target="dr",
        repository="main",
        machines=("web*", "db01"),
        exclude_machines=("web9",),
        exclude_disks=("db01:scsi:0:1",),
        restore_points=3,
        suffix="-dr",
        compression="high",
        verify_writes="device",
        rpo_s=36 * 3600,
        max_tasks=5,
        max_machines=6,
        checkpoint_max_age_s=1800,
        checkpoint_max_growth=64 * GiB,
        seed={"web01": True, "web02": False},
        map={"db01": "old-db"},
    )
    assert config.schedules == {"nightly": Schedule(Calendar((CalendarTime(time(22)),)))}


def test_movers_proxies_and_limits_are_read(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        MINIMAL
        + """
[movers.px1]
address = "px1.example:9440"
[proxies.px1]
mover = "px1"
max_tasks = 3
paths = { prod = { 'C:\\ClusterStorage\\Volume1' = "/mnt/csv1" } }
[proxies.here]
[limits]
max_tasks = 8
task_memory = "128 MiB"
""",
    )
    assert config.movers == {"px1": MoverConfig("px1", "px1.example:9440")}
    assert config.proxies == {
        "px1": ProxyConfig("px1", "px1", 3, {"prod": {"C:\\ClusterStorage\\Volume1": "/mnt/csv1"}}),
        "here": ProxyConfig("here"),
    }
    assert config.limits == Limits(max_tasks=8, task_memory=128 * MiB)


def test_an_unknown_job_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="no job named 'weekly'; known: nightly"):
        load(tmp_path, MINIMAL).job("weekly")


def test_the_state_database_may_stand_elsewhere(tmp_path: Path) -> None:
    text = MINIMAL.replace("[hosts.prod]", 'state_database = "../state/x.sqlite"\n[hosts.prod]', 1)
    assert load(tmp_path, text).state_database == tmp_path.parent / "state" / "x.sqlite"


JOB = MINIMAL  # keys appended to it belong to the job


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (JOB + "restore_point = 3", "[jobs.nightly] restore_point: unknown key. did you mean "
         "restore_points?"),
        (JOB + "zzz = 3", "[jobs.nightly] zzz: unknown key. known here: source, target,"),
        (MINIMAL + "[job.x]", "job: unknown key. did you mean jobs?"),
        (MINIMAL.replace("kind", "knd", 1), "[hosts.prod] knd: unknown key. did you mean kind?"),
        (MINIMAL.replace("installation", "instalation"), "[standby] instalation: unknown key. did "
         "you mean installation?"),
        (MINIMAL.replace('kind = "folder"', "", 1), "[hosts.prod] kind: is missing. it must be a "
         "text"),
        (MINIMAL.replace("machines", "max_machines"), "[jobs.nightly] machines: is missing"),
        (MINIMAL.replace("source =", "sorce ="), "[jobs.nightly] sorce: unknown key. did you mean "
         "source?"),
        (MINIMAL.replace('"folder"', '"foldr"', 1), "[hosts.prod] kind: 'foldr' is not known. "
         "did you mean folder?"),
        (MINIMAL.replace('"vms"', '""'), "[hosts.prod] path: is empty"),
        (MINIMAL.replace('"vms"', "3"), "[hosts.prod] path: is a number (3). it must be a text"),
        (JOB + 'restore_points = "7"', "[jobs.nightly] restore_points: is a text ('7'). it must "
         "be a whole number"),
        (JOB + "restore_points = true", "restore_points: is true or false (True). it must be"),
        (JOB + "restore_points = 0", "restore_points: 0 is out of range. from 1 to 1000"),
        (JOB + 'compression = "zstd"', "compression: 'zstd' is not known. one of auto, none,"),
        (JOB + 'verify_writes = "devise"', "verify_writes: 'devise' is not known. did you mean "
         "device?"),
        (JOB + "rpo = 24", "[jobs.nightly] rpo: is a number (24). it must be a duration such as"),
        (JOB + 'rpo = "24"', "rpo: '24' is not a duration; write for example 30m, 12h or 7d"),
        (JOB + 'checkpoint_max_age = "10s"', "checkpoint_max_age: '10s' is too short. at least 1m"),
        (JOB + 'checkpoint_max_growth = "many"', "checkpoint_max_growth: 'many' is not a size"),
        (JOB + "checkpoint_max_growth = 1.5", "it must be a size such as"),
        (JOB + 'suffix = "/x"', "suffix: '/x' is not usable"),
        (JOB + 'exclude_disks = ["db01"]', "exclude_disks: 'db01' names no disk. write VM:place"),
        (JOB + "exclude_machines = [3]", "exclude_machines: is a list. it must be a list of texts"),
        (JOB + 'seed = { web = "yes" }', "[jobs.nightly.seed] web: is a text ('yes'). it must be"),
        (JOB + "seed = { a = true }\nmap = { a = 'b' }", "map: a is in seed too"),
        (JOB + "schedule = { dayly = '1' }", "[jobs.nightly.schedule] dayly: unknown key. did you "
         "mean daily?"),
        (JOB + 'repository = "mian"', "there is no repository named 'mian'. did you mean main?"),
        (MINIMAL.replace('"prod"', '"prd"'), "[jobs.nightly] source: there is no source named "
         "'prd'. did you mean prod?"),
        (MINIMAL.replace('target = "dr"', 'target = "prod"'), "target: is the source, prod"),
        (MINIMAL.replace('["web*", "db01"]', "[]"), "[jobs.nightly] machines: names no VM"),
        (MINIMAL.replace('["web*", "db01"]', '[""]'), "machines: holds an empty name"),
        (MINIMAL.replace("[repositories.main]\npath = \"repository\"", ""), "[jobs.nightly] "
         "repository: is missing. add a table: [repositories.main]"),
        (MINIMAL + "[repositories.second]\npath = 'x'", "[jobs.nightly] repository: is missing. "
         "one of main, second"),
        (MINIMAL.replace('installation = "main-site"', ""), "[standby] installation: is missing. "
         "give this installation a name"),
        (MINIMAL.replace("main-site", "main site"), "installation: 'main site' is not a usable"),
        (MINIMAL.replace("[hosts.prod]", '[hosts."a b"]'), "[hosts] a b: 'a b' is not a usable"),
        (MINIMAL.replace("[hosts.prod]", 'state_database = "mysql://x/y"\n[hosts.prod]'),
         "[standby] state_database: is no PostgreSQL URL"),
        (MINIMAL.replace("[hosts.prod]", 'state_database = "postgresql://me:pw@x/y"\n[hosts.prod]'),
         "[standby] state_database: a secret must not stand in this file"),
        (MINIMAL + "[proxies.p]\nmover = 'm'", "[proxies.p] mover: there is no mover named 'm'. "
         "known: none"),
        (MINIMAL + "[proxies.p]\npaths = { prd = {} }", "there is no host named 'prd'. did you"),
        (MINIMAL + "[limits]\ntask_memory = '1 MiB'", "task_memory: 1048576 bytes are too few"),
        ("[standby\n", "is not TOML: Expected ']'"),
        ("hosts = 3\n[standby]\ninstallation = 'x'", "hosts: is a number (3). it must be a table"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_place_and_hint(
    tmp_path: Path, text: str, message: str
) -> None:
    assert message in refusal(tmp_path, text)


CLUSTER = """
[hosts.hv]
kind = "hyperv-cluster"
address = "hv.example"
credentials = { username = "backup", password = "env:HV_PASSWORD" }
"""
NODES = 'nodes = ["a.example", "b.example"]\n'
HYPERV = """
[hosts.hv]
kind = "hyperv"
address = "hv01.example"
credentials = { username = "EXAMPLE\\\\backup", password = "env:HV_PASSWORD" }
"""
JOB = """
[jobs.j]
source = "hv"
machines = ["web"]
target = "TARGET"
repository = "main"
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[hosts.hv]\nkind = "hyperv-cluster"\nnodes = ["a", "b"]',
         "[hosts.hv] address: is missing"),
        (HYPERV.replace("env:HV_PASSWORD", "hunter2"), "[hosts.hv.credentials] password: a secret "
         'must not stand in this file. write a reference: password = "env:NAME"'),
        ('[hosts.hv]\nkind = "hyperv"', "[hosts.hv] address: is missing"),
        (HYPERV.replace("address", "adress"), "[hosts.hv] adress: unknown key. did you mean addr"),
        (HYPERV + "port = 3", "[hosts.hv] port: unknown key"),
        (HYPERV.replace("hv01.example", "hv01/x"), "[hosts.hv] address: 'hv01/x' is no address"),
        (HYPERV + "path = 'x'", "[hosts.hv] path: unknown key"),
        (HYPERV + "audit_every = '3h'", "[hosts.hv] audit_every: '3h' is too short. at least 1d"),
        (HYPERV + "checkpoints = { consistency = 'vss' }",
         "[hosts.hv.checkpoints] consistency: 'vss' is not known. one of application, crash"),
        (HYPERV + "checkpoints = { consistency = 'crash', fall_back = true }",
         '[hosts.hv.checkpoints] fall_back: has no meaning with consistency = "crash"'),
        (HYPERV + "checkpoints = { kopy = true }", "[hosts.hv.checkpoints] kopy: unknown key"),
        (HYPERV + "max_tasks = 0", "[hosts.hv] max_tasks: 0 is out of range"),
        (HYPERV + JOB.replace('"hv"', '"prod"').replace("TARGET", "hv"),
         "[jobs.j] target: [hosts.hv] of kind hyperv says no folder for replicas"),
        (HYPERV + "replicas = 'D:\\Replicas'\n"
         + JOB.replace('"hv"', '"prod"').replace("TARGET", "hv"),
         "[jobs.j] target: no proxy on this machine sees D:\\Replicas of host hv"),
        ("[proxies.p]\npaths = { 'prod/hv1' = {} }", "host prod has no nodes"),
        (HYPERV + "[proxies.p]\npaths = { 'hv/hv1' = {} }", "host hv has no nodes"),
        (CLUSTER + NODES + "[proxies.p]\npaths = { 'hv/c' = {} }", "there is no node named 'c'"),
        (CLUSTER + NODES + "[proxies.p]\npaths = { 'hw/a' = {} }", "there is no host named 'hw'"),
        (CLUSTER + "[proxies.p]\npaths = { 'hv/' = {} }", "names no node"),
        (CLUSTER + "[proxies.p]\npaths = { 'hv/a.example' = {} }", "names no node"),
    ],
)  # fmt: skip
def test_what_a_hyperv_host_cannot_have_is_refused(tmp_path: Path, text: str, message: str) -> None:
    found = refusal(tmp_path, MINIMAL + text)
    assert message in found
    assert "hunter2" not in found


def test_a_hyperv_target_has_its_folder_where_a_proxy_here_sees_it(tmp_path: Path) -> None:
    text = MINIMAL + HYPERV + "replicas = 'D:\\Replicas'\n"
    text += JOB.replace('"hv"', '"prod"').replace("TARGET", "hv")
    text += "networks = { LAN = 'Blue' }\nwithout_vtpm = true\n"
    text += "[proxies.p.paths.hv]\n'D:\\' = '/mnt/d'\n"
    config = load(tmp_path, text)
    assert config.hosts["hv"].path == Path("/mnt/d/Replicas")
    assert config.jobs["j"].networks == {"LAN": "Blue"}
    assert config.jobs["j"].without_vtpm


def test_a_hyperv_host_is_read_with_its_defaults(tmp_path: Path) -> None:
    text = MINIMAL + HYPERV + "max_tasks = 3\n" + JOB.replace("TARGET", "dr")
    host = load(tmp_path, text).hosts["hv"]
    assert host.hyperv is not None
    (access,) = host.hyperv.accesses
    assert (access.url, access.transport) == ("https://hv01.example:5986/wsman", "ntlm")
    assert (access.username, access.password) == ("EXAMPLE\\backup", "env:HV_PASSWORD")
    rules = host.hyperv
    assert (rules.is_application, rules.fall_back, rules.is_copy) == (True, True, True)
    assert rules.audit_every == timedelta(days=30)
    assert host.max_tasks == 3
    assert host.shown == "hv01.example"


def test_a_missing_file_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"standby.toml: no such file. `standby init`"):
        load_config(tmp_path)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "standby.toml").write_bytes(b"[standby]\n# \xff")
    with pytest.raises(ConfigurationError, match=r"is not UTF-8 text \(byte 12\)"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30m", 1800), ("12h", 43200), ("7d", 604800), ("1d 12h", 129600), ("90S", 90), ("0s", 0),
     ("10 min", 600), ("2 days 3 hours", 183600)],
)  # fmt: skip
def test_durations_have_units(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "12", "h", "1.5h", "-1h", "1h2d", "1 week"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


def test_the_template_is_valid_as_it_stands(tmp_path: Path) -> None:
    config = load(tmp_path, config_template("main-site"))
    assert config.installation == "main-site"
    assert config.hosts["production"].path == tmp_path / "vms"
    assert config.hosts["recovery"].path == tmp_path / "replicas"
    assert config.job("nightly").rpo_s == 86400


@pytest.mark.parametrize("name", ['C:\\VMs\\"x"', "/srv/größe 😀", "tab\there", "del\x7f"])
def test_any_path_survives_the_template(name: str) -> None:
    read = tomllib.loads(config_template("x", source=name))
    assert read["hosts"]["production"]["path"] == name


def test_the_commented_keys_of_the_template_are_the_ones_that_are_known(tmp_path: Path) -> None:
    lines = []
    for line in config_template("x").splitlines():
        bare = line.removeprefix("# ")
        is_key = line.startswith("# ") and ("= " in bare or bare.startswith("["))
        lines.append(bare if is_key and "keep_" not in line else line)
    config = load(tmp_path, "\n".join(lines))
    job = config.job("nightly")
    assert job.exclude_disks == ("db01:scsi:0:1",)
    assert (job.seed, job.map) == ({"web01": True}, {"db01": "old-db01"})
    assert config.limits == Limits()
    assert config.webhooks["ops"].headers == {"Authorization": "env:HOOK_TOKEN"}
    assert config.logs == LogConfig(file=tmp_path / "standby-server.log")
    assert (job.wan, config.hosts["production"].mover) == ("main", "a")
    assert config.wans == {"main": WanConfig("main", "a", "b", "file:/etc/standby/wan.key")}


def test_reading_a_configuration_imports_no_database_and_no_kernels() -> None:
    script = (
        "import sys, standby.server.config\n"
        "heavy = {'sqlalchemy', 'sqlite3', 'numpy', 'msgspec', 'click', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
