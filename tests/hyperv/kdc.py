"""A real MIT KDC of its own, unprivileged, on a free port: realm EXAMPLE.TEST."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from judging import require_tool
from simulation.installed import free_port

REALM = "EXAMPLE.TEST"
HOST = "hv1.example.test"
PATIENCE_S = 20

_KRB5_CONF = """\
[libdefaults]
    default_realm = {realm}
    dns_lookup_kdc = false
    dns_lookup_realm = false
    dns_canonicalize_hostname = false
    rdns = false
    udp_preference_limit = 1
    kdc_timesync = 0
    default_ccache_name = FILE:{folder}/tickets
[realms]
    {realm} = {{
        kdc = 127.0.0.1:{port}
    }}
    SILENT.TEST = {{
        kdc = 127.0.0.1:{silent}
    }}
[domain_realm]
    .example.test = {realm}
"""

_KDC_CONF = """\
[kdcdefaults]
    kdc_listen = ""
    kdc_tcp_listen = 127.0.0.1:{port}
[realms]
    {realm} = {{
        database_name = {folder}/principal
        key_stash_file = {folder}/stash
        max_life = 1h
        supported_enctypes = aes256-cts-hmac-sha1-96:normal
    }}
[logging]
    kdc = FILE:{folder}/kdc.log
"""


class Kdc:
    """The files of a realm, and its KDC while its context lasts."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self._port, silent = free_port(), free_port()
        values = {"realm": REALM, "folder": folder, "port": self._port, "silent": silent}
        (folder / "krb5.conf").write_text(_KRB5_CONF.format(**values))
        (folder / "kdc.conf").write_text(_KDC_CONF.format(**values))
        self._process: subprocess.Popen[bytes] | None = None
        self._run("kdb5_util", "create", "-s", "-P", "master", "-r", REALM)

    @property
    def environment(self) -> dict[str, str]:
        """For every process and thread that speaks of this realm."""
        return {
            "KRB5_CONFIG": str(self.folder / "krb5.conf"),
            "KRB5_KDC_PROFILE": str(self.folder / "kdc.conf"),
            "KRB5RCACHEDIR": str(self.folder),
            "KRB5CCNAME": f"FILE:{self.folder}/tickets",
        }

    def change(self, *queries: str) -> None:
        """Let the administrator's program do it, one line each."""
        self._run("kadmin.local", "-r", REALM, text="\n".join(queries) + "\n")

    @property
    def sign_ins(self) -> int:
        """How often it gave somebody a ticket to get tickets with."""
        lines = (self.folder / "kdc.log").read_text().splitlines()
        return sum("AS_REQ" in line and ": ISSUE:" in line for line in lines)

    def _run(self, name: str, *words: str, text: str = "") -> None:
        done = subprocess.run(
            [str(require_tool(name)), *words],
            env=os.environ | self.environment,
            input=text,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert not [line for line in done.stderr.splitlines() if "rror" in line], done.stderr

    def _listens(self) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self._port), 1).close()
            return True
        return False

    @contextlib.contextmanager
    def running(self, *before: str, **environment: str) -> Iterator[None]:
        """The KDC answers; `before` is put before its command."""
        process = subprocess.Popen(
            [*before, str(require_tool("krb5kdc")), "-n", "-r", REALM],
            env=os.environ | self.environment | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            until = time.monotonic() + PATIENCE_S
            while not self._listens():
                assert process.poll() is None, (self.folder / "kdc.log").read_text()
                assert time.monotonic() < until, "the KDC does not listen"
                time.sleep(0.01)
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # what stands before the command, and its child
            process.wait(PATIENCE_S)
            until = time.monotonic() + PATIENCE_S
            while self._listens():
                assert time.monotonic() < until, "the KDC does not end"
                time.sleep(0.01)
