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
from contextlib import suppress
from ipaddress import IPv6Address
from typing import Any, Union

from http1 import Refused

BACKLOG = 4_096  # the kernel lowers it to its own limit (net.core.somaxconn, 4,096 on Linux)
SPARE_DESCRIPTORS = 64  # for the database, the log and what a restart opens


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


def listen_unix(path: str) -> socket.socket:
    """A listening socket in the file system, for the owner and the group of the process."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if is_abandoned(path):
            os.unlink(path)
        listener.bind(path)
        os.chmod(path, 0o660)  # a proxy runs as another user: share a group with it
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def is_abandoned(path: str) -> bool:
    """Whether a socket is there that nobody listens on."""
    if not (os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode)):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(path) == errno.ECONNREFUSED


def unlisten(listener: socket.socket) -> None:
    """Close a listening socket, and remove its file if it has one."""
    if listener.fileno() >= 0 and listener.family == getattr(socket, "AF_UNIX", None):
        with suppress(OSError):
            os.unlink(listener.getsockname())
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
        context.load_cert_chain(certificate, key)
    except OSError as error:  # ssl.SSLError among them
        raise ValueError(f"cannot use {certificate} with {key}: {error}") from error
    return context


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
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None

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
