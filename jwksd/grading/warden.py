"""One submission from its folder to its verdicts: a process of its own, which grade.py starts.

    stdin:  what to do, as JSON    copy -> set-up -> start -> wait for an answer -> checks -> stop
    stdout: a line of JSON for each check as it is judged, and one at the end

Rules of this file
  - Whatever the submission does, there is an end, and it is a sentence.
  - Each check is told at once: what was judged before an accident counts.

Left out: points and reports; they are grade.py's.
"""

from __future__ import annotations

import http.client
import json
import shlex
import shutil
import stat
import sys
import threading
import time
import unittest
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Union

from jwksd.grading import judging, sandbox
from jwksd.grading.asking import Asked, exchange, fresh_address, printable

PAUSE = 0.1  # s between two looks whether it answers
JWKS = Asked("GET", judging.JWKS, {}, None, None)
Error = Union[tuple[type[BaseException], BaseException, TracebackType], tuple[None, None, None]]


class Refused(Exception):
    """The submission cannot be graded; the sentence says why."""


class Told(unittest.TestResult):
    """A result that prints each verdict at once."""

    def __init__(self, stream: IO[str]) -> None:
        super().__init__()
        self.out = stream

    def tell(self, test: unittest.TestCase, verdict: str, why: str) -> None:
        """Print the line of a check."""
        name = test.id().split(".")
        asked = [curl(request) for request in getattr(test, "requests", [])]
        notes = getattr(test, "notes", [])
        told = {"check": ".".join(name[-2:]), "verdict": verdict, "why": why}
        line = {**told, "about": test.shortDescription() or "", "asked": asked, "notes": notes}
        print(json.dumps(line), file=self.out, flush=True)

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.tell(test, "passed", "")

    def addFailure(self, test: unittest.TestCase, err: Error) -> None:
        self.tell(test, "failed", str(err[1]))

    def addError(self, test: unittest.TestCase, err: Error) -> None:
        self.tell(test, "failed", printable(f"{type(err[1]).__name__}: {err[1]}"[:500]))

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self.tell(test, "not judged", reason)


def curl(request: Asked) -> dict[str, Any]:
    """A request as reports repeat it."""
    body = request.body.decode("utf-8", "backslashreplace") if request.body is not None else None
    password = request.answer.member("password") if request.answer else None
    status = request.answer.status if request.answer else 0
    return {
        "method": request.method, "path": request.path, "fields": request.fields, "body": body,
        "raw": request.body.hex() if request.body is not None else None,
        "password": password if isinstance(password, str) else None, "status": status,
    }  # fmt: skip


class Warden:
    """Grades one submission."""

    def __init__(self, task: Mapping[str, Any], out: IO[str]) -> None:
        self.task, self.out = task, out
        self.limits: Mapping[str, int] = task["limits"]
        self.isolated: bool = task["isolated"]
        self.work = Path(task["work"])
        self.home = self.work / "copy"
        self.url = f"http://127.0.0.1:{task['port']}"
        self.programs: list[sandbox.Program] = []

    def run(self) -> dict[str, Any]:
        """Grade the submission; the content of the last line."""
        outcome = "graded"
        try:
            self.prepare()
            server = self.start(self.task["start"])
            self.wait_for_answer(server)
            self.check()
            outcome = server.why or self.ended(server) or outcome
        except Refused as refusal:
            outcome = str(refusal)
        finally:
            for program in self.programs:
                program.kill()
        log = b"".join(program.log for program in self.programs)
        return {"end": printable(outcome), "log": log.decode("utf-8", "replace")}

    def prepare(self) -> None:
        """Make the copy, and run the table's set-up in it."""
        if self.isolated:
            sandbox.close_off(self.work, self.limits["disk_mib"])
        else:
            sandbox.adopt_orphans()
        try:
            copy(Path(self.task["folder"]), self.home, self.limits["disk_mib"] * sandbox.MIB)
            (self.work / "tmp").mkdir()
        except (OSError, shutil.Error) as error:
            raise Refused(f"its folder cannot be copied: {str(error)[:200]}") from None
        if self.task["setup"]:
            setup = self.start(self.task["setup"])
            status = setup.wait(self.limits["setup_seconds"])
            setup.kill()
            if status != 0:
                came = "did not end in time" if status is None else f"ended with {status}"
                raise Refused(f"the set-up {setup.why or came}: {last_line(setup.log)}")
        if self.isolated:
            sandbox.no_network()

    def start(self, command: str) -> sandbox.Program:
        """Run a command of the table in the copy."""
        command = command.replace("{port}", str(self.task["port"]))
        program = sandbox.Program(
            command, self.home, self.environ(), self.limits, isolated=self.isolated,
            stopped=self.stopped,
        )  # fmt: skip
        self.programs.append(program)
        return program

    def environ(self) -> dict[str, str]:
        """The environment of the submission, which inherits PATH alone."""
        given = dict(pair.partition("=")[::2] for pair in shlex.split(self.task["env"]))
        ours = {"HOME": str(self.home), "TMPDIR": str(self.work / "tmp"), "LANG": "C.UTF-8"}
        return {"PATH": self.task["path"], **ours, "PORT": str(self.task["port"]), **given}

    def stopped(self, why: str) -> None:
        """Judge nothing more: the submission was stopped."""
        for subject in judging.CURRENT:
            subject.dead = f"the server was stopped, since {why}"

    def wait_for_answer(self, server: sandbox.Program) -> None:
        """Wait for any answer; Refused if none comes."""
        end = time.monotonic() + self.limits["start_seconds"]
        while time.monotonic() < end:
            status = server.wait(PAUSE)
            if status is not None or server.why:
                came = server.why or f"the server ended at once with {status}"
                raise Refused(f"{came}: {last_line(server.log)}")
            try:
                exchange(self.url, JWKS, fresh_address(), max(0.1, end - time.monotonic()))
                return
            except (OSError, http.client.HTTPException, ValueError):
                continue
        seconds = self.limits["start_seconds"]
        raise Refused(f"nothing answered on port {self.task['port']} in {seconds} s: "
                      f"{last_line(server.log)}")  # fmt: skip

    def ended(self, server: sandbox.Program) -> str:
        """How the submission ended while it was graded; "" if it still runs."""
        status = server.wait(PAUSE)
        return "" if status is None else f"the server died ({status}): {last_line(server.log)}"

    def check(self) -> None:
        """Run the checks until the time for all of them is over."""
        loader = unittest.defaultTestLoader
        suite = loader.loadTestsFromNames(self.task["checks"])
        clock = threading.Timer(self.limits["total_seconds"], self.time_is_up)
        clock.daemon = True
        clock.start()
        suite.run(Told(self.out))
        clock.cancel()

    def time_is_up(self) -> None:
        """The rest is not judged."""
        for subject in judging.CURRENT:
            subject.dead = f"all of it took more than {self.limits['total_seconds']} s"


def copy(source: Path, target: Path, most: int) -> None:
    """Copy a folder of files; links stay links, pipes and sockets are left out."""
    if not source.is_dir():
        raise OSError(f"there is no folder {source}")
    if sandbox.size(source) > most:
        raise OSError(f"it is larger than {most // sandbox.MIB} MiB")

    def skipped(place: str, names: list[str]) -> set[str]:
        modes = {name: Path(place, name).lstat().st_mode for name in names}
        plain = (stat.S_ISDIR, stat.S_ISREG, stat.S_ISLNK)
        return {name for name, mode in modes.items() if not any(kind(mode) for kind in plain)}

    shutil.copytree(source, target, symlinks=True, ignore=skipped)


def last_line(log: bytes) -> str:
    """The last line that is not blank."""
    lines = [line for line in log.decode("utf-8", "replace").splitlines() if line.strip()]
    return f"its last line was: {lines[-1].strip()[:200]}" if lines else "it printed nothing"


def main() -> None:
    """Read the task, grade, and say how it ended."""
    task = json.load(sys.stdin)
    out, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps(Warden(task, out).run()), file=out, flush=True)
