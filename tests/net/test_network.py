"""The harness itself: hosts reach each other, lines are as set, cuts are cuts, nothing is left."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from net.network import Line, Network, enter, require_network
from standby.units import KiB

MBIT = 125_000
PATIENCE_S = 60
BURST = 256 * KiB
"""What a line that was idle may carry at once: tbf is set so (see `network`), the others less."""


@pytest.fixture(autouse=True)
def _network() -> None:
    require_network()


@contextlib.contextmanager
def pumping(near: socket.socket, far: socket.socket) -> Iterator[None]:
    """Send as fast as it goes from `near` to `far` until the block ends."""
    is_over = threading.Event()

    def send() -> None:
        with contextlib.suppress(OSError):
            while not is_over.is_set():
                near.sendall(bytes(64 * KiB))

    def receive() -> None:
        buffer = bytearray(256 * KiB)
        with contextlib.suppress(OSError):
            while far.recv_into(buffer):
                pass

    threads = [threading.Thread(target=work) for work in (send, receive)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for end in (near, far):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


def spaces() -> set[str]:
    listed = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in listed.splitlines()}


def test_hosts_reach_each_other_within_and_across_sites() -> None:
    with Network() as network:
        with network["target"].listen() as listener:
            for name in ("source", "px1", "server"):
                with network[name].connect(listener) as near, listener.accept()[0] as far:
                    assert far.getpeername()[0] == network[name].address
                    near.sendall(b"hello")
                    assert far.recv(5) == b"hello"


def test_processes_run_on_their_host_and_end_with_it() -> None:
    with Network() as network:
        done = network["px1"].run(["ip", "-brief", "address", "show", "eth0"])
        assert f"{network['px1'].address}/16" in done.stdout
        with pytest.raises(OSError, match=r"px1.*ended with 3"):
            network["px1"].run([sys.executable, "-S", "-c", "raise SystemExit(3)"])
        process = network["px2"].popen(["sleep", "1000"])
        assert process.poll() is None
        inside = spaces()
    assert process.returncode == -9
    assert not [name for name in spaces() & inside if name.startswith(network._prefix)]


def test_nothing_is_left_when_the_block_raises() -> None:
    network = Network(Line(0.01))

    def fail() -> None:
        with network:
            network["source"].popen(["sleep", "1000"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not [name for name in spaces() if name.startswith(network._prefix)]


def test_a_cut_link_carries_nothing_until_it_is_restored() -> None:
    with Network() as network, network["target"].listen() as listener:
        for link in (network["source"].link, network["target"].link, network.wan):
            link.down()
            with pytest.raises(OSError):
                network["source"].connect(listener, 0.2)
            link.up()
            with network["source"].connect(listener), listener.accept()[0]:
                pass


def test_a_running_connection_notices_the_cut() -> None:
    with Network() as network, network["target"].listen() as listener:
        with network["source"].connect(listener) as near, listener.accept()[0]:
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 300)
            near.sendall(b"before")
            network.wan.down()
            near.sendall(b"after")
            with pytest.raises(TimeoutError):
                near.recv(1)


def test_counters_tell_what_the_interface_carried() -> None:
    """At least full segments with their headers; more and smaller ones on a busy machine, where the
    receiver's window shrinks, or a segment again."""
    size = 1448 * 1000
    with Network() as network, network["target"].listen() as listener:
        source, target = network["source"], network["target"]
        with source.connect(listener) as near, listener.accept()[0] as far:
            before = source.link.counters(), target.link.counters()
            payload = source.link.payload_bytes()
            sending = threading.Thread(target=near.sendall, args=(bytes(size),))
            sending.start()
            left = size
            while left:
                left -= len(far.recv(left))
            sending.join()
            payload = source.link.payload_bytes() - payload
            after = source.link.counters(), target.link.counters()
        sent = after[0].sent_bytes - before[0].sent_bytes
        received = after[1].received_bytes - before[1].received_bytes
        assert payload == pytest.approx(size, rel=0.01)
        assert sent >= 1514 * 1000
        assert received == pytest.approx(sent, rel=0.01)
        assert after[0].sent_packets - before[0].sent_packets >= 1000


def test_a_line_has_the_delay_and_the_rate_that_were_set() -> None:
    """It never carries more than its rate, nor sooner than its delay; that it carries as much, and
    as soon, shows in the moments in which the machine has time for it."""
    rate_bps = 40 * MBIT
    with Network(Line(0.02, rate_bps)) as network, network["target"].listen() as listener:
        source, target = network["source"], network["target"]
        with source.connect(listener), listener.accept()[0]:
            pass  # addresses are known to both from now on
        fastest_s = PATIENCE_S
        deadline = time.monotonic() + PATIENCE_S
        while fastest_s >= 0.08 and time.monotonic() < deadline:
            started = time.monotonic()
            with source.connect(listener), listener.accept()[0]:
                took_s = time.monotonic() - started
            assert took_s >= 0.04
            fastest_s = min(fastest_s, took_s)
        assert fastest_s < 0.08
        with source.connect(listener) as near, listener.accept()[0] as far:
            near.settimeout(None)
            first, began = target.link.counters().received_bytes, time.monotonic()
            used, seen, looked = 0.0, first, began
            with pumping(near, far):
                while not 0.85 < used < 1.02 and looked < began + PATIENCE_S:
                    time.sleep(0.5)
                    received, now = target.link.counters().received_bytes, time.monotonic()
                    # What waited while the machine had no time comes at once: since the line was
                    # empty it never was more than this.
                    assert received - first <= 1.02 * rate_bps * (now - began) + BURST
                    used = (received - seen) / rate_bps / (now - looked)
                    seen, looked = received, now
        assert 0.85 < used < 1.02


def test_a_thread_on_a_host_comes_back() -> None:
    def interfaces() -> list[str]:
        return [name for _, name in socket.if_nameindex()]

    at_home = interfaces()
    with Network() as network:
        with network["source"].inside():
            assert interfaces() == ["lo", "eth0"]
        assert interfaces() == at_home


def test_an_unknown_namespace_is_an_error() -> None:
    with pytest.raises(OSError):
        enter("/run/netns/there-is-none")
