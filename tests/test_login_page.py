"""docs/a-login.md is true: a login calls what the page names, in its order, on its threads."""

from __future__ import annotations

import importlib
import json
import re
import socket
import threading
import unittest
from types import CodeType, FrameType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import server
from tests.support import CHEAPEST, ROOT

PAGE = (ROOT / "docs/a-login.md").read_text("utf-8")
SECTION = re.compile(r"^(.*) \((loop|worker|writer)\)$", re.MULTILINE)
STEP = re.compile(r"^\| (\d+) \| `([\w.]+)` \| \[[\w.]+\]\(\.\./([\w/]+)\.py\) \|", re.MULTILINE)
THREADS = {"issuer": "loop", "worker": "worker", "writer": "writer"}  # by their names
SECONDS = 30  # a thread that waits longer for another hangs; a busy machine needs a fraction


class Step(NamedTuple):
    """One row of the page."""

    number: int
    thread: str
    name: str
    code: CodeType


def steps() -> list[Step]:
    """The page's rows, in its order."""
    found = []
    for section in PAGE.split("\n## ")[1:]:
        heading = SECTION.match(section)
        for number, name, file in STEP.findall(section):
            assert heading is not None, section.splitlines()[0]
            found.append(Step(int(number), heading[2], name, code_of(name, file)))
    return found


def code_of(name: str, file: str) -> CodeType:
    """The code of the function of this name in a file."""
    found: Any = importlib.import_module(file.replace("/", "."))
    for part in name.split("."):
        found = getattr(found, part)
    code: CodeType = found.__code__
    assert code.co_filename.endswith(f"{file}.py"), f"{name} is not in {file}.py"
    return code


READY = code_of("Handler.ready", "jwksd/httpd/connection")
ADVANCE = code_of("Handler.advance", "jwksd/httpd/connection")
CARRY_OUT = code_of("Workers._carry_out", "jwksd/httpd/workers")
GATHER = code_of("gather", "jwksd/store/database")
SETTLE = code_of("Job.settle", "jwksd/store/database")
COLLECT = code_of("Server._collect", "jwksd/httpd/loop")
# Where each thread takes the request up. What it calls before belongs to the request before.
TAKE = code_of("Lane.take", "jwksd/httpd/workers")
TAKES_UP = {READY, GATHER, TAKE}


class Trace:
    """What is called on the threads of a server from the next request on, until it is answered.

    The next thread may begin while the one before it tidies up. To have one order, a worker waits
    here until the loop has put the request aside, the writer until the worker is done with it, and
    the loop until the writer has run all callbacks.
    """

    def __init__(self, wanted: set[CodeType]) -> None:
        self.armed = threading.Event()
        self.answered = threading.Event()
        self.calls: list[tuple[str, CodeType]] = []
        self._wanted = wanted
        self._begun: set[str] = set()
        self._put_aside, self._carried_out = threading.Event(), threading.Event()
        self._settled = threading.Event()

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if not self.armed.is_set() or self.answered.is_set():
            return
        thread = THREADS.get(threading.current_thread().name)
        if thread is None:
            return
        if event == "call":
            self._called(thread, frame.f_code)
        elif event == "return" and thread in self._begun:
            self._returned(frame.f_code)

    def _called(self, thread: str, code: CodeType) -> None:
        if code is READY or (code in TAKES_UP and "loop" in self._begun):
            self._begun.add(thread)
        if thread not in self._begun:
            return
        if code is TAKE:
            self._put_aside.wait(SECONDS)
        elif code is GATHER:
            self._carried_out.wait(SECONDS)
        elif code is COLLECT:
            self._settled.wait(SECONDS)
        if code in self._wanted:
            self.calls.append((thread, code))

    def _returned(self, code: CodeType) -> None:
        if code is CARRY_OUT:
            self._carried_out.set()
        elif code is SETTLE:
            self._settled.set()
        elif code is ADVANCE and self._put_aside.is_set():
            self.answered.set()
        elif code is ADVANCE:
            self._put_aside.set()


def ask(connection: socket.socket, path: str, document: object) -> Any:
    """POST a document in one piece; what is in the answer, which must be a success."""
    body = json.dumps(document).encode()
    fields = f"Host: localhost\r\nContent-Length: {len(body)}"
    connection.sendall(f"POST {path} HTTP/1.1\r\n{fields}\r\n\r\n".encode() + body)
    received = b""
    while not received.endswith(b"}"):
        octets = connection.recv(65_536)
        assert octets, received
        received += octets
    head, _, content = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 20"), received
    return json.loads(content)


def trace_login(wanted: set[CodeType], *, times: int) -> list[tuple[str, CodeType]]:
    """The calls of the last of so many logins of one user, by thread."""
    trace = Trace(wanted)
    threading.setprofile(trace)  # for the threads that start from now on: those of the server
    try:
        with server.running(argon2=CHEAPEST) as issuer:
            place = urlsplit(issuer.url)
            address = (place.hostname, place.port)
            with socket.create_connection(address, timeout=SECONDS) as connection:
                account = {"username": "alice"}
                account.update(ask(connection, "/register", account))
                for _ in range(times - 1):
                    ask(connection, "/auth", account)
                trace.armed.set()
                ask(connection, "/auth", account)
                assert trace.answered.wait(SECONDS)
    finally:
        threading.setprofile(None)
    return trace.calls


class ALogin(unittest.TestCase):
    maxDiff = None

    def named(self, calls: list[tuple[str, CodeType]]) -> list[tuple[str, str]]:
        names = {step.code: step.name for step in steps()}
        return [(thread, names[code]) for thread, code in calls]

    def test_calls_what_the_page_names_in_its_order_on_its_threads(self):
        page = steps()
        calls = trace_login({step.code for step in page}, times=1)
        self.assertEqual(self.named(calls), [(step.thread, step.name) for step in page])

    def test_leaves_out_what_the_page_says_the_second_time(self):
        page = steps()
        first, last = re.search(r"leaves\s+out\s+steps\s+(\d+)\s+to\s+(\d+)", PAGE).groups()
        left_out = range(int(first), int(last) + 1)
        calls = trace_login({step.code for step in page}, times=2)
        expected = [
            (step.thread, step.name)
            for step in page
            if step.thread != "worker" or step.number not in left_out
        ]
        self.assertEqual(self.named(calls), expected)

    def test_crosses_all_three_threads_and_comes_back(self):
        threads = [heading[2] for heading in SECTION.finditer(PAGE)]
        self.assertEqual(threads, ["loop", "worker", "writer", "loop"])
        self.assertGreater(len(steps()), 50)


if __name__ == "__main__":
    unittest.main()
