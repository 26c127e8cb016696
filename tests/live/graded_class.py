"""A class of small servers, graded by grade.py: each loses exactly the points of its fault."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

import grade
from jwksd.grading import sandbox
from tests.live.grading import FLAWS
from tests.support import ROOT

CLASS = Path(__file__).parent / "class"
RUBRICS = ROOT / "docs" / "rubrics"
CHECK_OF = {name: check for name, check, _ in FLAWS}
# Flaws of the table that our server gets behind a proxy.
PROXIED = (
    "200 for a new user", "400 for a taken name", "no login", "any password gets a token",
    "another kid in the keys than in the tokens", "tokens that caches keep",
    "a form with any password", "429 without Retry-After", "private numbers among the keys",
    "padding", "no HEAD", "refusals in HTML",
)  # fmt: skip
# Faults of the small server, and the check that each fails.
SMALL = {
    "passwords of letters": "test_answers_201_with_a_uuid4_and_nothing_else",
    "any password": "test_refuses_a_wrong_password_and_an_unknown_user",
    "another key signs": "test_makes_tokens_that_the_jwks_verifies",
    "one key for all": "test_gives_an_expired_token_on_request",
    "keys answer 500": "test_publishes_its_keys",
    "d among the keys": "test_keeps_its_private_key_to_itself",
    "no limit": "test_refuse_one_attempt_more_than_the_limit",
    "keys in PEM": "test_keeps_no_private_key_in_the_open",
    "keys in DER": "test_keeps_no_private_key_in_the_open",
    "plain passwords": "test_keeps_passwords_as_hashes_of_a_password_hash",
    "fast hashes": "test_keeps_passwords_as_hashes_of_a_password_hash",
    "no log": "test_logs_each_login_with_address_and_time",
    "exp as text": "test_keeps_exp_as_a_number",
    "no expired key": "test_keeps_an_expired_and_a_valid_key",
}
HOSTILE = ("nothing", "hang", "drip", "endless", "flood", "escapes", "dies", "kills", "forks",
           "children", "memory", "disk", "neighbour")  # fmt: skip


class Class(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.isolated = sandbox.works(sys.executable, self.folder, ROOT)

    def rubric(self, name: str, **changes: object) -> Path:
        path = self.folder / "rubric.json"
        document = json.loads((RUBRICS / name).read_text("utf-8"))
        path.write_text(json.dumps({**document, **changes}), "utf-8")
        return path

    def grade(self, rows: list[tuple[str, str, str]], rubric: Path) -> dict[str, dict[str, str]]:
        """Name, folder and argument of each; its row of grades.csv."""
        table, self.out = self.folder / "class.csv", self.folder / "out"
        with table.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(grade.COLUMNS)
            for number, (name, kind, fault) in enumerate(rows):
                start = f"exec {sys.executable} submission.py {{port}} '{fault}'"
                database = {"proxied": "keys.db", "small": "app.db", "hostile": ""}[kind]
                port = 8080 if self.isolated else 20_000 + number
                cells = (name, CLASS / kind, "", start, port, f"PYTHONPATH={ROOT}", database)
                writer.writerow(cells)
        done = subprocess.run(
            [sys.executable, ROOT / "grade.py", table, "--rubric", rubric, "--out", self.out,
             "--jobs", "2"],
            capture_output=True, text=True, timeout=900,
            env={**os.environ, "TMPDIR": str(self.folder)},
        )  # fmt: skip
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertNotIn("\x1b", done.stdout)
        with (self.out / "grades.csv").open(encoding="utf-8", newline="") as file:
            return {row["name"]: row for row in csv.DictReader(file)}

    def lost(self, name: str) -> dict[str, float]:
        """What a submission lost, by check."""
        found = json.loads((self.out / name / "results.json").read_text("utf-8"))
        return {
            test["name"].partition(".")[2]: test["max_score"] - test["score"]
            for test in found["tests"]
            if test["extra_data"]["verdict"] == "failed"
        }

    def points(self, rubric: Path) -> dict[str, float]:
        groups = json.loads(rubric.read_text("utf-8"))["points"].values()
        return {check: points for group in groups for check, points in group.items()}


class Faults(Class):
    def assertLoses(self, kind: str, checks: dict[str, str], rubric: Path) -> None:
        rows = [("sound", kind, "none")]
        rows += [(fault.replace(" ", "-"), kind, fault) for fault in checks]
        found, points = self.grade(rows, rubric), self.points(rubric)
        self.assertEqual(found["sound"]["points"], "100", found["sound"])
        for fault, check in checks.items():
            with self.subTest(fault):
                name = fault.replace(" ", "-")
                feedback = (self.out / name / "feedback.md").read_text("utf-8")
                self.assertEqual(self.lost(name), {check: points[check]}, feedback)
                self.assertEqual(found[name]["lost"], f"{points[check]:g}")
                if not fault.startswith(("keys in", "exp as", "no expired")):  # the file shows it
                    self.assertIn("curl", (self.out / name / "replay.sh").read_text("utf-8"))

    def test_of_ours_behind_a_proxy_cost_their_points_and_no_others(self):
        rubric = self.rubric("contract.json")
        self.assertLoses("proxied", {name: CHECK_OF[name] for name in PROXIED}, rubric)

    def test_of_small_servers_cost_their_points_and_no_others(self):
        self.assertLoses("small", SMALL, self.rubric("project-3.json"))

    def test_the_same_class_graded_twice_has_the_same_grades(self):
        rubric = self.rubric("project-3.json")
        rows = [("sound", "small", "none"), ("open", "small", "keys in PEM")]
        self.assertEqual(self.grade(rows, rubric), self.grade(rows, rubric))


class Harm(Class):
    def test_costs_the_grader_nothing(self):
        if not self.isolated:
            self.skipTest("namespaces do not work here, and some of these kill what they can")
        rubric = self.rubric(
            "contract.json", seconds=1, start_seconds=8, total_seconds=60, memory_mib=200,
            processes=50, disk_mib=64,
        )  # fmt: skip
        rows = [(kind, "hostile", kind) for kind in HOSTILE]
        began = time.monotonic()
        found = self.grade([*rows, ("sound", "proxied", "none")], rubric)
        self.assertLess(time.monotonic() - began, 300)  # else something waits that should not
        self.assertEqual(found["sound"]["points"], "100", found["sound"])
        said = {name: row["outcome"] for name, row in found.items()}
        self.assertIn("nothing answered", said["nothing"])
        self.assertIn("Segmentation fault, or so", said["dies"])
        # Whichever is seen first: so many processes, or what they take together.
        self.assertRegex(said["forks"], "more than 50 processes|MiB of memory")
        self.assertRegex(said["memory"], "MemoryError|MiB of memory")
        for kind in HOSTILE:
            with self.subTest(kind):
                self.assertLess(float(found[kind]["points"]), 20, said[kind])
                log = (self.out / kind / "server.log").read_bytes()
                self.assertLess(len(log), 1 << 20)
                self.assertNotIn(b"\x1b", log)
        self.assertEqual(self.left_running(), [])

    def left_running(self) -> list[str]:
        """Command lines of what a submission left behind, of this test's own folder."""
        left = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                line = (entry / "cmdline").read_bytes()
                place = os.readlink(entry / "cwd")
            except OSError:
                continue
            if str(self.folder).encode() in line or place.startswith(str(self.folder)):
                left.append(f"{entry.name} {line!r} {place}")
        return left


if __name__ == "__main__":
    unittest.main()
