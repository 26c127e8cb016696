"""PostgreSQL as others set it up: URLs, roles, rights, and databases that are not of our making."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import unittest
import urllib.request
from unittest import mock

from jwksd.store.database import CannotOpen, Unavailable
from tests.live import postgres
from tests.live.clusters import wait_until
from tests.live.process import SECRET, Server
from tests.support import CHEAPEST, ROOT

if postgres.REASON is None:
    from jwksd.store.postgres import PostgreSQL
    from jwksd.store.sessions import places, shown

# What an operator may have given the role, or the database: none of it may change what we do.
SETTINGS = """default_transaction_isolation = serializable
client_min_messages = error
standard_conforming_strings = off
bytea_output = escape
datestyle = 'SQL, DMY'
timezone = 'Asia/Tokyo'
extra_float_digits = 0
search_path = apart, public
transform_null_equals = on
idle_session_timeout = 200"""


class ConformsWhateverTheRoleHas(postgres.PostgreSQLConforms):
    """In a schema apart, in a database where lower() knows more letters than ASCII's."""

    def make_database(self, name: str) -> None:
        self.primary.sql(
            f"CREATE DATABASE {name} OWNER keys LOCALE 'C.UTF-8' TEMPLATE template0;\n"
            + "".join(f"ALTER DATABASE {name} SET {pair};\n" for pair in SETTINGS.split("\n"))
        )
        self.primary.sql("CREATE SCHEMA apart AUTHORIZATION keys", name)


@unittest.skipIf(postgres.REASON, postgres.REASON or "")
class Urls(unittest.TestCase):
    def test_name_each_host_wherever_it_stands(self):
        hosts = [("::1", "5"), ("db2", "5")]
        service = "[keys]\nhost=::1,db2\nport=5\nuser=u\ndbname=d\npassword=geheim\n"
        path = self.file(service)
        for url, environ in (
            ("postgresql://u@[::1]:5,db2:5/d", {}),
            ("postgresql://u@/d?host=::1,db2&port=5", {}),
            ("postgresql://u@/d", {"PGHOST": "::1,db2", "PGPORT": "5"}),
            ("postgresql://?service=keys", {"PGSERVICEFILE": path}),
            ("postgresql://", {"PGSERVICEFILE": path, "PGSERVICE": "keys"}),
        ):
            with self.subTest(url), mock.patch.dict(os.environ, environ):
                found = [place.parameters for place in places(url)]
                self.assertEqual([(one["host"], one["port"]) for one in found], hosts)
                self.assertEqual(shown(url), "postgresql://u@[::1]:5,db2:5/d")

    def file(self, text: str) -> str:
        number, name = tempfile.mkstemp(".conf")
        self.addCleanup(os.unlink, name)
        with open(number, "w", encoding="utf-8") as file:
            file.write(text)
        return name

    def test_give_each_host_its_own_address(self):
        found = places("postgresql://one,two/d?hostaddr=127.0.0.1,127.0.0.2")
        pairs = [(one.parameters["host"], one.parameters["hostaddr"]) for one in found]
        self.assertEqual(pairs, [("one", "127.0.0.1"), ("two", "127.0.0.2")])

    def test_never_wait_for_ever(self):
        for given, used in (("0", 3), ("", 3), ("-1", 3), ("10", "10")):
            with self.subTest(given):
                (place,) = places(f"postgresql://h/d?connect_timeout={given}")
                self.assertEqual(place.parameters["connect_timeout"], used)

    def test_are_shown_in_one_line_and_one_word(self):
        self.assertEqual(
            shown("postgresql://a%20b@%2Frun%2Fpg:5/c%0Ad"),
            "postgresql://a%20b@%2Frun%2Fpg:5/c%0Ad",
        )

    def test_show_no_password_that_was_not_escaped(self):
        for password in ("gehe@im", "gehe/im", "12/im", "gehe/im@x", "gehe?im", "gehe#im", "g%im"):
            for end in ("/d", "/d?sslmode=disable", ":5/d", ",h2/d"):
                url = f"postgresql://keys:{password}@h{end}"
                with self.subTest(url):
                    try:
                        said = shown(url)
                    except CannotOpen as error:
                        said = str(error)
                    self.assertNotIn("im", said.replace("sslmode", ""))


class Refusals(postgres.OnAPrimary):
    def refusal(self, url: str | None = None) -> str:
        with self.assertRaises(CannotOpen) as caught:
            PostgreSQL(url or self.url)
        self.assertEqual(str(caught.exception).count("\n"), 0)
        return str(caught.exception)

    def test_tables_of_others_under_our_names_are_told_from_ours(self):
        for made in (
            "CREATE TABLE schema_version(version text)",  # as some tools for migrations have it
            "CREATE TABLE schema_version(version text); INSERT INTO schema_version VALUES ('1.2')",
            "CREATE TABLE schema_version(version bigint)",
            "CREATE TABLE schema_version(version int); INSERT INTO schema_version VALUES (1), (1)",
            "CREATE TABLE schema_version(number int); INSERT INTO schema_version VALUES (1)",
            "CREATE TABLE keys(kid bigint)",
        ):
            with self.subTest(made):
                self.sql(f"SET ROLE keys; {made}")
                said = self.refusal()
                self.sql(f"DROP TABLE {made.split('(')[0].split()[-1]}")
                self.assertIn("that is not ours: make a database of its own", said)

    def test_whatever_else_has_one_of_our_names_is_named(self):
        for made, wanted in (
            ("CREATE VIEW users AS SELECT 1", 'relation "users" already exists'),
            (
                "CREATE FUNCTION instr(text, text) RETURNS int LANGUAGE sql AS 'SELECT 1'",
                'function "instr"',
            ),
        ):
            with self.subTest(made):
                self.sql(made)
                self.assertIn(wanted, self.refusal())
                self.assertEqual(self.sql("SELECT to_regclass('keys') IS NULL"), "t")
                self.sql(f"DROP {' '.join(made.split('(')[0].split()[1:3])}")

    def test_a_lost_table_is_named(self):
        self.open_engine()
        self.sql("DROP TABLE key_policy")
        self.assertIn("its table key_policy is missing", self.refusal())

    def test_a_role_that_may_not_make_tables_or_functions_is_told_so(self):
        self.sql(f"ALTER DATABASE {self.url.rpartition('/')[2]} OWNER TO postgres")
        self.assertIn("permission denied for schema public", self.refusal())
        self.sql(
            "GRANT CREATE ON SCHEMA public TO keys; REVOKE USAGE ON LANGUAGE plpgsql FROM public"
        )
        self.assertIn("permission denied for language plpgsql", self.refusal())
        self.assertEqual(self.sql("SELECT to_regclass('keys') IS NULL"), "t")

    def test_a_role_that_may_only_read_is_told_so(self):
        self.open_engine().close()
        self.sql("ALTER ROLE keys SET default_transaction_read_only = on")
        self.addCleanup(self.sql, "ALTER ROLE keys RESET default_transaction_read_only")
        self.assertIn("session is read-only", self.refusal())

    def test_a_standby_alone_is_refused(self):
        standby = self.clusters.standby(self.primary, "reading")
        self.addCleanup(standby.stop)
        self.assertIn("session is read-only", self.refusal(self.clusters.url(standby)))


class ComingAndGoing(postgres.OnAPrimary):
    """What becomes of connections and databases under a running server."""

    def test_a_socket_of_the_file_system_is_reached(self):
        folder = str(self.primary.folder).replace("/", "%2F")
        url = f"postgresql://keys@{folder}:{self.primary.port}/{self.url.rpartition('/')[2]}"
        engine = PostgreSQL(url)
        self.addCleanup(engine.close)
        engine.probe()
        self.assertEqual(engine.name, url)

    def test_no_connection_left_is_unavailable_until_there_is_one(self):
        engine = self.open_engine()
        self.addCleanup(self.sql, "ALTER ROLE keys CONNECTION LIMIT -1")
        self.sql(
            "ALTER ROLE keys CONNECTION LIMIT 0; SELECT count(pg_terminate_backend(pid, 9000)) "
            "FROM pg_stat_activity WHERE usename = 'keys'"
        )
        for attempt in (engine.probe, lambda: engine.read("SELECT 1")):
            with self.assertRaisesRegex(Unavailable, "too many connections"):
                attempt()
        self.sql("ALTER ROLE keys CONNECTION LIMIT -1")
        wait_until("it works again", lambda: not postgres.raises(Unavailable, engine.probe))

    def test_a_primary_that_was_made_read_only_is_obeyed(self):
        """As operators fence one off: sessions that are there already learn of it too."""
        engine = self.open_engine()
        engine.probe()
        self.addCleanup(self.primary.configure)
        self.primary.configure(default_transaction_read_only="on")
        wait_until("it is obeyed", lambda: postgres.raises(Unavailable, engine.probe))
        self.primary.configure()
        wait_until("it works again", lambda: not postgres.raises(Unavailable, engine.probe))

    def test_a_database_that_was_dropped_is_unavailable_and_its_successor_without_tables_too(self):
        engine = self.open_engine()
        engine.watch(lambda: None)
        name = self.url.rpartition("/")[2]
        self.primary.sql(f"DROP DATABASE {name} WITH (FORCE)")
        self.assertTrue(postgres.raises(Unavailable, engine.probe))
        wait_until("the stamp tells", lambda: postgres.raises(Unavailable, engine.stamp))
        self.primary.sql(f"CREATE DATABASE {name} OWNER keys")
        wait_until("it is reached", lambda: "schema_version" in self.trouble(engine))
        self.assertTrue(postgres.raises(Unavailable, engine.stamp))

    def trouble(self, engine: PostgreSQL) -> str:
        try:
            engine.probe()
        except Unavailable as error:
            return str(error)
        return ""


class APassword(postgres.OnAPrimary):
    """In the URL of a server and of its operator."""

    def setUp(self):
        super().setUp()
        self.password = self.clusters.password
        self.secret_url = self.url.replace("keys@", f"keys:{self.password}@")

    def test_is_in_no_line_of_a_server_whatever_befalls_it(self):
        server = Server(
            *("--port", "0", "--db", self.secret_url, "--argon2", CHEAPEST),
            environ={"NOT_MY_KEY": SECRET, "PGPASSFILE": "/dev/null"},
        )
        self.addCleanup(server.end)
        self.assertIn(f"database={self.url} ", "".join(server.lines))
        self.addCleanup(self.sql, "ALTER ROLE keys CONNECTION LIMIT -1")
        self.sql(
            "ALTER ROLE keys CONNECTION LIMIT 0; SELECT count(pg_terminate_backend(pid, 9000)) "
            "FROM pg_stat_activity WHERE usename = 'keys'"
        )
        status, answer = server.ask("POST", "/register", {"username": "alice"})
        self.assertEqual(status, 503)
        wait_until("it is told", lambda: "too many connections" in "".join(server.lines))
        self.sql("ALTER ROLE keys CONNECTION LIMIT -1")
        wait_until("it works again", lambda: "works again" in "".join(server.lines))
        metrics = urllib.request.urlopen(f"{server.url}/metrics", timeout=10).read().decode()
        self.assertEqual(server.end(), 0)
        self.assertNotIn(self.password, "".join(server.lines) + metrics + str(answer))

    def test_is_in_nothing_that_a_command_prints(self):
        wrong = self.secret_url.replace(self.password, "geheim")
        odd = self.secret_url.replace("postgresql", "Postgresql")
        file = str(self.clusters.folder / "of-migrate.db")
        for words in (
            ("--db", self.secret_url, "keys", "rotate"),
            ("--db", self.secret_url, "keys", "list"),
            ("--db", self.secret_url, "doctor"),
            ("--db", self.secret_url, "backup", "file"),
            ("--db", self.secret_url, "users", "reset", "nobody"),
            ("--db", wrong, "doctor"),
            ("--db", wrong, "keys", "list"),
            ("--db", odd, "doctor"),
            ("migrate", "--from", self.secret_url, "--to", self.secret_url),
            ("migrate", "--from", odd, "--to", file),
            ("migrate", "--from", wrong, "--to", file),
            ("migrate", "--from", self.secret_url, "--to", file),
        ):
            with self.subTest(words):
                done = subprocess.run(
                    [sys.executable, str(ROOT / "admin.py"), *words],
                    env={**os.environ, "NOT_MY_KEY": SECRET, "PGPASSFILE": "/dev/null"},
                    capture_output=True,
                    text=True,
                    timeout=60,
                )
                printed = done.stdout + done.stderr
                self.assertNotEqual(printed, "")
                self.assertNotIn("Traceback", printed)
                self.assertNotIn(self.password, printed)
                self.assertNotIn("geheim", printed)


class Texts(postgres.OnAPrimary):
    """What PostgreSQL cannot hold, and SQLite can."""

    def test_nul_and_half_characters_are_the_clients_mistakes(self):
        server = Server(
            *("--port", "0", "--db", self.url, "--argon2", CHEAPEST, "--auth-limit", "off"),
            environ={"NOT_MY_KEY": SECRET},
        )
        self.addCleanup(server.end)
        for text in ("a\0b", "\0", "\ud800", "a\udfffb", "￿", "\U0010ffff"):
            for path, document in (
                ("/register", {"username": text}),
                ("/register", {"username": "alice", "email": f"{text}@example.org"}),
                ("/auth", {"username": text, "password": "x"}),
                ("/auth", {"username": "alice", "password": text}),
            ):
                with self.subTest(path, document=ascii(document)):
                    status, answer = server.ask("POST", path, document)
                    self.assertIn(status, (400, 401), answer)

    def test_words_of_a_command_that_are_no_text_are_refused_in_a_sentence(self):
        odd = b"a\xff"
        self.assertEqual(self.admin("users", "add", "alice").returncode, 0)
        for words in (
            ("users", "add", odd),
            ("users", "add", "bob", "--email", odd),
            ("users", "reset", odd),
            ("users", "delete", odd),
            ("users", "claims", odd),
            ("users", "claims", "alice", b"role=\xff"),
            ("users", "claims", "alice", b'role:="\\ud800"'),
            ("log", "--user", odd),
            ("log", "--address", odd),
            ("log", "--since", odd),
            ("keys", "revoke", odd),
        ):
            with self.subTest(words):
                done = self.admin(*words)
                self.assertIn(done.returncode, (1, 2))
                self.assertEqual(done.stderr.count("\n"), 1, done.stderr)

    def admin(self, *words: str | bytes) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "admin.py"), "--db", self.url, *words],
            env={**os.environ, "NOT_MY_KEY": SECRET},
            capture_output=True,
            text=True,
            timeout=60,
        )


if __name__ == "__main__":
    unittest.main()
