"""The lab: its tokens have one flaw each, and a hole in a verifier is found."""

from __future__ import annotations

import io
import json
import re
import sys
import threading
import time
import unittest
import unittest.mock
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import jwt_minimal
import lab
from jwksd import flaws
from tests import jwt_refusals as vectors
from tests.support import ROOT, TemporaryFolder, some_key

NOW = 1_800_000_000
KEY = flaws.numbers_of(some_key(0))
# A verifier in a line: starts fast, and is asked by its exit status like any other.
VERIFIER = """import sys, os, json; sys.path.insert(0, {root!r}); import jwt_minimal as m
jwks = json.load(open(os.environ["LAB_JWKS"])); token = sys.argv[-1]
m.decode(token, jwks, issuer=os.environ["LAB_ISSUER"], audience=sys.argv[1], now={now})"""


@cache
def made() -> dict[str, Any]:
    return lab.catalogue(KEY, NOW)


def row(name: str) -> dict[str, Any]:
    return next(row for row in made()["tokens"] if row["name"] == name)


def members(token: str) -> tuple[Any, Any, str]:
    head, payload, signature = token.split(".")
    decode = jwt_minimal.b64url_decode
    return json.loads(decode(head)), json.loads(decode(payload)), signature


def differences(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    return {name for name in {*one, *other} if one.get(name, ...) != other.get(name, ...)}


class TheCatalogue(unittest.TestCase):
    def test_is_judged_rightly_by_jwt_minimal_row_by_row(self):
        checks = {"issuer": made()["issuer"], "audience": made()["audience"], "now": NOW}
        for row in made()["tokens"]:
            with self.subTest(row["name"]):
                refusal = vectors.refusal(row["token"], made()["jwks"], **checks)
                self.assertEqual("refuse" if refusal else "accept", row["expect"], refusal)

    def test_names_each_token_once(self):
        names = [row["name"] for row in made()["tokens"]]
        self.assertEqual(len(names), len(set(names)))
        self.assertGreater(len(names), 100)

    def test_says_why_and_where_that_stands(self):
        for row in made()["tokens"]:
            self.assertRegex(row["section"], r"^RFC \d{4} §\d")
            self.assertTrue(row["why"])
            self.assertIn((row["expect"], row["level"]), {
                ("accept", "must"), ("refuse", "must"), ("refuse", "should"),
            })  # fmt: skip

    def test_signs_rightly_by_the_other_algorithms_of_rsa(self):
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import padding

        pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
        kinds = {"RS384": (padding.PKCS1v15(), hashes.SHA384()),
                 "RS512": (padding.PKCS1v15(), hashes.SHA512()),
                 "PS256": (pss, hashes.SHA256())}  # fmt: skip
        for alg, kind in kinds.items():
            message, _, signature = row(f"alg {alg!r}")["token"].rpartition(".")
            raw = jwt_minimal.b64url_decode(signature)
            some_key(0).public_key().verify(raw, message.encode(), *kind)

    def test_serves_json_as_it_is_documented(self):
        self.assertEqual(set(made()), {"jwks", "issuer", "audience", "now", "tokens"})
        json.dumps(made())

    def test_publishes_no_private_number(self):
        for jwk in made()["jwks"]["keys"]:
            self.assertLessEqual(set(jwk), {"kty", "use", "alg", "kid", "n", "e"})


class AFlawedToken(unittest.TestCase):
    def test_is_well_signed_where_the_signature_is_not_the_flaw(self):
        # The message is taken as it stands, so that header and claims cannot get in the way.
        key = made()["jwks"]["keys"][0]
        n, e = jwt_minimal.rsa_numbers(key)
        spelled = [row("a line end within it"), row("padding after the header")]
        spelled += [row("one character too many"), row("the standard alphabet")]
        spelled += [row("a letter beyond ASCII"), row("a digit beyond ASCII")]
        found = [(it["name"], it["token"]) for it in spelled]
        for group in ("broken_json", "odd_json", "extensions", "odd_headers", "wrong_claims",
                      "lax_claims", "other_keys"):  # fmt: skip
            found += getattr(flaws, group)(signer())
        for name, token in found:
            if name == "an empty header":  # has no room for the kid of any key
                continue
            with self.subTest(name):
                message, _, signature = token.rpartition(".")
                # As lax readers take it: another alphabet, wide digits, what is foreign.
                kept = signature.translate(str.maketrans("+/", "-_")).replace("\uff11", "1")
                raw = jwt_minimal.b64url_decode(kept.replace("\u00e9", ""))
                self.assertTrue(jwt_minimal.verify_rs256(message.encode(), raw, n, e))

    def test_differs_from_the_good_one_in_one_claim(self):
        _, good, _ = members(row("good")["token"])
        for group in (flaws.wrong_claims, flaws.lax_claims):
            for name, token in group(signer()):
                with self.subTest(name):
                    header, claims, _ = members(token)
                    self.assertEqual(header, members(row("good")["token"])[0])
                    self.assertEqual(len(differences(claims, good)), 1)

    def test_differs_from_the_good_one_in_one_header_member_or_an_extension_and_its_crit(self):
        good, claims, _ = members(row("good")["token"])
        for group in (flaws.extensions, flaws.odd_headers, flaws.unnamed_keys, flaws.other_keys):
            for name, token in group(signer()):
                with self.subTest(name):
                    header, payload, _ = members(token)
                    self.assertEqual(payload, claims)
                    changed = differences(header, good)
                    self.assertEqual(len(changed - {"crit"}) or len(changed), 1)

    def test_differs_from_the_good_one_in_its_signature(self):
        good = row("good")["token"].rpartition(".")[0]
        for name, _ in flaws.blocks(signer(), b""):
            with self.subTest(name):
                message, _, signature = row(name)["token"].rpartition(".")
                self.assertEqual(message, good)
                self.assertNotEqual(signature, row("good")["token"].rpartition(".")[2])


class AVerifier(unittest.TestCase):
    def trial(self, names: list[str], hole: str = "") -> list[str]:
        """The names of the tokens that a verifier with a hole misjudges."""
        script = VERIFIER.format(root=str(ROOT), now=NOW) if hole != "all" else ""
        script = f"{hole}\n{script}" if hole not in ("", "all") else script
        command = [sys.executable, "-I", "-S", "-c", script, "{audience}"]
        rows = [row(name) for name in names]
        return [missed["name"] for missed in lab.try_verifier(command, {**made(), "tokens": rows})]

    def test_that_is_right_missed_nothing(self):
        self.assertEqual(self.trial(["good", "good, no typ", "expired", "empty"]), [])

    def test_that_believes_alg_none_is_found_out(self):
        hole = "import sys; sys.argv[-1].endswith('.') and sys.exit(0)"
        names = ["good", "expired", "alg none and no signature"]
        self.assertEqual(self.trial(names, hole), ["alg none and no signature"])

    def test_that_refuses_everything_misjudged_the_good_ones(self):
        self.assertEqual(self.trial(["good", "expired"], "import sys; sys.exit(3)"), ["good"])

    def test_that_accepts_everything_missed_every_flaw(self):
        self.assertEqual(self.trial(["good", "expired", "no exp"], "all"), ["expired", "no exp"])

    def test_that_is_killed_by_a_signal_has_crashed_and_not_refused(self):
        for hole in ("import os; os.abort()", "import sys; sys.exit(139)"):
            script = [sys.executable, "-I", "-S", "-c", hole]
            missed = lab.try_verifier(script, {**made(), "tokens": [row("expired")]})
            self.assertEqual([it["verdict"] for it in missed], ["crash"])

    def test_is_not_waited_for_because_of_a_child_that_holds_its_output(self):
        hole = "import subprocess as s; s.Popen(['sleep', '60']); raise SystemExit(1)"
        began = time.monotonic()
        command = [sys.executable, "-I", "-S", "-c", hole]
        self.assertEqual(lab.try_verifier(command, {**made(), "tokens": [row("expired")]}), [])
        self.assertLess(time.monotonic() - began, 30)

    def test_that_says_nothing_in_time_misjudged_it(self):
        with unittest.mock.patch.object(lab, "PATIENCE", 0.2):
            self.assertEqual(self.trial(["good"], "import time; time.sleep(9)"), ["good"])


class AService(unittest.TestCase):
    """One that lets in by status, as a verifier with the lab's JWKS decides."""

    def ask(self, judge) -> list[tuple[str, str]]:
        """What was misjudged, with its verdict, of a few rows."""

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(judge(self.headers.get("X-Token", "")))
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *words):
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as service:
            threading.Thread(target=service.serve_forever, args=(0.01,), daemon=True).start()
            url = f"http://127.0.0.1:{service.server_address[1]}/me?x=1"
            rows = [row(name) for name in ("good", "expired", "a line end within it")]
            found = {**made(), "tokens": rows}
            missed = lab.try_service(url, ["X-Token: {token}"], found)
            service.shutdown()
        self.assertEqual(len(found["tokens"]), 2)  # no header field carries a line end
        return [(it["name"], it["verdict"]) for it in missed]

    def judge(self, token: str) -> int:
        checks = {"issuer": made()["issuer"], "audience": made()["audience"], "now": NOW}
        return 401 if vectors.refusal(token, made()["jwks"], **checks) else 204

    def test_that_is_right_missed_nothing(self):
        self.assertEqual(self.ask(self.judge), [])

    def test_that_answers_5xx_has_crashed(self):
        self.assertEqual(self.ask(lambda token: 500), [("good", "crash"), ("expired", "crash")])

    def test_finds_the_keys_where_the_lab_serves_them(self):
        with lab.serve(made()["jwks"], 0) as server:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            url = f"http://127.0.0.1:{server.server_address[1]}{lab.JWKS_PATH}"
            found = jwt_minimal.read_object(url)
            server.shutdown()
        self.assertEqual(found, made()["jwks"])


class ThePageOnTheLab(TemporaryFolder):
    def test_has_a_verifier_that_works(self):
        page = (ROOT / "docs" / "lab.md").read_text("utf-8")
        code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
        file = self.folder / "verifier.py"
        file.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{code}", "utf-8")
        fresh = lab.catalogue(KEY, int(time.time()))
        rows = [row for row in fresh["tokens"] if row["name"] in ("good", "expired", "no issuer")]
        missed = lab.try_verifier([sys.executable, str(file)], {**fresh, "tokens": rows})
        self.assertEqual((len(rows), missed), (3, []))

    def test_has_the_table_that_the_command_prints(self):
        page = (ROOT / "docs" / "lab.md").read_text("utf-8")
        self.assertIn(f"\n{lab.table(made()['tokens'])}\n", page)

    def test_names_only_tokens_that_there_are(self):
        page = (ROOT / "docs" / "lab.md").read_text("utf-8")
        named = re.findall(r'"([^"]+)"', re.findall(r"lab\.py make ([^`]*)`", page)[0])
        self.assertLessEqual(set(named), {row["name"] for row in made()["tokens"]})


class TheCommand(TemporaryFolder):
    def run_lab(self, *words: str) -> tuple[int, str, str]:
        def catalogue(key, now):  # made once: Python takes seconds for so many signatures
            self.assertEqual(key, KEY)
            self.assertLess(abs(now - time.time()), 60)
            return {**made()}

        output, errors = io.StringIO(), io.StringIO()
        replaced = unittest.mock.patch.object(lab, "catalogue", catalogue)
        with redirect_stdout(output), redirect_stderr(errors), replaced:
            status = lab.main(["--key", str(self.key), *words])
        return status, output.getvalue(), errors.getvalue()

    def setUp(self) -> None:
        super().setUp()
        self.key = self.folder / "key.pem"
        form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.key.write_bytes(some_key(0).private_bytes(*form))

    def test_list_names_every_token(self):
        status, output, _ = self.run_lab("list")
        self.assertEqual(status, 0)
        for row in made()["tokens"]:
            self.assertIn(row["name"], output)

    def test_make_prints_what_is_named(self):
        _, output, _ = self.run_lab("make", "expired", "no exp")
        self.assertEqual([r["name"] for r in json.loads(output)["tokens"]], ["expired", "no exp"])

    def test_make_says_which_name_is_unknown(self):
        status, _, errors = self.run_lab("make", "expierd")
        self.assertEqual((status, errors.count("\n")), (2, 1))
        self.assertIn("no such token: expierd", errors)

    def test_must_leaves_out_what_is_advice(self):
        output = self.run_lab("list", "--must")[1]
        self.assertIn("expired", output)
        self.assertNotIn("no exp", output)

    def test_options_may_stand_on_either_side_of_the_word_run(self):
        tried: list[tuple[list[str], int]] = []

        def try_verifier(command, made):
            tried.append((command, len(made["tokens"])))
            return []

        with unittest.mock.patch.object(lab, "try_verifier", try_verifier):
            for words in (("--must", "run"), ("run", "--must")):
                self.run_lab(*words, "--", "true", "--must", "--", "x")
        self.assertEqual(tried[0], tried[1])
        self.assertEqual(tried[0][0], ["true", "--must", "--", "x"])

    def test_run_exits_1_when_a_flaw_was_missed(self):
        with unittest.mock.patch.object(lab, "try_verifier", lambda command, made: []):
            self.assertEqual(self.run_lab("run", "--", "true")[0], 0)
        missed = [{**row("expired"), "verdict": "accept"}]
        with unittest.mock.patch.object(lab, "try_verifier", lambda command, made: missed):
            status, output, _ = self.run_lab("run", "--", "true")
        self.assertEqual(status, 1)
        self.assertRegex(output, r"must +refuse +accept +expired +RFC 7519 §4.1: a claim")

    def test_run_exits_2_when_there_is_no_such_program(self):
        status, _, errors = self.run_lab("run", "--", "/nowhere/verifier")
        self.assertEqual((status, errors.count("\n")), (2, 1))

    def test_a_key_that_cannot_be_read_exits_2(self):
        self.key.write_text("no key")
        self.assertEqual(self.run_lab("list")[0], 2)


def claims() -> dict[str, Any]:
    return members(row("good")["token"])[1]


def signer() -> flaws.Signer:
    header = members(row("good")["token"])[0]
    return flaws.Signer(KEY, header, claims(), "cube")


if __name__ == "__main__":
    unittest.main()
