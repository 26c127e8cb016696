"""A stranger's program on the teacher's machine: closed off where the system can, bounded always.

    grade.py -> unshare: user, mount, process namespace -> the warden (warden.py), its process 1
                  close_off(): everything read-only but a copy of bounded size
                  no_network(): after the set-up, nothing but a loopback device of its own
                -> unshare: another process namespace, no rights -> the submission

Rules of this file
  - The submission sees no process of ours, and with the last process of ours all of its own end.
  - A bound that the kernel does not keep (memory and processes of the whole) is watched.
  - Where namespaces do not work, the submission gets a process group; reports then say so.

Left out: defence against a hole in the kernel. A machine that holds nothing else is safer still.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Callable

ISOLATED = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child",
            "--mount-proc"]  # fmt: skip
INNER = ["unshare", "--pid", "--fork", "--kill-child", "setpriv", "--no-new-privs",
         "--bounding-set=-all", "--inh-caps=-all"]  # fmt: skip
# Programs of ours for `python -c`. Our modules come first, from a folder or from one file, and the
# current folder, where strangers' files may be, not at all.
OURS = "import sys; sys.path[0] = sys.argv[1]; "
TRY_ALL = OURS + "from jwksd.grading import sandbox; sandbox.try_all(sys.argv[2])"
WARDEN = OURS + "from jwksd.grading import warden; warden.main()"
MIB = 1 << 20
KEPT = 64 * 1024  # octets of output at its beginning, and as many at its end
TICK = 0.2  # s between two looks at what a submission uses
LAST_WORDS = 2.0  # s to read what it printed; a process that it left behind may keep the pipe open
# linux/mount.h, linux/fcntl.h, linux/sched.h, linux/if.h, linux/prctl.h; 442 on every architecture
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1
CLONE_NEWNET, SIOCSIFFLAGS, IFF_UP, PR_SET_CHILD_SUBREAPER = 0x40000000, 0x8914, 1, 36


def libc() -> Any:
    """The C library, with errno."""
    return ctypes.CDLL(None, use_errno=True)


def must(result: int, what: str) -> None:
    """OSError unless a call of the C library succeeded."""
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def works(python: str, folder: Path, root: Path) -> bool:
    """Whether namespaces do all that this file wants of them, on this machine and for this user."""
    try:
        done = subprocess.run(  # noqa: S603 (our own command)
            [*ISOLATED, python, "-c", TRY_ALL, str(root), str(folder)],
            cwd=folder,
            capture_output=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def try_all(folder: str) -> None:
    """What the warden does to itself, in a process that then ends."""
    close_off(Path(folder), 1)
    no_network()
    subprocess.run([*INNER, "true"], check=True)  # noqa: S603


def close_off(folder: Path, mib: int) -> None:
    """Make the file system read-only, but for a file system of this size at the folder."""
    # A process that may make a user namespace is root in it, and may mount what fills the memory.
    Path("/proc/sys/user/max_user_namespaces").write_text("0", "ascii")
    attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)
    arguments = (AT_FDCWD, b"/", AT_RECURSIVE, attributes, len(attributes))
    must(libc().syscall(MOUNT_SETATTR, *arguments), "mount_setattr")
    options = f"size={mib}m,mode=700".encode()
    must(libc().mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options), "mount")


def no_network() -> None:
    """From now on a network with nothing but a loopback device: 127.0.0.0/8 is the submission's."""
    must(libc().unshare(CLONE_NEWNET), "unshare")
    import fcntl

    with socket.socket() as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


def adopt_orphans() -> None:
    """Without namespaces: have the orphans of a submission become our children."""
    with contextlib.suppress(AttributeError, OSError):
        libc().prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Program:
    """A running program of the submission, watched until it is stopped."""

    def __init__(
        self,
        command: str,
        folder: Path,
        environ: Mapping[str, str],
        limits: Mapping[str, int],
        *,
        isolated: bool,
        stopped: Callable[[str], None] = lambda why: None,
    ) -> None:
        self.limits, self.isolated, self.stopped = limits, isolated, stopped
        self.folder = folder
        self.first, self.last, self.why = b"", b"", ""
        words = [*(INNER if isolated else []), "/bin/sh", "-c", command]
        self.process = subprocess.Popen(  # noqa: S603 (the teacher's table names it)
            words,
            cwd=folder,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: bound(limits),
        )
        self.over = threading.Event()
        self.listener = threading.Thread(
            target=self.listen, args=(self.process.stdout,), daemon=True
        )
        self.listener.start()
        threading.Thread(target=self.watch, daemon=True).start()

    def listen(self, stream: IO[bytes]) -> None:
        """Keep the beginning and the end of the program's output."""
        with stream, contextlib.suppress(OSError, ValueError):
            while raw := os.read(stream.fileno(), KEPT):
                free = KEPT - len(self.first)
                self.first += raw[:free]
                self.last = (self.last + raw[free:])[-KEPT:]
                if not free:
                    time.sleep(0.01)  # a flood waits for us, not we for the flood

    @property
    def log(self) -> bytes:
        """The program's output."""
        return self.first + (b"\n[...]\n" if len(self.last) == KEPT else b"") + self.last

    def watch(self) -> None:
        """Stop the program when it exceeds a bound."""
        while not self.over.wait(TICK):
            why = self.excess()
            if why and not self.over.is_set():
                self.why = why
                self.stopped(why)
                self.kill()
                return

    def excess(self) -> str:
        """The bound that the program exceeds, as a sentence; "" if it exceeds none."""
        found = descendants(self.process.pid, everybody=self.isolated)
        if len(found) > self.limits["processes"]:
            return f"it had more than {self.limits['processes']} processes"
        if sum(map(memory, found)) > self.limits["memory_mib"] * MIB:
            return f"it used more than {self.limits['memory_mib']} MiB of memory"
        if not self.isolated and size(self.folder) > self.limits["disk_mib"] * MIB:
            return f"it wrote more than {self.limits['disk_mib']} MiB"
        return ""

    def wait(self, seconds: float) -> int | None:
        """The program's exit status; None if it has not ended in time."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        self.listener.join(LAST_WORDS)  # what it printed before its end is still in the pipe
        return status

    def kill(self) -> None:
        """End the program with all that it started."""
        self.over.set()
        left = [] if self.isolated else descendants(self.process.pid)
        if self.process.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
        for _ in range(50):  # a program that forks while it is killed is stopped after a few rounds
            if self.isolated:
                break  # the kernel has ended the whole namespace
            left += [pid for pid in descendants(os.getpid()) if pid != self.process.pid]
            for pid in set(left):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            reap()
            left = []
            if not [pid for pid in descendants(os.getpid()) if pid != self.process.pid]:
                break
        self.wait(10)


def bound(limits: Mapping[str, int]) -> None:
    """Bounds of one process, which its children inherit."""
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, limits["disk_mib"] * MIB),
        (resource.RLIMIT_DATA, limits["memory_mib"] * MIB),
        (resource.RLIMIT_CPU, limits["total_seconds"]),
    ):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))


def reap() -> None:
    """Let children that have ended go."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def parents() -> dict[int, int]:
    """The parent of every process that can be seen; nothing without Linux's /proc."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            stat = (entry / "stat").read_text("latin-1")
            state, parent = stat.rpartition(")")[2].split()[:2]
            if state != "Z":
                found[int(entry.name)] = int(parent)
    return found


def descendants(pid: int, everybody: bool = False) -> list[int]:
    """The processes below one; or all but us and it, in a namespace of our own."""
    known = parents()
    if everybody:
        return [other for other in known if other not in (os.getpid(), pid)]
    found, level = [], [pid]
    while level:
        level = [child for child, parent in known.items() if parent in level]
        found += level
    return found


def memory(pid: int) -> int:
    """The octets that a process holds for itself alone."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        pages = Path(f"/proc/{pid}/statm").read_text("ascii").split()
        return max(0, int(pages[1]) - int(pages[2])) * resource.getpagesize()
    return 0


def size(folder: Path) -> int:
    """The octets in a folder."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
    return total


def command_of(python: str, isolated: bool, root: Path) -> Sequence[str]:
    """How grade.py starts the warden; `root` is where our modules are."""
    return [*(ISOLATED if isolated else []), python, "-c", WARDEN, str(root)]


def python() -> str:
    """The interpreter that runs us."""
    return sys.executable
