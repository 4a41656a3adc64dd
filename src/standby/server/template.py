"""The standby.toml that `standby init` writes: valid as it stands once two paths are right."""

from __future__ import annotations

import json

_TEMPLATE = """\
# standby.toml: what is replicated, from where, to where.
# `standby check` reads it and says what is wrong; unknown keys are refused.
# Relative paths count from this file's folder. Sizes: "512 MiB", "64 GiB". Durations: "30m", "12h".

[standby]
# Who this installation is; replicas carry the name, so never change it.
installation = {installation}
# Sessions, alarms, caches. Losing it loses history, never a replica.
# state_database = "standby-state.sqlite"   # or "postgresql://user@host/database"; a URL with a
#                                           # password by reference: "env:NAME", "file:PATH"
# time_zone = "Europe/Berlin"           # of the times in this file; without it the machine's own

# --- hosts: where VMs run and where replicas are kept ---------------------------------------
# A folder host has one folder per VM, with a vm.toml and the VM's VHDX files.

[hosts.production]
kind = "folder"
path = {source}  # <- the folder with your VMs
# mover = "a"                         # on another machine: the mover there, [movers.a]

[hosts.recovery]
kind = "folder"
path = {target}  # <- the folder for the replicas, on other storage
# mover = "b"
# A file standby-target.toml in that folder is the target's own say, whoever orders otherwise:
#   keep_points_min = 3
#   keep_days_min = 7

# --- repository: digests of every replica, near the source; about 0.2 % of the data ---------

[repositories.main]
path = {repository}
# mover = "a"

# --- jobs -----------------------------------------------------------------------------------

[jobs.nightly]
source = "production"
target = "recovery"
machines = ["*"]                      # names, with * and ?
# exclude_machines = ["test*"]
# exclude_disks = ["db01:scsi:0:1"]   # VM:place
restore_points = 7
# suffix = "_replica"                 # replica name = VM name + suffix
rpo = "24h"                           # alarm when the newest point is older
# verify_writes = "cache"             # "device": read back from the disk itself, slower
# compression = "auto"                # none, fast, high; auto: none on one machine
# max_tasks = 2                       # disks at once
# max_machines = 2                    # VMs at once
# checkpoint_max_age = "12h"          # the longest a checkpoint is kept on the source
# checkpoint_max_growth = "64 GiB"    # and the most it may grow; without it: no limit
# repository = "main"                 # needed when there are several
# wan = "main"                        # the WAN accelerators that disks go over

# [jobs.nightly.schedule]             # acted on by `standby server`; without it: by hand
# daily = "22:00"                     # or ["12:00", "22:00"]; instead of daily, one of
#                                       every="4h" (from midnight, with offset="30 min"),
#                                       weekly="sat 03:00", monthly="last sun 02:00" or "15 02:00",
#                                       continuous=true (with pause="1m"), after="other-job"
# days = ["mon-fri"]
# window = "mon-fri 20:00-06:00"      # sessions begin only then
# stop_at_window_end = true           # and end with it; the next one goes on from there
# missed = "run"                      # after downtime: "run" once, or "skip"
# retries = 3                         # VMs that failed are tried again,
# retry_wait = "10 min"               # so long after

# [jobs.nightly.seed]                 # disks already put into the replica's folder, web01_replica:
#                                       each under the name of the source's file (disk0.vhdx), or
#                                       as disk0/seed.vhdx (.raw, .img)
# web01 = true
# [jobs.nightly.map]                  # a VM at the target to take over, by its folder there
# db01 = "old-db01"

# --- limits of the whole server -------------------------------------------------------------

# [limits]
# max_tasks = 4                       # disks at once, over all jobs
# task_memory = "64 MiB"              # batches in flight per disk

# --- several machines ------------------------------------------------------------------------

# [movers.a]                          # `standby mover run` at work on each
# address = "192.0.2.1:9440"
# [movers.b]
# address = "192.0.2.2:9440"

# [server]
# enrol = "0.0.0.0:9442"              # `standby server` takes enrolments of movers here; without it
#                                       `standby ca serve` does while it runs
# authority = "authority"             # folders of `standby ca init`: the installation's authority,
# identity = "identity"               # and the server's own key and certificate
# listen = "127.0.0.1:9443"           # the API of `standby server`; `standby token add` lets in
# metrics_open = false                # true: /metrics asks for no token
# [server.tls]                        # without it the API answers this machine only
# certificate = "api.pem"
# key = "api.key"

# --- WAN accelerators: little is sent that the other site has seen before --------------------

# [wan.main]                          # for jobs with wan = "main"; both movers have the role wan
# source = "a"                        # the mover near the VMs
# target = "b"                        # the one near the replicas, which keeps the global cache
# if_away = "direct"                  # disks go on without them; "wait": as for any mover
# mode = "cache"                      # "full": changes of what the target's newest point holds,
#                                       too; "auto": what is fastest; "direct": it is not used
# key = "file:/etc/standby/wan.key"   # which sources share the cache; without it: this server's

# --- traffic between machines -----------------------------------------------------------------
# What movers and server together send from these addresses to those; headers count. The `weight`
# of a job (1 by default) is its share where jobs want more than there is.

# [traffic.wan]
# from = ["10.1.0.0/16"]              # from, to, or both
# to = ["10.2.0.0/16"]
# limit = "100 Mbit/s"                # "12 MB/s", "1 Gbit/s"
# times = "mon-fri 08:00-18:00"       # or a list; without it always

# --- what `standby server` tells ------------------------------------------------------------

# [logs]
# format = "text"                     # or "json", a line per event
# level = "info"
# file = "standby-server.log"         # beside stderr; "" for none

# [webhooks.ops]                      # one POST of JSON per session result and per alarm
# url = "https://example.org/hook"    # or a reference, where the URL is a secret: "env:HOOK_URL"
# events = ["result", "alarm"]
# timeout = "10s"
# attempts = 6
# headers = {{ Authorization = "env:HOOK_TOKEN" }}
"""


def config_template(
    installation: str,
    source: str = "vms",
    target: str = "replicas",
    repository: str = "repository",
) -> str:
    """The commented text of a new standby.toml. Every value is quoted as TOML needs it."""
    return _TEMPLATE.format(
        installation=_quoted(installation),
        source=_quoted(source),
        target=_quoted(target),
        repository=_quoted(repository),
    )


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's escapes are a part of TOML's."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
