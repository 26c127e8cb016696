"""The rooms of the house: who may import whom, and what stays in which room."""

from __future__ import annotations

import ast
import re
import sys
import unittest
from functools import cache
from pathlib import Path

from tests.support import ROOT

# What each room, or file on top, may import of ours. Everything may import the package itself.
ROOMS: dict[str, set[str]] = {
    "jwt_minimal": set(),
    "ratelimit": set(),
    "httpd": set(),
    "store": {"jwt_minimal"},
    "api": {"httpd", "jwt_minimal", "ratelimit", "store"},
    "ops": {"httpd", "jwt_minimal", "progress", "ratelimit", "store"},
    "flaws": {"jwt_minimal"},
    "progress": set(),
    "server": {"api", "httpd", "jwt_minimal", "ops", "ratelimit", "store"},
    "admin": {"api", "ops", "progress", "store"},
    "lab": {"flaws", "grading"},
    "grading": {"jwt_minimal"},
    "test_server": {"grading", "jwt_minimal", "server"},
    "grade": {"grading", "progress", "test_server"},
}
PACKAGES = {"argon2": {"store"}, "cryptography": {"flaws", "jwt_minimal", "lab", "store"}}
POSTGRES = {"jwksd/store/postgres.py", "jwksd/store/sessions.py"}
SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("*.py"), *(ROOT / "jwksd").rglob("*.py")]
}


def room_of(name: str) -> str:
    """Where a file or a dotted name belongs: `jwksd/store/names.py` to store."""
    parts = name.removesuffix(".py").replace("/", ".").split(".")
    return parts[1] if parts[0] == "jwksd" and len(parts) > 1 else parts[0]


@cache
def nodes(source: str) -> list[ast.AST]:
    return [*ast.walk(ast.parse(source))]


@cache
def imports(source: str) -> set[str]:
    """The dotted names that a source imports, wherever in the file."""
    found: set[str] = set()
    for node in nodes(source):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = node.module or ""
            found |= {
                f"{package}.{alias.name}" if package.startswith("jwksd") else package
                for alias in node.names
            }
    return found


def files_that(pattern: str) -> set[str]:
    """The files whose code, without docstrings and comments, matches."""
    return {name for name, source in SOURCES.items() if re.search(pattern, code(source))}


@cache
def code(source: str) -> str:
    """The text of a source without docstrings and comments."""
    module, *others = nodes(source)
    for node in others:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = None
    return ast.unparse(module)


class Direction(unittest.TestCase):
    def test_every_file_is_in_a_room(self):
        self.assertEqual({room_of(name) for name in SOURCES} - {"jwksd", "__init__"}, set(ROOMS))

    def test_a_room_imports_only_those_below_it(self):
        for name, source in SOURCES.items():
            with self.subTest(name):
                room = room_of(name)
                used = {room_of(imported) for imported in imports(source)} & set(ROOMS)
                self.assertLessEqual(used - {room}, ROOMS.get(room, set()))

    def test_in_the_store_the_seam_is_at_the_bottom_and_nobody_asks_which_engine_it_is(self):
        for name, source in SOURCES.items():
            if room_of(name) == "store":
                used = {Path(part.replace(".", "/")).name for part in imports(source)}
                self.assertEqual(
                    used & {"sqlite", "postgres"}, set(), name
                )  # whoever opens one names it
        seam = imports(SOURCES["jwksd/store/database.py"])
        ours = {name.split(".")[2] for name in seam if name.startswith("jwksd")}
        self.assertEqual(ours, {"dialects"})

    def test_nothing_but_the_two_packages_and_the_standard_library_is_imported(self):
        ours = {"jwksd", *ROOMS}
        for name, source in SOURCES.items():
            used = {imported.split(".")[0] for imported in imports(source)} - ours
            foreign = {package for package in used if not is_standard(package)}
            allowed = {package for package, users in PACKAGES.items() if room_of(name) in users}
            allowed |= {"psycopg"} if name in POSTGRES else set()
            with self.subTest(name):
                self.assertLessEqual(foreign, allowed)


def is_standard(package: str) -> bool:
    # Python 3.9 does not know the list; the newer interpreters check.
    return package in getattr(sys, "stdlib_module_names", {package} - set(PACKAGES))


class Confinement(unittest.TestCase):
    def test_sql_stays_in_the_store(self):
        statements = r"(?i)['\"](select|insert|update|delete|pragma|create|with)\s+\w+"
        theirs = {"grading"}  # reads the files of graded servers
        for pattern in (statements, r"\bsqlite3\.conn"):
            rooms = {room_of(name) for name in files_that(pattern)}
            self.assertEqual(rooms - theirs, {"store"})

    def test_each_table_has_one_file_that_writes_it(self):
        writes = r"(?i)\b(insert (or replace )?into|update|delete from) %s\b"
        owners = {
            "(keys|key_policy)": "keystore", "(auth_logs|auth_outcomes)": "logins",
            "(users|account_names|account_claims)": "accounts",
        }  # fmt: skip
        for table, owner in owners.items():
            self.assertEqual(files_that(writes % table), {f"jwksd/store/{owner}.py"})

    def test_aes_and_private_numbers_stay_in_sealing(self):
        secrets = r"algorithms\.AES|private_numbers|RSAPrivateNumbers|private_bytes"
        lab = {"jwksd/flaws.py"}  # its keys are made to be thrown away
        self.assertEqual(files_that(secrets) - lab, {"jwksd/store/sealing.py"})

    def test_sockets_stay_in_httpd(self):
        used = r"^(import|from) (socket|selectors|ssl)\b"
        found = {room_of(name) for name in files_that(f"(?m){used}")} - {"grading"}  # a client
        self.assertEqual(found, {"httpd"})

    def test_the_environment_is_read_in_the_command_lines_alone(self):
        read = files_that(r"os\.(environ|getenv)")
        self.assertEqual({name for name in read if "/" in name}, set())
        self.assertNotIn("ratelimit.py", read)

    def test_the_statement_that_graders_look_for_stands_on_one_line(self):
        self.assertIn(
            "INSERT INTO keys (key, exp) VALUES (?, ?)", SOURCES["jwksd/store/keystore.py"]
        )

    def test_no_file_is_longer_than_one_sitting(self):
        long = {name: source.count("\n") for name, source in SOURCES.items()}
        self.assertEqual({name: lines for name, lines in long.items() if lines > 700}, {})


if __name__ == "__main__":
    unittest.main()
