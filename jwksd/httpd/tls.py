"""TLS between a socket and HTTP: OpenSSL works in memory, the socket is ours.

    socket --recv, 16 KiB a turn--> ciphertext --32 records a turn--> OpenSSL --> HTTP
    socket <--send-- unsent <------------------- 16 KiB at a time --- OpenSSL <-- HTTP

OpenSSL on a socket reads for as long as records without content come: one client with KeyUpdate
records keeps it, and with it the loop, busy for ever. So OpenSSL gets its records from us here, one
by one, and only as many as a turn of the loop has room for.

Rules of this file:
- Every call does what it can at once, or raises `BlockingIOError`.
- Records without content (key updates, alerts, new handshakes) are counted, and end the connection.
- Ciphertext that the client has not taken yet is output: as long as there is some (`unsent`),
  nothing more is read or encrypted.

It leaves out: client certificates, SNI with several certificates, and renegotiation.
"""

from __future__ import annotations

import os
import socket
import ssl
import stat
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256

from jwksd.httpd.parser import Refused

READ = 16_384  # octets of ciphertext a turn; a record of a request is smaller
RECORDS = 32  # records a turn: 0.3 ms of key updates, the dearest of them
CHANGE_CIPHER_SPEC, HANDSHAKE = 20, 22  # types of records (RFC 8446 §5.1); more follows the first
HEADER = 5  # octets before the content of a record (RFC 8446 §5.1)
RANDOM = slice(HEADER + 6, HEADER + 38)  # of a server's first record (RFC 8446 §4.1.3)
RETRY = sha256(b"HelloRetryRequest").digest()  # there, if it wants another ClientHello
LONGEST = HEADER + 16_384 + 2_048  # octets of a whole record (RFC 5246 §6.2.3)
EMPTY_RECORDS = 32  # records in a row without content; as BoringSSL
EMPTY_OCTETS = 131_072  # octets of such records in a connection; a handshake has 2 KB
PLAIN = 16_384  # octets encrypted at a time: one record (RFC 8446 §5.1)
# RFC 9325 §4.2: forward secrecy and authenticated encryption. TLS 1.3 has no other suites.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:!PSK:!aNULL"


def tls_context(certificate: str, key: str) -> ssl.SSLContext:
    """TLS 1.2 and 1.3 with this certificate chain and its private key, both PEM.

    Raises:
        ValueError: the files are no certificate and its key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_ciphers(CIPHERS)
    context.num_tickets = 1  # for a client that returns; OpenSSL's second one costs a tenth more
    context.set_alpn_protocols(["http/1.1"])
    try:
        for file in (certificate, key):
            require_file(file)
        context.load_cert_chain(certificate, key, password=refuse_pass_phrase)
    except (OSError, ValueError) as error:  # ssl.SSLError among them
        raise ValueError(f"cannot use {certificate} with {key}: {error}") from error
    return context


def require_file(path: str) -> None:
    """Refuse a pipe or a device: reading it may never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{path} is no regular file")


def refuse_pass_phrase() -> str:
    """Refuse a key with a pass phrase: OpenSSL would ask at the terminal and wait for ever."""
    raise ValueError("the key has a pass phrase; take it off: openssl pkey -in KEY -out NEW")


class WantsToWrite(BlockingIOError):
    """The client has to take what is `unsent` before anything is read."""


class WantsToCompute(BlockingIOError):
    """The handshake has a step to make: call `step` on any thread, then `stepped`.

    The argument says whether the step may sign, which takes a millisecond with an RSA key. The
    client's octets do not tell: it may cut its ClientHello into records wherever it likes.
    """


class TLSConnection:
    """A socket that speaks TLS, with the methods of a plain one."""

    def __init__(self, raw: socket.SocketType, context: ssl.SSLContext) -> None:
        self._socket = raw
        self._context: ssl.SSLContext | None = context  # until the first octet
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None  # none, too, where plain text is drained
        self._ciphertext = b""  # read and not given to OpenSSL yet
        self._empty_records = 0  # in a row
        self._empty_octets = 0  # in all records without content
        self._ended = False  # whether the client has sent close_notify
        self.unsent = b""  # ciphertext that the client has not taken yet
        self._answered = False  # whether our signature has been made: no later step makes one
        self.established = False  # whether the handshake is over
        self.stepping = False  # whether a thread is at a step: nobody else touches OpenSSL
        self.unfinished = False  # whether records wait for the next turn: no event will tell

    def fileno(self) -> int:
        return self._socket.fileno()

    def recv(self, size: int) -> bytes:
        """The content of the next records, b"" at the end; READ and RECORDS bound it, not `size`.

        Raises:
            WantsToCompute: the handshake has a step to make.
            WantsToWrite: the client has to take something first.
            BlockingIOError: nothing has come, or nothing with content.
            Refused: the client does not speak TLS.
            OSError: the connection is broken, or consists of nothing but records without content.
        """
        if self.unsent:
            self.flush()
        octets = b"" if self.unfinished else self._socket.recv(READ)
        if self._context is not None and octets:
            self._begin(self._context, octets)
        if self._tls is None or not (octets or self.unfinished):
            return octets
        self._ciphertext += octets
        if not self.established and self._record_end():
            self.stepping = True
            raise WantsToCompute(not self._answered)
        return self._give(self.step)

    def step(self) -> bytes | None:
        """Give the next few records to OpenSSL; their content, None if there is none.

        Raises:
            OSError: as `recv`.
        """
        assert self._tls is not None  # noqa: S101  # for mypy
        return self._read(self._tls)

    def stepped(self, result: Callable[[], bytes | None]) -> bytes:
        """Take the result of a step; returns and raises as `recv`."""
        self.stepping = False
        return self._give(result)

    def _give(self, result: Callable[[], bytes | None]) -> bytes:
        try:
            plain = result()
        except ssl.SSLError:
            with suppress(OSError):  # OpenSSL has an alert ready that names the fault
                self.flush()
            raise
        if plain is None:
            self.flush()
            raise BlockingIOError
        return plain

    def _begin(self, context: ssl.SSLContext, octets: bytes) -> None:
        self._context = None
        if octets[0] != HANDSHAKE:
            raise Refused(400, "This port speaks TLS: use https:// in the URL.")
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def _read(self, tls: ssl.SSLObject) -> bytes | None:
        """The content of the next few records; None if there is none, b"" at the end."""
        plain = None
        end = self._record_end()
        for _ in range(RECORDS):
            if self._ended or not end:
                break
            kind = self._ciphertext[0]
            self._incoming.write(self._ciphertext[:end])
            self._ciphertext = self._ciphertext[end:]
            content = None if kind == CHANGE_CIPHER_SPEC else self._decrypt(tls)
            if content is None:
                self._count_empty(end)
            elif content:
                self._empty_records = 0
                plain = content if plain is None else plain + content
            self._ended = content == b""
            end = self._record_end() if self._ciphertext else 0
        self.unfinished = self._ended or end > 0
        return b"" if plain is None and self._ended else plain

    def _decrypt(self, tls: ssl.SSLObject) -> bytes | None:
        """The content of the record that OpenSSL has got; None if it has none, b"" if no more come.

        During the handshake, its next step.
        """
        try:
            if self.established:
                return tls.read(PLAIN)
            tls.do_handshake()
        except ssl.SSLWantReadError:
            return None
        self.established = True
        self._empty_records = -1  # the last record of the handshake does not count
        return None

    def _count_empty(self, octets: int) -> None:
        self._empty_records += 1
        self._empty_octets += octets
        if self._empty_records > EMPTY_RECORDS or self._empty_octets > EMPTY_OCTETS:
            raise ConnectionAbortedError("too many records without content")

    def _record_end(self) -> int:
        """Where the first record that has been read ends; 0 if it is not complete."""
        have = self._ciphertext
        if len(have) < HEADER:
            return 0
        end = HEADER + (have[3] << 8 | have[4])  # RFC 8446 §5.1: type, version, length
        if have[1] != 3 or end > LONGEST:
            return len(have)  # OpenSSL says what is wrong with it
        return end if end <= len(have) else 0

    def send(self, octets: bytes) -> int:
        """Encrypt some of the octets and pass them on; how many. `BlockingIOError` if none."""
        if self.unsent:
            self.flush()
        if self._tls is None:
            return self._socket.send(octets)
        taken = 0
        while taken < len(octets) and not self.unsent:
            part = octets[taken : taken + PLAIN] if taken or len(octets) > PLAIN else octets
            taken += self._tls.write(part)
            with suppress(BlockingIOError):
                self.flush()
        return taken

    def flush(self) -> None:
        """Pass on the ciphertext that there is; `WantsToWrite` if some of it is left."""
        octets = self._outgoing.read()
        if octets and not self._answered:
            self._answered = octets[RANDOM] != RETRY
        if self.unsent:
            octets = self.unsent + octets
        if not octets:
            return
        self.unsent = octets
        try:
            self.unsent = octets[self._socket.send(octets) :]
        except BlockingIOError:
            raise WantsToWrite from None
        if self.unsent:
            raise WantsToWrite

    def shutdown(self, how: int) -> None:
        self._say_goodbye()
        self._tls = self._context = None  # what comes from now on is drained, not decrypted
        self.unsent = b""  # or the draining would wait for it
        self._socket.shutdown(how)

    def close(self) -> None:
        self._say_goodbye()
        self._socket.close()

    def _say_goodbye(self) -> None:
        # RFC 8446 §6.1: without it, the client cannot tell an end from a cut. That of the client is
        # not waited for.
        if self._tls is not None and self.established and not self.stepping:
            with suppress(OSError, ValueError):
                self._tls.unwrap()
            with suppress(OSError):
                self.flush()
