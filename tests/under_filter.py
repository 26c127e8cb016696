"""Becomes a command under the seccomp filters of a systemd unit: `under_filter.py UNIT COMMAND...`.

    SystemCallFilter=    a call that is not in it ends the process, whatever the unit would do
    the other settings   what they forbid of a call's arguments is refused, as systemd refuses it

The sets are those of `systemd-analyze syscall-filter`, the filters are made by libseccomp. Root
becomes somebody else first, in a user namespace: SQLite calls fchown for root alone.

It leaves out: what a unit does by other means than seccomp (mounts, name spaces, limits), and the
settings whose calls the unit's SystemCallFilter= leaves out anyway (clocks, modules, host name).
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# linux/seccomp.h, linux/sched.h, sys/mman.h, sys/shm.h, linux/stat.h; seccomp.h of libseccomp
KILL, ERRNO, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
NE, GE, EQ, MASKED = 1, 5, 4, 7
NAMESPACES = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
WRITE, EXECUTE, SHM_EXEC, SUID, SGID = 2, 4, 0o100000, 0o4000, 0o2000
FAMILIES = 64  # more than Linux has
CLONE_NEWUSER = 0x10000000
SOMEBODY = 65_534

Rule = tuple[str, int, int, int, int, int]  # call, errno, argument, comparison, its two numbers


class Comparison(ctypes.Structure):
    """A condition on an argument (struct scmp_arg_cmp)."""

    _fields_ = [
        ("arg", ctypes.c_uint), ("op", ctypes.c_int),
        ("a", ctypes.c_uint64), ("b", ctypes.c_uint64),
    ]  # fmt: skip


def settings_of(unit: str) -> Iterator[tuple[str, str]]:
    """Name and value of each setting."""
    return iter(re.findall(r"(?m)^(\w+)=(.*)$", unit))


def sets() -> dict[str, list[str]]:
    """The members of every set that systemd knows: names of calls, and of other sets."""
    command = ["systemd-analyze", "syscall-filter", "--no-pager"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = {}
    for block in re.split(r"\n(?=@)", run.stdout):
        name, *members = (line.strip() for line in block.splitlines() if line.strip())
        if name.startswith("@"):
            found[name] = [member for member in members if not member.startswith("#")]
    return found


def calls(name: str, known: dict[str, list[str]]) -> set[str]:
    """The calls of a set, or the one that is named."""
    if not name.startswith("@"):
        return {name}
    return {call for member in known[name] for call in calls(member, known)}


def allowed(unit: str) -> set[str]:
    """The calls that SystemCallFilter= allows; those of @default always."""
    known, found = sets(), set[str]()
    for name, value in settings_of(unit):
        if name == "SystemCallFilter":
            named = {call for word in value.lstrip("~").split() for call in calls(word, known)}
            found = found - named if value.startswith("~") else found | named
    return found | calls("@default", known)


def restrictions(unit: str) -> Iterator[Rule]:
    """What the other settings refuse."""
    given = dict(settings_of(unit))
    if given.get("MemoryDenyWriteExecute") == "yes":
        both = WRITE | EXECUTE
        yield "mmap", errno.EPERM, 2, MASKED, both, both
        for call in ("mprotect", "pkey_mprotect"):
            yield call, errno.EPERM, 2, MASKED, EXECUTE, EXECUTE
        yield "shmat", errno.EPERM, 2, MASKED, SHM_EXEC, SHM_EXEC
    if given.get("RestrictNamespaces") == "yes":
        yield "setns", errno.EPERM, 0, GE, 0, 0
        yield "clone3", errno.ENOSYS, 0, GE, 0, 0  # its flags lie in memory
        for flag in NAMESPACES:
            for call in ("unshare", "clone"):
                yield call, errno.EPERM, 0, MASKED, flag, flag
    if given.get("LockPersonality") == "yes":
        yield "personality", errno.EPERM, 0, NE, 0, 0
    if given.get("RestrictSUIDSGID") == "yes":
        modes = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "mkdir": 1, "mkdirat": 2, "mknod": 1,
                 "mknodat": 2, "creat": 1, "open": 2, "openat": 3}  # fmt: skip
        for call, place in modes.items():
            for bit in (SUID, SGID):
                yield call, errno.EPERM, place, MASKED, bit, bit
    families = given.get("RestrictAddressFamilies", "").split()
    if families:
        kept = {int(getattr(socket, family)) for family in families}
        for family in {*range(FAMILIES)} - kept:
            yield "socket", errno.EAFNOSUPPORT, 0, EQ, family, 0
        yield "socket", errno.EAFNOSUPPORT, 0, GE, FAMILIES, 0


class Filters:
    """libseccomp: filters of this process, and of all that it becomes."""

    def __init__(self) -> None:
        self.library: Any = ctypes.CDLL("libseccomp.so.2")
        self.library.seccomp_init.restype = ctypes.c_void_p

    def number(self, call: str) -> int:
        """Of a call on this machine; negative if it has none."""
        found: int = self.library.seccomp_syscall_resolve_name(call.encode())
        return found

    def load(self, usual: int, rules: list[tuple[int, int, list[Comparison]]]) -> None:
        """A filter: an action for most calls, and others for some: (action, call, conditions)."""
        filter_ = ctypes.c_void_p(self.library.seccomp_init(ctypes.c_uint32(usual)))
        for action, call, given in rules:
            conditions = (Comparison * len(given))(*given)
            must(self.library.seccomp_rule_add_array(
                filter_, ctypes.c_uint32(action), call, len(given), conditions
            ))  # fmt: skip
        must(self.library.seccomp_load(filter_))


def must(result: int) -> None:
    """Stop where a call of a library has failed."""
    if result:
        raise OSError(-result, os.strerror(abs(result)))


def become_somebody() -> None:
    """Have another user number than root's, and still root's files."""
    if os.geteuid() == 0:
        must(ctypes.CDLL(None).unshare(CLONE_NEWUSER))
        for file, line in (
            ("setgroups", "deny"), ("uid_map", f"{SOMEBODY} 0 1"), ("gid_map", f"{SOMEBODY} 0 1"),
        ):  # fmt: skip
            Path("/proc/self", file).write_text(line, "ascii")


def main(unit: str, command: list[str]) -> None:
    """Read the unit, put on the filters, become the command."""
    text, filters = Path(unit).read_text("utf-8"), Filters()
    permitted = sorted({filters.number(call) for call in allowed(text)})
    refused = [
        (ERRNO | error, filters.number(call), [Comparison(place, how, a, b)])
        for call, error, place, how, a, b in restrictions(text)
        if filters.number(call) >= 0
    ]
    become_somebody()
    filters.load(ALLOW, refused)
    filters.load(KILL, [(ALLOW, call, []) for call in permitted if call >= 0])
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
