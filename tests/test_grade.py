"""grade.py reads its tables strictly, counts points rightly, and reports nothing that can harm."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import sqlite3
import subprocess
import tempfile
import time
import unittest
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any
from unittest import mock
from xml.etree import ElementTree

import grade
from jwksd.grading import at_rest, reports, rubric, sandbox, warden
from jwksd.grading.asking import Answer, Asked
from tests.support import ROOT, TemporaryFolder

PASSWORD = "0b5c0c33-6f0e-4b0e-9a55-0f5a3f0f1c11"
EVIL = "<script>alert(1)</script> ](x) `$(reboot)` '; reboot; '"


class ARubric(unittest.TestCase):
    def sound(self, **said: object) -> rubric.Rubric:
        return rubric.sound({"points": {"Auth": {"test_takes_a_form": 2}}, **said}, CHECKS)

    def test_that_is_shipped_is_sound_and_has_a_hundred_points(self):
        for path in (ROOT / "docs" / "rubrics").glob("*.json"):
            self.assertEqual(rubric.read(path, CHECKS).possible, 100, path)

    def test_that_the_page_shows_is_sound(self):
        page = (ROOT / "docs" / "grading.md").read_text("utf-8")
        (shown,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
        self.assertEqual(rubric.sound(json.loads(shown), CHECKS).possible, 12)

    def test_with_a_name_that_there_is_not_is_refused(self):
        slips: list[tuple[dict[str, Any], str]] = [
            ({"points": {"Auth": {"test_takes_a_from": 1}}}, "test_takes_a_from"),
            ({"points": {"Outh": {}}}, "Outh"),
            ({"seconsd": 1}, "seconsd"),
            ({"statuses": {"token": [1]}}, "token"),
        ]
        for said, name in slips:
            with self.assertRaisesRegex(ValueError, f"no such|there is no.*{name}|{name}"):
                self.sound(**said)

    def test_with_a_value_that_nobody_means_is_refused(self):
        wrong: tuple[dict[str, Any], ...] = (
            {"points": {"Auth": {"test_takes_a_form": -1}}}, {"points": {}}, {"points": []},
            {"points": {"Auth": {"test_takes_a_form": True}}}, {"auth_limit": "5"},
            {"memory_mib": 0}, {"memory_mib": "1"},
        )  # fmt: skip
        for said in wrong:
            with self.subTest(said), self.assertRaises(ValueError):
                self.sound(**said)


CHECKS = grade.known_checks()


class AClass(TemporaryFolder):
    def read(self, text: str) -> list[grade.Submission]:
        path = self.folder / "class.csv"
        path.write_text(text, "utf-8")
        return grade.read_class(path)

    def test_has_folders_beside_the_table_and_a_port(self):
        (row,) = self.read("name,folder,start\nbob,b,python x.py\n")
        self.assertEqual((row.folder, row.port), (str((self.folder / "b").resolve()), 8080))

    def test_with_a_row_that_cannot_be_meant_is_refused(self):
        for text in (
            "name,folder,start\n", "name,folder,begin\nbob,b,x\n", "name,folder,start\n../x,b,x\n",
            "name,folder,start\nbob,b,x\nBOB,b,x\n", "name,folder,start\nbob,,x\n",
            "name,folder,start,port\nbob,b,x,80\n", "name,folder,start,env\nbob,b,x,A\n",
            "name,folder,start\nbob,b,x,y\n",
        ):  # fmt: skip
            with self.subTest(text), self.assertRaises(ValueError):
                self.read(text)

    def test_that_cannot_be_read_exits_2_with_one_line(self):
        output = io.StringIO()
        with redirect_stderr(output):
            status = grade.main(["nowhere.csv", "--rubric", "x", "--out", str(self.folder)])
        self.assertEqual((status, output.getvalue().count("\n")), (2, 1))


def asked(method: str, path: str, body: bytes | None, answer: bytes = b"", **fields: str) -> dict:
    request = Asked(method, path, fields, body, Answer("", 200, {}, answer))
    return warden.curl(request)


def graded(why: str = EVIL, **changes: object) -> reports.Graded:
    told: list[dict[str, Any]] = [
        {"check": "Auth.test_takes_a_form", "verdict": "failed", "why": why, "notes": ["a note"],
         "asked": REQUESTS},
        {"check": "Auth.test_takes_http_basic", "verdict": "passed", "why": ""},
        {"end": "=cmd", "log": "\x1b[2J\n"},
    ]  # fmt: skip
    points = {"Auth.test_takes_a_form": 2, "Auth.test_takes_http_basic": 3, "KeySet.x": 1.5}
    known = rubric.Rubric("", points, {}, {})
    return reports.judge("bob", told, known, isolated=True, port=8080)


REGISTER = json.dumps({"username": "user-1", "email": "1@example.org"}).encode()
BASIC = base64.b64encode(f"user-1:{PASSWORD}".encode()).decode()
REQUESTS = [
    asked("POST", "/register", REGISTER, json.dumps({"password": PASSWORD}).encode()),
    asked("POST", "/auth", f"username=user-1&password={PASSWORD}".encode()),
    asked("POST", "/auth", None, Authorization=f"Basic {BASIC}"),
    asked("POST", "/auth", b"\xff'"),
    asked("HEAD", "/", None),
]


class Reports(TemporaryFolder):
    def test_count_what_is_earned_lost_and_not_judged(self):
        row = graded().row()
        numbers = [row[name] for name in ("points", "lost", "not judged", "possible")]
        self.assertEqual(numbers, ["3", "2", "1.5", "6.5"])

    def test_say_where_nothing_was_isolated(self):
        self.assertIn("not isolated", graded()._replace(isolated=False).row()["outcome"])

    def test_of_one_submission_are_in_the_formats_that_others_read(self):
        reports.write_one(self.folder, graded())
        found = json.loads((self.folder / "results.json").read_text("utf-8"))
        self.assertEqual(found["score"], sum(test["score"] for test in found["tests"]))
        suite = ElementTree.parse(self.folder / "junit.xml").getroot()
        self.assertEqual((suite.get("tests"), suite.get("failures")), ("3", "1"))
        self.assertEqual(suite.find("testcase/failure").get("message"), EVIL)
        self.assertNotIn("\x1b", (self.folder / "server.log").read_text("utf-8"))

    def test_quote_what_was_sent_as_text_alone(self):
        text = reports.feedback(graded())
        self.assertIn(f"\n    {EVIL}\n", text)  # a block of code in Markdown
        reports.write_class(self.folder, [{**graded().row(), "outcome": EVIL}], EVIL)
        self.assertNotIn("<script", (self.folder / "index.html").read_text("utf-8"))

    def test_give_a_spreadsheet_no_formula(self):
        reports.write_class(self.folder, [graded().row()], "")
        with (self.folder / "grades.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        self.assertEqual(row["outcome"], "'=cmd")

    def test_keep_the_rows_of_others(self):
        for name in ("bob", "alice", "bob"):
            reports.write_class(self.folder, [graded()._replace(name=name).row()], "")
        rows = reports.read_rows(self.folder / "grades.csv")
        self.assertEqual([row["name"] for row in rows], ["alice", "bob"])

    def test_replay_sends_the_passwords_that_the_server_gives_now(self):
        fake = self.folder / "curl"
        fake.write_text('#!/bin/sh\nfor word; do printf "[%s]" "$word"; done >> "$LOG"\n'
                        'printf \'{"password": "new one"}\'\n', "utf-8")  # fmt: skip
        fake.chmod(0o755)
        script, log = self.folder / "replay.sh", self.folder / "log"
        script.write_text(reports.replay(graded()), "utf-8")
        environ = {"PATH": f"{self.folder}:{os.environ['PATH']}", "LOG": str(log)}
        done = subprocess.run(["sh", script], env=environ, capture_output=True, text=True)
        sent = log.read_text("utf-8")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("password=new one]", sent)
        self.assertRegex(sent, r"\[-u\]\[user-\d+-1:new one\]")
        self.assertNotIn(PASSWORD, sent)
        self.assertIn(EVIL, done.stdout)  # as text, and nothing was run


class AtRest(TemporaryFolder):
    def test_finds_a_private_key_however_it_is_spelled(self):
        pem = b"-----BEGIN PRIVATE KEY-----\nAAAA"
        der = b"\x30\x82\x04\xa4\x02\x01\x00\x02\x82"
        jwk = json.dumps({"kty": "RSA", "d": "A" * 300}).encode()
        for raw, form in ((pem, "PEM"), (der, "DER"), (jwk, "JWK")):
            for value in (raw, raw.hex(), base64.b64encode(raw).decode()):
                self.assertIn(form, [at_rest.private_key_in(it) for it in at_rest.octets(value)])
        others: tuple[Any, ...] = (os.urandom(1200), base64.b64encode(os.urandom(1200)), 7, None)
        for other in others:
            forms = {at_rest.private_key_in(it) for it in at_rest.octets(other)}
            self.assertEqual(forms, {""})

    def test_names_a_password_hash_and_its_cost(self):
        for value, name in (
            ("$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA", "m=19456,t=2,p=1"),
            ("$2b$12$abcdefghijklmnopqrstuv", "bcrypt ($2b$12$)"),
            ("scrypt:32768:8:1$salt$00", "scrypt:32768:8:1"),
            ("pbkdf2_sha256$600000$salt$00", "pbkdf2_sha256$600000"),
        ):
            self.assertIn(name, at_rest.hash_name(value))
        self.assertEqual(at_rest.hash_name("5f4dcc3b5aa765d61d8327deb882cf99"), "")

    def test_counts_blocks_that_two_ciphertexts_share(self):
        same, other = bytes(range(16)), [os.urandom(64) for _ in range(2)]
        self.assertEqual(at_rest.equal_blocks([other[0], other[1]]), 0)
        self.assertEqual(at_rest.equal_blocks([same + other[0], other[1] + same]), 1)

    def test_reads_tables_of_any_name_and_leaves_the_file_as_it_is(self):
        path = self.folder / "a b?.db"
        with sqlite3.connect(path) as database:
            database.execute('CREATE TABLE "odd""name" (private_key BLOB, expires TEXT)')
            database.execute('INSERT INTO "odd""name" VALUES (?, ?)', (b"\xff\x00", "2026-01-01"))
        database.close()
        before = path.read_bytes()
        (table,) = at_rest.tables(path)
        self.assertEqual(table.column("^exp"), ["2026-01-01"])
        self.assertEqual(table.column("^private"), [b"\xff\x00"])
        self.assertEqual(path.read_bytes(), before)

    def test_refuses_what_is_no_file(self):
        os.mkfifo(self.folder / "pipe")
        (self.folder / "link").symlink_to("/etc/passwd")
        for name in ("pipe", "link"):
            with self.assertRaises(OSError):
                at_rest.tables(self.folder / name)


class AProgram(TemporaryFolder):
    LIMITS = {**rubric.LIMITS, "processes": 5, "memory_mib": 200}

    def run_it(self, command: str) -> sandbox.Program:
        program = sandbox.Program(command, self.folder, os.environ, self.LIMITS, isolated=False)
        self.addCleanup(program.kill)
        return program

    def test_that_prints_without_end_is_kept_at_its_beginning_and_its_end(self):
        program = self.run_it("echo first; yes | head -c 1000000; echo last")
        self.assertEqual(program.wait(30), 0)
        program.kill()
        self.assertLess(len(program.log), 3 * sandbox.KEPT)
        self.assertTrue(program.log.startswith(b"first"))

    def test_that_has_ended_is_known_with_its_last_words_however_late_they_are_read(self):
        real = os.read

        def read(descriptor: int, size: int) -> bytes:
            time.sleep(0.2)  # a busy machine
            return real(descriptor, size)

        with mock.patch("jwksd.grading.sandbox.os.read", read):
            program = self.run_it("echo begun; echo MemoryError; exit 1")
            self.assertEqual(program.wait(60), 1)
        self.assertEqual(program.log, b"begun\nMemoryError\n")

    def test_that_starts_too_many_processes_is_stopped(self):
        program = self.run_it("for i in 1 2 3 4 5 6 7 8; do sleep 60 & done; wait")
        self.assertIsNotNone(program.wait(30))
        self.assertIn("more than 5 processes", program.why)

    def test_copies_files_and_links_and_nothing_else(self):
        source = self.folder / "from"
        source.mkdir()
        (source / "file").write_text("x")
        (source / "link").symlink_to("/etc/passwd")
        os.mkfifo(source / "pipe")
        warden.copy(source, self.folder / "to", 1 << 20)
        self.assertEqual(sorted(os.listdir(self.folder / "to")), ["file", "link"])
        self.assertTrue((self.folder / "to" / "link").is_symlink())
        with self.assertRaisesRegex(OSError, "larger than"):
            warden.copy(source, self.folder / "again", 0)


class TheCommand(unittest.TestCase):
    def test_says_its_version(self):
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sandbox.python(), Path(ROOT, "grade.py"), "--version"], cwd=folder,
                capture_output=True, text=True,
            )  # fmt: skip
        self.assertRegex(done.stdout, r"^\d+\.\d+\.\d+\n$")


if __name__ == "__main__":
    unittest.main()
