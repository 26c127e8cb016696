#!/usr/bin/env python3
"""Grades a class: `python grade.py CLASS.csv --rubric RUBRIC.json --out DIR`.

    CLASS.csv --> for each name, a warden: copy, set-up, start, checks (jwksd/grading)
                       |  closed off by namespaces where they work
                       v
    DIR/grades.csv, index.html, NAME/feedback.md, results.json, junit.xml, server.log, replay.sh

Rules of this file
  - A submission is run once, from a copy; nothing of it is left running.
  - Everything in the table and the rubric is checked before anything is started.
  - One line a submission on the terminal, and nothing in it but printable text.

Left out: what a check demands (test_server.py) and what it is worth (docs/rubrics).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import test_server
from jwksd import __version__, progress
from jwksd.grading import reports, rubric, sandbox
from jwksd.grading.asking import printable
from jwksd.grading.judging import ServerTest

ROOT = Path(__file__).resolve().parent  # a folder, or the one file that a release is
COLUMNS = ("name", "folder", "setup", "start", "port", "env", "database")
NAME = re.compile(r"\w[\w.@-]{0,63}")  # becomes a folder, and a word in a page
PORT = "8080"  # where the table names none
SLACK = 60  # s beside the rubric's own times before a warden is given up


class Submission(NamedTuple):
    """A row of CLASS.csv."""

    name: str
    folder: str
    setup: str
    start: str
    port: int
    env: str
    database: str


def read_class(path: Path) -> list[Submission]:
    """The rows of the table; OSError, or ValueError with the line that is wrong."""
    found = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        unknown = {*(reader.fieldnames or ())} - {*COLUMNS}
        if unknown or "name" not in (reader.fieldnames or ()):
            raise ValueError(f"{path}: the columns are {', '.join(COLUMNS)}")
        for row in reader:
            try:
                found.append(submission(row, path.parent))
            except ValueError as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
    names = [row.name.casefold() for row in found]
    twice = {name for name in names if names.count(name) > 1}
    if twice or not found:
        raise ValueError(f"{path}: " + (f"twice: {', '.join(sorted(twice))}" if twice else "empty"))
    return found


def submission(row: dict[str, Any], beside: Path) -> Submission:
    """A row as a Submission; folders are relative to the table. ValueError if it makes no sense."""
    cells = {name: (row.get(name) or "").strip() for name in COLUMNS}
    if None in row or not NAME.fullmatch(cells["name"]):
        raise ValueError(
            "a name has letters, digits and ._@-, and a row no more cells than columns"
        )
    if not cells["folder"] or not cells["start"]:
        raise ValueError(f"{cells['name']} needs a folder and a start")
    port = cells.pop("port") or PORT
    if not port.isdecimal() or not 1024 <= int(port) <= 65535:
        raise ValueError(f"port {port}: 1024 to 65535")
    if not all("=" in pair for pair in shlex.split(cells["env"])):
        raise ValueError("env is NAME=VALUE NAME=VALUE ...")
    cells["folder"] = str((beside / cells["folder"]).resolve())
    return Submission(**cells, port=int(port))


def known_checks() -> list[str]:
    """Every check that a rubric may give points for."""
    groups = (it for it in vars(test_server).values() if isinstance(it, type))
    return [
        f"{group.__name__}.{check}"
        for group in groups
        if issubclass(group, ServerTest)
        for check in unittest.defaultTestLoader.getTestCaseNames(group)
    ]


class Grader:
    """Grades submissions by one rubric, several at a time."""

    def __init__(self, asked: rubric.Rubric, work: Path, *, isolated: bool) -> None:
        self.rubric, self.work, self.isolated = asked, work, isolated
        self.settings = work / "rubric.json"
        self.settings.write_text(json.dumps(asked.settings), "utf-8")
        # Without networks of their own, two submissions of one port take turns.
        self.ports: dict[int, threading.Lock] = defaultdict(threading.Lock)

    def grade(self, who: Submission) -> reports.Graded:
        """Run the warden for one submission, and read what it tells."""
        work = self.work / who.name
        work.mkdir()
        turn = contextlib.nullcontext() if self.isolated else self.ports[who.port]
        with turn:
            told = self.told(self.task(who, work), self.environ(who, work))
        return reports.judge(who.name, told, self.rubric, isolated=self.isolated, port=who.port)

    def task(self, who: Submission, work: Path) -> dict[str, Any]:
        """The task for the warden."""
        theirs = (pair for pair in shlex.split(who.env) if not pair.startswith("JWKS_TEST_"))
        return {
            **who._asdict(), "env": shlex.join(theirs), "work": str(work),
            "isolated": self.isolated, "limits": self.rubric.limits,
            "path": os.environ.get("PATH", os.defpath),
            "checks": [f"test_server.{check}" for check in self.rubric.points],
        }  # fmt: skip

    def environ(self, who: Submission, work: Path) -> dict[str, str]:
        """The environment of the warden: ours, and what the checks read."""
        pairs = (pair.partition("=") for pair in shlex.split(who.env))
        ours = {name: value for name, _, value in pairs if name.startswith("JWKS_TEST_")}
        database = str(work / "copy" / who.database) if who.database else ""
        return {
            **os.environ, **ours, "JWKS_TEST_URL": f"http://127.0.0.1:{who.port}",
            "JWKS_TEST_RUBRIC": str(self.settings), "JWKS_TEST_DIRECT": "1",
            "JWKS_TEST_DATABASE": database,
        }  # fmt: skip

    def told(self, task: dict[str, Any], environ: dict[str, str]) -> list[dict[str, Any]]:
        """What the warden printed, line by line; processes that it cannot end are ended here."""
        limits = self.rubric.limits
        patience = sum(limits[f"{what}_seconds"] for what in ("setup", "start", "total")) + SLACK
        process = subprocess.Popen(  # noqa: S603 (our own command)
            sandbox.command_of(sys.executable, self.isolated, ROOT),
            cwd=self.work, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, encoding="utf-8", errors="replace",
        )  # fmt: skip
        try:
            output, _ = process.communicate(json.dumps(task), patience)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
        return [line for line in map(parsed, output.splitlines()) if line]


def parsed(line: str) -> dict[str, Any]:
    """A line of the warden as an object; an empty one if it was cut off."""
    try:
        return dict(json.loads(line))
    except ValueError:
        return {}


def run(options: argparse.Namespace) -> int:
    """Grade every row of the table; the exit status."""
    everybody = read_class(options.table)
    asked = rubric.read(options.rubric, known_checks())
    chosen = [who for who in everybody if options.only in (None, who.name)]
    if not chosen:
        raise ValueError(f"{options.table} has nobody named {options.only}")
    options.out.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="grade-")).resolve()
    try:
        isolated = not options.no_isolation and sandbox.works(sys.executable, work, ROOT)
        if not isolated:
            print("grade.py: submissions are NOT isolated: see docs/grading.md", file=sys.stderr)
        grader = Grader(asked, work, isolated=isolated)
        rows = list(graded_rows(grader, chosen, options))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    reports.write_class(options.out, rows, asked.title)
    return 0


def graded_rows(
    grader: Grader, chosen: Sequence[Submission], options: argparse.Namespace
) -> list[dict[str, str]]:
    """Grade, write the reports, and print a line for each as it is done."""
    count = 0
    lock = threading.Lock()

    def one(who: Submission) -> dict[str, str]:
        nonlocal count
        began = time.monotonic()
        graded = grader.grade(who)
        reports.write_one(options.out / who.name, graded)
        row = graded.row()
        with lock:
            count += 1
            line = (
                f"[{count:3}/{len(chosen)}] {who.name:20} {row['points']:>5} of {row['possible']}, "
                f"lost {row['lost']}, not judged {row['not judged']}  "
                f"({time.monotonic() - began:.0f} s)  {row['outcome']}"
            )
            with shown.hidden():
                print(printable(line), flush=True)
        return row

    done = progress.shown("grading", lambda: f"{count} of {len(chosen)} done")
    with done as shown, ThreadPoolExecutor(options.jobs) as pool:
        return list(pool.map(one, chosen))


def jobs(text: str) -> int:
    """A number of submissions at a time."""
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError("1 to 64")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: 0 when everybody was graded, 2 if nobody could be."""
    parser = argparse.ArgumentParser(prog="grade.py", description="Grades a class of JWKS servers.")
    parser.add_argument("table", metavar="CLASS.csv", type=Path, help=", ".join(COLUMNS))
    parser.add_argument("--rubric", metavar="FILE", type=Path, required=True, help="docs/rubrics/")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="for the reports")
    parser.add_argument("--jobs", metavar="N", type=jobs, default=1, help="how many at a time")
    parser.add_argument("--only", metavar="NAME", help="grade this one again")
    parser.add_argument("--no-isolation", action="store_true", help="do not even try namespaces")
    parser.add_argument("--version", action="version", version=__version__)
    try:
        return run(parser.parse_args(arguments))
    except (OSError, ValueError) as error:
        print(printable(f"grade.py: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
