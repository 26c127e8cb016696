"""Sockets before HTTP: listening, waiting for events, and who the peer is.

Rules of this file:
- Every socket is non-blocking: a call does what it can at once, or raises `BlockingIOError`.
- An address that cannot be had is an `OSError` here, before anything else has been touched.

It leaves out: TLS once a connection is there (tls.py), and who gets a place (places.py).
"""

from __future__ import annotations

import errno
import os
import select
import selectors
import socket
import stat
import struct
import sys
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from jwksd.httpd.tls import tls_context

BACKLOG = 4_096  # the kernel lowers it to its own limit (net.core.somaxconn, 4,096 on Linux)
SPARE_DESCRIPTORS = 64  # for the database, the log, what a restart opens, and the next
SOCKET_MODE = 0o660  # a proxy runs as another user: share a group with it
START_PATIENCE = 1.0  # seconds for another server to start in the same folder
SO_ATTACH_FILTER = 26  # of Linux, for which Python has no name: <asm-generic/socket.h>
# A program for the kernel (struct sock_filter of <linux/filter.h>: operation, jumps, operand) that
# drops a segment which asks for a new connection, and lets every other one through.
NO_SYN = (
    (0x30, 0, 0, 13),  # load the octet of the flags (RFC 9293 §3.1)
    (0x45, 0, 1, 0x02),  # SYN?
    (0x06, 0, 0, 0),  # then none of it
    (0x06, 0, 0, 0xFFFF_FFFF),  # else all of it
)
if hasattr(select, "epoll"):
    READ, WRITE = select.EPOLLIN, select.EPOLLOUT
else:
    READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Listener:
    """A listening socket, and the TLS that its connections speak.

    `host` may be a name, an address, `::` for both families, or `unix:/path`; `port` 0 takes a free
    one. `files` are a certificate chain and its private key, both PEM.
    """

    def __init__(
        self,
        host: str,
        port: int,
        files: tuple[str, str] | None = None,
        mode: int = SOCKET_MODE,
    ) -> None:
        """Listen at once.

        Raises:
            OSError: the address cannot be had.
            ValueError: the files are no certificate and its key.
        """
        self._files = files
        self.tls = tls_context(*files) if files else None
        self.socket = listen(host, port, mode)
        # What socket.accept() calls before it wraps an object in Python around the one in C, with
        # two enumerations: a twentieth of a connection's cost.
        self._accept = self.socket._accept  # type: ignore[attr-defined]
        self._family = int(self.socket.family)
        self.url = url_of(self.socket, host, files is not None)

    def reload_tls(self) -> None:
        """Read the certificate and key again, for connections to come; raises as at the start."""
        if self._files:
            self.tls = tls_context(*self._files)

    def accept(self) -> tuple[socket.SocketType, str]:
        """The next connection, and the client's address as text; raises as `socket.accept`."""
        descriptor, address = self._accept()
        connection = socket.SocketType(self._family, socket.SOCK_STREAM, 0, descriptor)
        connection.setblocking(False)
        return connection, client_of(address)

    def admit_no_more(self) -> None:
        """Let no new client connect; clients that have connected can still be accepted.

        Closing resets the connections that wait, one of which may have come after the last look.
        """
        if isinstance(self.socket, FileListener):
            self.socket.unlink()
        elif sys.platform == "linux":
            program = array("Q", b"".join(struct.pack("HBBI", *code) for code in NO_SYN))
            address, length = program.buffer_info()
            with suppress(OSError):  # a kernel without filters
                self.socket.setsockopt(
                    socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", length, address)
                )

    def close(self) -> None:
        """Free the address. May be called twice."""
        unlisten(self.socket)


class Events:
    """Watches descriptors, and says what to call when they are ready."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def watch(self, descriptor: int, events: int, react: Callable[[], object]) -> None:
        """Call `react` at READ or WRITE, or when the peer has closed; with 0, no longer."""
        if not events:
            self._selector.unregister(descriptor)
        elif descriptor in self._selector.get_map():
            self._selector.modify(descriptor, events, react)
        else:
            self._selector.register(descriptor, events, react)

    def forget(self, descriptor: int) -> None:
        """Watch a descriptor no longer; it is closed next."""
        self._selector.unregister(descriptor)

    def wait(self, seconds: float) -> list[Callable[[], object]]:
        """The reactions to call now; waits for so many seconds at most."""
        return [key.data for key, _ in self._selector.select(seconds)]

    def close(self) -> None:
        self._selector.close()


class Epoll(Events):
    """`Events` on Linux without the layer of `selectors`, which costs a third of a turn."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._reactions: dict[int, Callable[[], object]] = {}

    def watch(self, descriptor: int, events: int, react: Callable[[], object]) -> None:
        if not events:
            self._epoll.unregister(descriptor)
            del self._reactions[descriptor]
        elif descriptor in self._reactions:
            self._epoll.modify(descriptor, events)
        else:
            self._epoll.register(descriptor, events)
            self._reactions[descriptor] = react

    def forget(self, descriptor: int) -> None:
        del self._reactions[descriptor]  # the kernel does the same when it is closed

    def wait(self, seconds: float) -> list[Callable[[], object]]:
        reactions = self._reactions
        return [reactions[ready] for ready, _ in self._epoll.poll(seconds) if ready in reactions]

    def close(self) -> None:
        self._epoll.close()


def events() -> Events:
    """The fastest `Events` that the system has."""
    return Epoll() if hasattr(select, "epoll") else Events()


def listen(host: str, port: int, mode: int = SOCKET_MODE) -> socket.socket:
    """A listening socket; `OSError` if the address cannot be had."""
    if host.startswith("unix:"):
        listener = listen_unix(host[len("unix:") :], mode)
    else:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        both = host == "::" and socket.has_dualstack_ipv6()
        listener = socket.create_server(
            address, family=family, backlog=BACKLOG, dualstack_ipv6=both
        )
        # Accepted sockets inherit it. Without it, an answer may wait 40 ms for the one before it.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setblocking(False)
    return listener


class FileListener(socket.socket):
    """A listening socket in the file system."""

    file: os.stat_result | None = None  # of the socket: another server may have taken the name

    def unlink(self) -> None:
        """Remove the file, if it is still its own."""
        with suppress(OSError):
            path = self.getsockname()
            if self.file and os.path.samestat(os.stat(path), self.file):
                os.unlink(path)


def listen_unix(path: str, mode: int = SOCKET_MODE) -> socket.socket:
    """A listening socket in the file system, for the owner and the group of the process."""
    listener = FileListener(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with alone_in(os.path.dirname(path) or "."):
            if is_abandoned(path):
                os.unlink(path)
            listener.bind(path)
            listener.file = os.stat(path)
            os.chmod(path, mode)
            listener.listen(BACKLOG)
    except OSError:
        unlisten(listener)
        raise
    return listener


@contextmanager
def alone_in(folder: str) -> Iterator[None]:
    """Wait while another server starts in this folder; a second at most, no start takes longer.

    Without this, two servers that start together may both find an abandoned socket, and the slower
    one removes the new socket of the other. After the second this one goes on: any program that may
    read the folder can hold the lock for ever, and must not keep a server from starting.
    """
    import fcntl  # here, since Windows has neither this nor sockets in files

    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that may be written and not be read
        yield
        return
    try:
        until = time.monotonic() + START_PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    break
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)  # and with it the lock


def is_abandoned(path: str) -> bool:
    """Whether a socket is there that nobody listens on."""
    if not (os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode)):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a server with a full backlog is alive, and busy
        return probe.connect_ex(path) == errno.ECONNREFUSED


def unlisten(listener: socket.socket) -> None:
    """Close a listening socket, and remove its file if it has one that is still its own."""
    if isinstance(listener, FileListener):
        listener.unlink()
    listener.close()


def url_of(listener: socket.socket, host: str, tls: bool) -> str:
    """The URL by which a client on this machine finds the server."""
    if host.startswith("unix:"):
        return host
    name = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    port = listener.getsockname()[1]
    return f"{'https' if tls else 'http'}://{f'[{name}]' if ':' in name else name}:{port}"


def client_of(address: Any) -> str:
    """A peer's address as text: no scope, and IPv4 as IPv4 also on a dual-stack socket."""
    if not isinstance(address, tuple):
        return "unix"
    host: str = address[0].partition("%")[0]
    return host[len("::ffff:") :] if host.startswith("::ffff:") and "." in host else host


def descriptor_room(connections: int) -> int:
    """Ask the system for enough descriptors; how many connections fit into those that it gives."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return connections
    wanted = connections + SPARE_DESCRIPTORS
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    return max(1, soft - SPARE_DESCRIPTORS)
