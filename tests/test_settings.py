"""settings.py: every value that makes sense is taken, every other is named; and the secret."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import stat
import unittest

from jwksd.ops import secret, settings
from jwksd.ops.settings import ConfigurationError, Settings, configure, make_settings
from tests.support import TemporaryFolder


class Values(unittest.TestCase):
    def test_a_flag_wins_over_a_variable_wins_over_the_default(self):
        environ = {"JWKS_PORT": "1", "JWKS_KEY_LEAD": "12h"}
        config = configure({"port": "2"}, environ)
        self.assertEqual((config.port, config.key_lead, config.host), (2, 43_200, "127.0.0.1"))

    def test_durations_have_units(self):
        for text, seconds in (("90", 90), ("4s", 4), ("90m", 5400), ("1h", 3600),
                              ("30d", 2_592_000),
                              ("500ms", 0.5), ("1.5s", 1.5), ("2w", 1_209_600)):  # fmt: skip
            self.assertEqual(settings.duration(text), seconds)
        for text in ("", "-1s", "1 h", "1y", "1e3", "nan", "inf", "٣s", "h"):
            with self.subTest(text=text):
                self.assertRaises(ValueError, settings.duration, text)

    def test_rests_are_never_longer_when_places_run_out(self):
        for text, idle, crowded in (("600s", 600, 5), ("75s", 75, 5), ("2s", 2, 2)):
            limits = make_settings({"idle_timeout": text}).limits
            self.assertEqual((limits.idle, limits.idle_full), (idle, crowded))

    def test_origins_are_those_that_a_browser_sends(self):
        for text in ("https://app.example", "http://[::1]:8080", "http://[::80]", "https://a:80"):
            self.assertEqual(make_settings({"allow_origin": text}).allow_origin, (text,))
        for text in ("https://app.example:443", "http://app.example:80", "http://[::1]:80",
                     "https://a:99999", "https://a:0", "https://a:080", "https://u@a", "*", "null",
                     "https://a/", "https://A.example"):  # fmt: skip
            with self.subTest(text):
                self.assertRaises(ConfigurationError, make_settings, {"allow_origin": text})

    def test_a_value_that_cannot_be_meant_names_flag_and_variable(self):
        for name, value in (
            ("port", "70000"), ("port", "-1"), ("port", "http"), ("token_ttl", "0s"),
            ("token_ttl", "1.5s"), ("idle_timeout", "0s"), ("auth_limit", "many"),
            ("issuer", "issuer.example"),
            ("issuer", "https://a.example/?x"), ("trusted_proxy", "10.0.0.1/8"),
            ("argon2", "t=0,m=8,p=1"), ("argon2", "m=8"), ("access_log", "xml"),
            ("verified_cache", "maybe"), ("host", ""), ("db", " "), ("audience", ""),
            ("key_lifetime", "999999w"), ("argon2", "t=1,m=9999999,p=1"),
        ):  # fmt: skip
            with self.subTest(name=name, value=value):
                flag = name.replace("_", "-")
                with self.assertRaisesRegex(ConfigurationError, f"--{flag} .JWKS_{name.upper()}."):
                    make_settings({name: value})

    def test_a_set_that_cannot_hold_the_rotation_names_the_inequality(self):
        with self.assertRaisesRegex(ConfigurationError, "key-lifetime .* must be greater than"):
            make_settings({"key_lifetime": "1h"})
        with self.assertRaisesRegex(ConfigurationError, "key-lead .1 s. must be at least 2 s"):
            make_settings({"key_lead": "1s"})

    def test_half_of_tls_is_an_error(self):
        with self.assertRaisesRegex(ConfigurationError, "needed together"):
            make_settings({"tls_cert": "cert.pem"})

    def test_a_database_that_is_neither_a_file_nor_ours_is_not_quoted(self):
        for text in (
            "Postgresql://keys:geheim@db1/keys",
            "mysql://keys:geheim@db1/keys",
            "host=db1 password=geheim",
            "dbname = keys password = geheim",
        ):
            with self.subTest(text), self.assertRaisesRegex(ConfigurationError, "--db") as caught:
                configure({"db": text}, {})
            self.assertNotIn("geheim", str(caught.exception))
        for text in ("keys.db", "a=b.db", "postgresql://keys:geheim@db1/keys?host=x", "C:/keys.db"):
            self.assertEqual(configure({"db": text}, {}).db, text)

    def test_none_is_the_default(self):
        self.assertEqual(make_settings({"audience": None, "port": None}), Settings())

    def test_an_unknown_name_is_an_error(self):
        with self.assertRaisesRegex(ConfigurationError, "there is no setting colour"):
            make_settings({"colour": "red"})

    def test_lists_are_taken_as_words_or_with_commas(self):
        parser = settings.Parser(prog="x")
        settings.add_settings(parser)
        flags = vars(parser.parse_args(["--trusted-proxy", "10.0.0.0/8", "::1", "--port", "0"]))
        self.assertEqual(len(make_settings(flags).trusted_proxy), 2)
        self.assertEqual(
            len(configure({}, {"JWKS_TRUSTED_PROXY": "::1, 10.0.0.1"}).trusted_proxy), 2
        )

    def test_the_help_names_every_setting_and_its_default(self):
        parser = settings.Parser(prog="x")
        settings.add_settings(parser)
        text = parser.format_help()
        for row in dataclasses.fields(Settings):
            self.assertIn("--" + row.name.replace("_", "-"), text)

    def test_a_usage_error_is_one_line_and_exit_2(self):
        parser = settings.Parser(prog="x")
        settings.add_settings(parser)
        output = io.StringIO()
        with contextlib.redirect_stderr(output), self.assertRaises(SystemExit) as exit_:
            parser.parse_args(["--prot", "1"])
        self.assertEqual(exit_.exception.code, 2)
        self.assertEqual(output.getvalue().count("\n"), 1)


class TheSecret(TemporaryFolder):
    def setUp(self):
        super().setUp()
        self.database, self.lines = self.open_database(), []
        self.file = self.folder / "keys.db.secret"

    def load(self, **environ):
        self.environ = environ
        current, self.previous = secret.load_secret(self.database, self.environ, self.lines.append)
        return current

    def add_key(self):
        self.database.write(lambda c: c.execute("INSERT INTO keys (key, exp) VALUES (x'00', 1)"))

    def test_is_the_variable_which_then_leaves_the_environment(self):
        self.assertEqual(self.load(NOT_MY_KEY="s" * 20, OTHER="x"), b"s" * 20)
        self.assertEqual(self.environ, {"OTHER": "x"})
        self.assertEqual(self.lines, [])
        self.assertFalse(self.file.exists())

    def test_is_the_content_of_the_named_file_without_its_line_end(self):
        path = self.folder / "secret.txt"
        path.write_bytes(b"twenty characters...\r\n")
        self.assertEqual(self.load(NOT_MY_KEY_FILE=str(path)), b"twenty characters...")

    def test_is_else_generated_once_in_a_file_for_us_alone_with_a_warning(self):
        secret = self.load()
        self.assertGreaterEqual(len(secret), 43)
        self.assertEqual(stat.S_IMODE(self.file.stat().st_mode), 0o600)
        self.assertIn("NOT_MY_KEY is not set", self.lines[0])
        self.assertEqual(self.load(), secret)
        names = sorted(file.name for file in self.folder.iterdir())
        self.assertEqual([name for name in names if "secret" in name], ["keys.db.secret"])

    def test_blank_is_an_error_and_not_the_same_as_unset(self):
        for blank in ("", "  ", "\n"):
            with self.assertRaisesRegex(ConfigurationError, "blank"):
                self.load(NOT_MY_KEY=blank)
        self.assertFalse(self.file.exists())

    def test_missing_beside_sealed_keys_is_an_error_that_makes_nothing(self):
        self.add_key()
        with self.assertRaisesRegex(ConfigurationError, "set NOT_MY_KEY, or put back"):
            self.load()
        self.assertFalse(self.file.exists())

    def test_is_never_written_through_a_link(self):
        target = self.folder / "target"
        os.symlink(target, self.file)
        with self.assertRaises(ConfigurationError):
            self.load()
        self.assertFalse(target.exists())

    def test_is_never_read_through_a_link_either(self):
        target = self.folder / "target"
        target.write_bytes(b"twenty characters...\n")
        os.symlink(target, self.file)
        with self.assertRaisesRegex(ConfigurationError, "NOT_MY_KEY_FILE"):
            self.load()

    def test_generated_but_readable_by_others_is_warned_about(self):
        self.load()
        self.file.chmod(0o640)
        self.lines.clear()
        self.load()
        self.assertIn("can be read by others", self.lines[0])

    def test_may_have_a_previous_one_which_leaves_the_environment_too(self):
        path = self.folder / "old.txt"
        path.write_bytes(b"the one before\n")
        for variables in (
            {"NOT_MY_KEY_PREVIOUS": "the one before"},
            {"NOT_MY_KEY_PREVIOUS_FILE": str(path)},
        ):
            with self.subTest(variables=variables):
                self.load(NOT_MY_KEY="s" * 20, **variables)
                self.assertEqual((self.previous, self.environ), (b"the one before", {}))
        self.load(NOT_MY_KEY="s" * 20)
        self.assertIsNone(self.previous)

    def test_a_blank_previous_one_is_an_error(self):
        with self.assertRaisesRegex(ConfigurationError, "NOT_MY_KEY_PREVIOUS is blank"):
            self.load(NOT_MY_KEY="s" * 20, NOT_MY_KEY_PREVIOUS=" ")

    def test_may_be_generated_beside_sealed_keys_if_a_previous_one_is_given(self):
        self.add_key()
        self.assertGreaterEqual(len(self.load(NOT_MY_KEY_PREVIOUS="the one before")), 43)
        self.assertTrue(self.file.exists())

    def test_a_short_one_is_warned_about(self):
        self.assertEqual(self.load(NOT_MY_KEY="short"), b"short")
        self.assertIn("only 5 bytes", self.lines[0])

    def test_a_file_that_cannot_be_read_is_an_error(self):
        with self.assertRaisesRegex(ConfigurationError, "cannot read the secret"):
            self.load(NOT_MY_KEY_FILE=str(self.folder / "none"))


if __name__ == "__main__":
    unittest.main()
