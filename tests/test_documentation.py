"""The README says all there is, and what it says is true."""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import io
import os
import re
import shlex
import unittest
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType

import admin
import jwksd
import server
import test_server
from jwksd.ops import doctor, settings
from jwksd.ops.settings import Settings
from jwksd.store import claims
from tests.support import ROOT, ready_keys

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
FILE = re.compile(r"\[[\w./]+\]\(([\w/]+)\.py\)")


def section(heading: str) -> str:
    """What stands in the README under a heading."""
    return README.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def is_defined(name: str, modules: list[ModuleType]) -> bool:
    """Whether one of the modules defines a dotted name."""
    for found in modules:
        value: object = found
        for part in name.split("."):
            value = getattr(value, part, None)
        # What a module only imports stands in another file.
        if value is not None and getattr(value, "__module__", found.__name__) == found.__name__:
            return True
    return False


class TheReadme(unittest.TestCase):
    def test_names_every_route(self):
        for path in server.ROUTES:
            self.assertTrue(path in README, path)

    def test_names_every_setting_and_its_default(self):
        for row in dataclasses.fields(Settings):
            flag = "--" + row.name.replace("_", "-")
            with self.subTest(flag=flag):
                line = next((li for li in README.splitlines() if f"`{flag}`" in li), None)
                self.assertIsNotNone(line)
                default = row.metadata["default"]
                if default:
                    self.assertIn(default, line)

    def test_names_every_command_of_the_operator(self):
        for words in admin.COMMANDS:
            self.assertTrue(f"admin.py {words}" in README, words)

    def test_names_every_file_on_top(self):
        for file in ROOT.glob("*.py"):
            self.assertTrue(f"[{file.name}]({file.name})" in README, file.name)

    def test_says_of_every_function_in_which_file_it_is(self):
        rows = section("Reading it by question").split("| --- | --- |\n")[1].strip().splitlines()
        checked = 0
        for row in rows:
            answer = row.split(" | ")[1]
            modules = [
                importlib.import_module(file.replace("/", ".")) for file in FILE.findall(answer)
            ]
            for name in re.findall(r"`([A-Za-z_.]+)`", answer):
                if not name.endswith(".py"):
                    with self.subTest(row=row, name=name):
                        self.assertTrue(is_defined(name, modules))
                        checked += 1
        self.assertGreater(checked, 30)

    def test_names_in_the_house_what_is_there(self):
        house = section("The house").split("```")[1]
        for line in house.strip().splitlines():
            for name in re.split(r"\s{2,}", line):
                if re.fullmatch(r"[\w/]+(\.\w+|/)", name):
                    with self.subTest(name):
                        self.assertTrue((ROOT / name).exists())

    def test_sends_the_reader_of_one_hour_to_the_endpoints_and_back_before_the_start_up(self):
        order = re.findall(r"(?m)^\d\. \[([\w.]+)\]", section("Reading it in one hour"))
        self.assertEqual(order, ["jwt_minimal.py", "schema.sql", "server.py"])
        methods = list(vars(server.App))
        first, last = methods.index("respond"), methods.index("options")
        for row in server.ROUTES.values():
            for name in row.values():
                self.assertTrue(first < methods.index(name) < last, name)

    def test_its_python_runs(self):
        for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
            output = io.StringIO()
            with redirect_stdout(output), ready_keys():
                exec(compile(code, "README.md", "exec"), {})
            self.assertIn("http://127.0.0.1:", output.getvalue())

    def test_its_environment_is_called_venv(self):
        # Graders walk the folder in order; a .venv/lib64 link before the sources stops some.
        self.assertIn("python3 -m venv venv ", README)
        self.assertNotIn(".venv", README)


class TheDoor(unittest.TestCase):
    CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")

    def test_has_three_commands_that_run_what_exists(self):
        commands = self.CONTRIBUTING.split("```sh\n")[1].split("```")[0].splitlines()
        fast, rest, everything = (command.split("#")[0].strip() for command in commands)
        self.assertEqual(fast, "python -m unittest")
        self.assertEqual(rest, "python -m tests.live")
        self.assertTrue((ROOT / "tests/live/__main__.py").exists())
        self.assertTrue(os.access(ROOT / everything, os.X_OK))

    def test_names_only_files_that_exist(self):
        for name in re.findall(
            r"`([\w./-]+/[\w.-]*|[\w.-]+\.(?:py|md|txt|sql))`", self.CONTRIBUTING
        ):
            with self.subTest(name):
                self.assertTrue((ROOT / name).exists())

    def test_dates_the_version_that_runs(self):
        changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
        newest = re.search(r"(?m)^## (\S+) \((\d{4}-\d\d-\d\d)\)$", changes)
        self.assertEqual(newest[1], jwksd.__version__)
        datetime.date.fromisoformat(newest[2])

    def test_has_a_licence_that_the_readme_names(self):
        licence = (ROOT / "LICENSE").read_text("utf-8")
        self.assertTrue(licence.startswith("MIT License\n\nCopyright (c) 2026 the JWKS server "))
        self.assertIn("[LICENSE](LICENSE)", README)


class TheOperatorsPage(unittest.TestCase):
    def test_names_every_check_of_the_doctor_in_their_order(self):
        page = (ROOT / "docs/operations.md").read_text("utf-8")
        table = page.split("| check | what it looks at |")[1].split("\n\n")[0]
        first_cells = re.findall(r"(?m)^\| (`.*?`) \|", table)
        named = re.findall(r"`(\w+)`", " ".join(first_cells))
        self.assertEqual(named, [*doctor.OUTSIDE, "database", *doctor.INSIDE])


class TheGradersPage(unittest.TestCase):
    PAGE = (ROOT / "docs/grading.md").read_text("utf-8")

    def test_has_a_section_for_each_group_and_a_row_for_each_check(self):
        groups: dict[str, list[str]] = {}
        for line in self.PAGE.splitlines():
            if line.startswith("### "):
                groups[line[4:]] = []
            elif line.startswith("| `test_"):
                list(groups.values())[-1].append(line.split("`")[1])
        found = {
            name: [
                check
                for base in reversed(group.__mro__)
                for check in vars(base)
                if check.startswith("test_")
            ]
            for name, group in vars(test_server).items()
            if isinstance(group, type) and issubclass(group, test_server.ServerTest)
        }
        del found["ServerTest"]
        self.assertEqual(groups, found)

    def test_counts_them(self):
        count = self.PAGE.count("\n| `test_")
        self.assertIn(
            f"`Ran {count} tests ... FAILED (failures=4)` is {count - 4} of {count}", self.PAGE
        )

    def test_its_python_is_a_test_that_passes(self):
        (code,) = re.findall(r"```python\n(.*?)```", self.PAGE, re.DOTALL)
        names: dict[str, type[unittest.TestCase]] = {}
        exec(compile(code, "grading.md", "exec"), names)
        suite = unittest.defaultTestLoader.loadTestsFromTestCase(names["MyService"])
        with ready_keys():
            result = unittest.TextTestRunner(io.StringIO()).run(suite)
        self.assertEqual((result.testsRun, result.wasSuccessful()), (2, True))


class TheEmbeddersPage(unittest.TestCase):
    PAGE = (ROOT / "docs/embedding.md").read_text("utf-8")

    def test_has_snippets_that_are_tests_and_pass(self):
        others = re.sub(r"<!-- file .*?```python.*?```", "", self.PAGE, flags=re.DOTALL)
        ran = 0
        for code in re.findall(r"```python\n(.*?)```", others, re.DOTALL):
            names: dict[str, type[unittest.TestCase]] = {}
            exec(compile(code, "embedding.md", "exec"), names)
            for group in names.values():
                if isinstance(group, type) and issubclass(group, unittest.TestCase):
                    suite = unittest.defaultTestLoader.loadTestsFromTestCase(group)
                    report = io.StringIO()
                    with ready_keys():
                        result = unittest.TextTestRunner(report).run(suite)
                    self.assertTrue(result.wasSuccessful(), report.getvalue())
                    ran += result.testsRun
        self.assertEqual(ran, 3)


class ThePageOfTheOperator(unittest.TestCase):
    def test_names_metrics_that_exist(self):
        page = (ROOT / "docs/operations.md").read_text("utf-8")
        source = (ROOT / "jwksd/api/metrics.py").read_text("utf-8")
        names = set(re.findall(r"`jwks_([a-z_]+)", page))
        self.assertGreaterEqual(len(names), 7)
        for name in names:
            self.assertRegex(source, rf'"(jwks_)?{name}"')


class ThePageOfServices(unittest.TestCase):
    PAGE = (ROOT / "docs/services.md").read_text("utf-8")

    def test_names_settings_that_exist_and_claims_that_can_be_set(self):
        parser = settings.Parser()
        settings.add_settings(parser)
        starts = re.findall(r"`python server.py (.*?)`", self.PAGE)
        changes = re.findall(
            r"admin.py users claims (\w+ .*?)[`\n]", self.PAGE.replace(",\n  ", ", ")
        )
        self.assertGreaterEqual(min(len(starts), len(changes)), 8)
        for line in starts:
            settings.make_settings(vars(parser.parse_args(shlex.split(line))))
        for line in changes:
            self.assertTrue(claims.changed({}, shlex.split(line)[1:]), line)

    def test_has_twelve_services_of_few_lines(self):
        services = re.findall(r"(?s)\n## ([^\n]*)\n(.*?)(?=\n## |\Z)", self.PAGE)[:-1]
        self.assertEqual(len(services), 12)
        for name, content in services:
            code = re.findall("(?s)```.*?```", content)
            prose = re.sub("(?s)```.*?```", "", content)
            self.assertLessEqual(len(prose.split("\n\n")), 6, name)
            self.assertLessEqual(len([line for line in prose.splitlines() if line]), 10, name)
            for block in code:
                self.assertLessEqual(len(block.splitlines()), 38, name)

    def test_closes_the_registration_where_a_service_asks_for_no_claim(self):
        asks = {"Apache", "nginx", "PostgREST", "Hasura", "RabbitMQ", "MinIO"}
        services = re.findall(r"(?s)\n## ([^\n]*)\n(.*?)(?=\n## |\Z)", self.PAGE)[:-1]
        closed = {name for name, text in services if "--registration closed" in text}
        self.assertEqual(closed, {name for name, _ in services} - asks)

    def test_says_of_each_live_test_that_it_exists(self):
        named = re.findall(r"`(\w+\.py)`", self.PAGE.split("\n## ")[0])
        self.assertGreaterEqual(len(named), 9)
        for name in named:
            self.assertTrue((ROOT / "tests/live" / name).exists(), name)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    headings = re.findall(r"(?m)^#+ (.*)$", page.read_text("utf-8"))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


class EveryPage(unittest.TestCase):
    def test_links_only_to_headings_that_exist(self):
        for page in PAGES:
            for target, anchor in re.findall(r"\]\(([^)#]*)#([^)]*)\)", page.read_text("utf-8")):
                if not target.startswith("http"):
                    with self.subTest(page=page.name, anchor=anchor):
                        self.assertIn(
                            anchor, anchors(Path(page.parent, target) if target else page)
                        )

    def test_links_only_to_what_exists(self):
        for page in PAGES:
            for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
                if not target.startswith("http"):
                    with self.subTest(page=page.name, target=target):
                        self.assertTrue(Path(page.parent, target).exists())


if __name__ == "__main__":
    unittest.main()
