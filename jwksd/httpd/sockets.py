"""Sockets before HTTP: listening, TLS, and who the peer is.

Rules of this file:
- Every socket is non-blocking: a call does what it can at once, or raises `BlockingIOError`.
- An address that cannot be had is an `OSError` here, before anything else has been touched.

It leaves out: client certificates, SNI with several certificates, and renegotiation.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import stat
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv6Address
from typing import Any, Union

from jwksd.httpd.parser import Refused

BACKLOG = 4_096  # the kernel lowers it to its own limit (net.core.somaxconn, 4,096 on Linux)
SPARE_DESCRIPTORS = 64  # for the database, the log, what a restart opens, and the next
TURNED_AWAY = 16  # connections without a place that are open at a time
START_PATIENCE = 1.0  # seconds for another server to start in the same folder
RECEIVE = (
    65_536  # octets a read; no TLS record is longer, so none is left half-read (RFC 8446 §5.1)
)


class Listener:
    """A listening socket, and the TLS that its connections speak.

    `host` may be a name, an address, `::` for both families, or `unix:/path`; `port` 0 takes a free
    one. `files` are a certificate chain and its private key, both PEM.
    """

    def __init__(self, host: str, port: int, files: tuple[str, str] | None = None) -> None:
        """Listen at once.

        Raises:
            OSError: the address cannot be had.
            ValueError: the files are no certificate and its key.
        """
        self._files = files
        self.tls = tls_context(*files) if files else None
        self.socket = listen(host, port)
        self.url = url_of(self.socket, host, files is not None)

    def reload_tls(self) -> None:
        """Read the certificate and key again, for connections to come; raises as at the start."""
        if self._files:
            self.tls = tls_context(*self._files)

    def close(self) -> None:
        """Free the address. May be called twice."""
        unlisten(self.socket)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; `OSError` if the address cannot be had."""
    if host.startswith("unix:"):
        listener = listen_unix(host[len("unix:") :])
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

    file: tuple[int, int] | None = None  # its identity: another server may have taken the name


def listen_unix(path: str) -> socket.socket:
    """A listening socket in the file system, for the owner and the group of the process."""
    listener = FileListener(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with alone_in(os.path.dirname(path) or "."):
            if is_abandoned(path):
                os.unlink(path)
            listener.bind(path)
            listener.file = identity(path)
            os.chmod(path, 0o660)  # a proxy runs as another user: share a group with it
            listener.listen(BACKLOG)
    except OSError:
        unlisten(listener)
        raise
    return listener


@contextmanager
def alone_in(folder: str) -> Iterator[None]:
    """While another server starts in this folder, wait: for a second, no start takes longer.

    Of two that find an abandoned socket, the second would else remove the first one's new one. It
    is a courtesy: who may read the folder may hold the lock for ever, and must keep nobody out.
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


def identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def is_abandoned(path: str) -> bool:
    """Whether a socket is there that nobody listens on."""
    if not (os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode)):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # whose backlog is full is alive, and busy
        return probe.connect_ex(path) == errno.ECONNREFUSED


def unlisten(listener: socket.socket) -> None:
    """Close a listening socket, and remove its file if it has one that is still its own."""
    if isinstance(listener, FileListener) and listener.fileno() >= 0:
        with suppress(OSError):
            path = listener.getsockname()
            if path and identity(path) == listener.file:
                os.unlink(path)
    listener.close()


def url_of(listener: socket.socket, host: str, tls: bool) -> str:
    """Where a client on this machine finds the server."""
    if host.startswith("unix:"):
        return host
    name = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    port = listener.getsockname()[1]
    return f"{'https' if tls else 'http'}://{f'[{name}]' if ':' in name else name}:{port}"


def tls_context(certificate: str, key: str) -> ssl.SSLContext:
    """TLS 1.2 and up; ciphers and curves are those of the library, which is newer than a list.

    `ValueError` if the files are no certificate and its key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=refuse_pass_phrase)
    except (OSError, ValueError) as error:  # ssl.SSLError among them
        raise ValueError(f"cannot use {certificate} with {key}: {error}") from error
    return context


def refuse_pass_phrase() -> str:
    """In place of OpenSSL's question at the terminal, which waits for ever for an answer."""
    raise ValueError("the key has a pass phrase; take it off: openssl pkey -in KEY -out NEW")


def client_of(address: Any) -> str:
    """A peer's address as text: no scope, and IPv4 as IPv4 also on a dual-stack socket."""
    if not isinstance(address, tuple):
        return "unix"
    host: str = address[0].partition("%")[0]
    return host[len("::ffff:") :] if host.startswith("::ffff:") and "." in host else host


def share_of(client: str) -> str:
    """Whose share a connection counts against: one host has a whole IPv6 /64 to itself."""
    return IPv6Address(client).packed[:8].hex() if ":" in client else client


def descriptor_room(connections: int) -> int:
    """Ask the system for as many descriptors as that takes; how many connections fit."""
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


class TurnedAway:
    """Connections that got one answer and no place, until their clients have had time to read it.

    To close at once would be to reset a client that is still sending, and destroy the answer.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waiting: deque[tuple[float, socket.socket]] = deque()

    def add(self, raw: socket.socket, answer: bytes, now: float) -> None:
        """Say this and no more; close later, or at once if too many wait."""
        with suppress(OSError):  # mostly: nothing has come yet
            raw.recv(RECEIVE)  # what is unread would reset the connection, too
        try:
            raw.send(answer)
            raw.shutdown(socket.SHUT_WR)
        except OSError:
            raw.close()
            return
        self._waiting.append((now + self._seconds, raw))
        if len(self._waiting) > TURNED_AWAY:
            self._close_first()

    def close(self, now: float) -> None:
        """Close those whose time is over."""
        while self._waiting and self._waiting[0][0] <= now:
            self._close_first()

    def _close_first(self) -> None:
        _, raw = self._waiting.popleft()
        raw.close()


class WantsToWrite(BlockingIOError):
    """TLS cannot read on before it has written: a handshake that the client takes slowly."""


class TLSConnection:
    """A socket that turns to TLS with its first octet, and looks like a plain one afterwards."""

    def __init__(self, raw: socket.socket, context: ssl.SSLContext) -> None:
        self._socket = raw
        self._context: ssl.SSLContext | None = context  # until it is known what the client speaks

    def fileno(self) -> int:
        return self._socket.fileno()

    def recv(self, size: int) -> bytes:
        if self._context is not None:
            self._begin(self._context)
        try:
            return self._socket.recv(size)  # the first calls do the handshake
        except ssl.SSLWantReadError:
            raise BlockingIOError from None
        except ssl.SSLWantWriteError:
            raise WantsToWrite from None

    def send(self, octets: bytes) -> int:
        try:
            return self._socket.send(octets)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None

    def _begin(self, context: ssl.SSLContext) -> None:
        first = self._socket.recv(1, socket.MSG_PEEK)
        self._context = None
        if first == b"\x16":  # RFC 8446 §5.1: a handshake record
            self._socket = context.wrap_socket(
                self._socket, server_side=True, do_handshake_on_connect=False
            )
        elif first:
            raise Refused(400, "This port speaks TLS: use https:// in the URL.")

    def shutdown(self, how: int) -> None:
        self._say_goodbye()
        self._socket.shutdown(how)

    def close(self) -> None:
        self._say_goodbye()
        self._socket.close()

    def _say_goodbye(self) -> None:
        # RFC 8446 §6.1: without it, the client cannot tell an end from a cut. Its own is not waited
        # for.
        if isinstance(self._socket, ssl.SSLSocket):
            with suppress(OSError, ValueError):
                self._socket.unwrap()


Connection = Union[socket.socket, TLSConnection]
