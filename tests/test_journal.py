"""The operator's lines as JSON: each line of the sources has a name and a level."""

from __future__ import annotations

import ast
import json
import logging
import re
import unittest
from collections.abc import Iterator

from jwksd.ops import journal, upkeep
from tests.support import ROOT, Clock

# The functions that take a line for the operator; doctor and admin have a `log` of their own kind.
WRITERS = {"log", "_log"}
SOURCES = [
    path
    for path in [ROOT / "server.py", *(ROOT / "jwksd").rglob("*.py")]
    if path.name not in ("doctor.py", "journal.py", "log.py")
]
# What a call passes on in a variable, and how such a line begins.
IN_A_VARIABLE = {
    ("keystore.py", "line"): "the stored key row-3 (exp=1) is skipped: it is not a sealed key",
    ("server.py", "unusable"): "clients elsewhere cannot use the issuer http://127.0.0.1:1",
    ("startup.py", "far"): "/srv/keys.db lies on the network file system nfs4: two machines",
}


def written_lines() -> Iterator[tuple[str, str]]:
    """Each line that a source writes, with X for what stands in braces; and where."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and called(node) in WRITERS and len(node.args) == 1:
                where = f"{path.name}:{node.lineno}"
                (given,) = node.args
                if isinstance(given, ast.Name):
                    yield where, IN_A_VARIABLE[path.name, given.id]
                elif isinstance(given, (ast.JoinedStr, ast.Constant)):
                    yield where, text_of(given)


def called(node: ast.Call) -> str:
    name = node.func
    return name.attr if isinstance(name, ast.Attribute) else getattr(name, "id", "")


def text_of(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    return str(node.value) if isinstance(node, ast.Constant) else "7"


class Lines(unittest.TestCase):
    def test_of_every_source_have_a_row(self):
        found = dict(written_lines())
        self.assertGreaterEqual(len(found), 18)
        subject_first = {where for where in found if where.startswith("upkeep.py")} & {
            where for where, line in found.items() if line == "7: 7"
        }
        self.assertEqual(len(subject_first), 1)  # those have a test of their own
        for where in found.keys() - subject_first:
            with self.subTest(where, line=found[where]):
                self.assertNotEqual(journal.event_of(found[where]), journal.OTHER)

    def test_of_trouble_are_told_from_those_of_its_end(self):
        for subject in (
            upkeep.WRITING,
            "database",
            "rotation",
            "retention of keys",
            "retention of the log",
        ):
            begun, over = (
                journal.event_of(f"{subject}: {rest}") for rest in ("locked", "works again")
            )
            self.assertEqual((begun.name, begun.level), ("trouble", "error"))
            self.assertEqual((over.name, over.level), ("recovered", "info"))

    def test_cannot_be_named_by_what_they_quote(self):
        for line in (
            "error: GET /a new key was made: KeyError at x.py:1",
            "internal error: ready: OSError (works again) at x.py:1",
        ):
            self.assertEqual(journal.event_of(line).name, "internal_error")

    def test_that_are_unknown_are_a_warning(self):
        self.assertEqual(journal.event_of("something else").level, "warning")

    def test_have_words_and_levels_that_programs_can_rely_on(self):
        names = [event.name for event in journal.EVENTS]
        self.assertEqual(len(set(names)), len(names))
        for event in journal.EVENTS:
            self.assertRegex(event.name, r"^[a-z]+(_[a-z]+)*$")
            self.assertIn(event.level, ("info", "warning", "error"))


class TheOperatorsPage(unittest.TestCase):
    def test_has_every_event_with_its_level(self):
        page = (ROOT / "docs/operations.md").read_text("utf-8")
        table = page.split("| event | level | tells of |\n")[1].split("\n\n")[0]
        found: dict[str, str] = {}
        for row in table.splitlines()[1:]:
            events, levels = (re.findall(r"\w+", cell) for cell in row.split(" | ")[:2])
            found.update(zip(events, levels if len(levels) > 1 else levels * len(events)))
        told = {event.name: event.level for event in journal.EVENTS}
        self.assertEqual(found, {"request": "info", **told})


class AnObject(unittest.TestCase):
    def test_has_time_level_event_and_the_line_as_text_writes_it(self):
        line = 'ready: http://h database=/a"b\n\x1b\ud800'
        written = journal.as_json(Clock(0.0))(line)
        self.assertTrue(written.isascii() and written.isprintable())
        expected = {"time": "1970-01-01T00:00:00Z", "level": "info", "event": "ready"}
        self.assertEqual(json.loads(written), {**expected, "message": line})


class Failures(unittest.TestCase):
    def failure(self) -> BaseException:
        def inner():
            raise ValueError("the password")

        try:
            inner()
        except ValueError as failure:
            return failure
        raise AssertionError

    def test_are_told_by_their_places_without_their_message(self):
        told = journal.places(self.failure())
        self.assertRegex(told, r"^ValueError at test_journal\.py:\d+ from test_journal\.py:\d+$")

    def test_without_an_exception_are_told_too(self):
        self.assertEqual(journal.places(None), "unknown failure")
        self.assertRegex(journal.places(KeyError("the password")), "^KeyError$")

    def test_that_a_library_logs_are_lines(self):
        lines: list[str] = []
        logger = logging.Logger("concurrent.futures")
        logger.addHandler(journal.Records(lines.append))
        logger.error("exception calling callback", exc_info=self.failure())
        logger.warning("something %s", "odd")
        logger.info("nothing to tell")
        error, warning = lines
        self.assertRegex(error, r"^error: concurrent\.futures: exception calling callback: Val")
        self.assertNotIn("password", error)
        self.assertEqual(warning, "warning: concurrent.futures: something odd")


if __name__ == "__main__":
    unittest.main()
