"""A real HTTP(S) server that speaks WS-Management's shell part as pywinrm expects it.

It stands for a Windows host's WinRM service: shells, commands, chunked streams, time-outs, faults,
quotas. What a command does is the `Executor`'s business, in a thread per command. Every fault that
a host can show is a knob (`faults.py`), and what went over the wire is counted and kept.
"""

from __future__ import annotations

from hyperv.wsman.faults import Faults
from hyperv.wsman.server import Tls, WsmanServer
from hyperv.wsman.shells import CommandLine, Executor, Quotas, Result
from hyperv.wsman.signing import Signing

__all__ = ["CommandLine", "Executor", "Faults", "Quotas", "Result", "Signing", "Tls", "WsmanServer"]
