"""What jwt_minimal promises: one spelling in, one refusal out, and nothing needed to verify."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import random
import shutil
import sys
import tempfile
import threading
import unittest
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

import jwksd
import jwt_minimal
from jwt_minimal import b64url_decode, b64url_encode, decode, encode, explain, sign, verify
from tests import jwt_refusals as vectors

RFC = vectors.RFC
TABLE = json.loads((vectors.VECTORS / "refusals.json").read_text("utf-8"))
NOW = TABLE["now"]


PRIVATE_KEY = vectors.published_key()
JWK = jwt_minimal.public_jwk(PRIVATE_KEY.public_key())
JWKS = {"keys": [JWK]}


def issue(**claims: Any) -> str:
    return encode({"exp": NOW + 60, **claims}, PRIVATE_KEY, JWK["kid"])


class Base64url(unittest.TestCase):
    def test_reads_back_what_it_wrote_at_every_length(self) -> None:
        for length in range(70):
            raw = random.Random(length).randbytes(length)
            self.assertEqual(b64url_decode(b64url_encode(raw)), raw)

    def test_writes_the_example_of_rfc_7515_appendix_c(self) -> None:
        self.assertEqual(b64url_encode(bytes([3, 236, 255, 224, 193])), "A-z_4ME")

    def test_refuses_every_other_spelling(self) -> None:
        for text in (
            "Q",
            "QQ==",
            "QR",
            "QUI=",
            "QUJ",
            " QQ",
            "QQ\n",
            "Q Q",
            "+/+/",
            "QQ.",
            "é",
            "\ud800",
        ):
            with self.subTest(text), self.assertRaises(jwt_minimal.MalformedToken):
                b64url_decode(text)

    def test_each_pair_of_characters_that_means_one_byte_is_accepted_once(self) -> None:
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        accepted = 0
        for first in alphabet:
            for second in alphabet:
                with contextlib.suppress(jwt_minimal.MalformedToken):
                    accepted += len(b64url_decode(first + second))
        self.assertEqual(accepted, 256)


class Issuing(unittest.TestCase):
    def test_signs_the_exact_bytes_of_rfc_7515_a2(self) -> None:
        published = RFC["rfc7515_a2"]
        header = json.loads(published["protected_header"])
        self.assertEqual(
            sign(header, published["payload"].encode(), PRIVATE_KEY), published["token"]
        )

    def test_the_header_has_three_members_and_no_more(self) -> None:
        head = b64url_decode(issue().split(".")[0])
        self.assertEqual(head.decode(), f'{{"alg":"RS256","typ":"JWT","kid":"{JWK["kid"]}"}}')

    def test_equal_claims_give_equal_bytes_in_whatever_order_they_come(self) -> None:
        claims = {"exp": NOW, "sub": "joe", "realm": {"b": 1, "a": [2]}}
        turned = {"realm": {"a": [2], "b": 1}, "sub": "joe", "exp": NOW}
        self.assertEqual(encode(claims, PRIVATE_KEY, "k"), encode(turned, PRIVATE_KEY, "k"))

    def test_what_it_issues_it_accepts_and_gives_back(self) -> None:
        claims = {"exp": NOW + 1, "sub": "Zoë 🙂 \x00", "aud": ["us"], "x": [None, 1.5, {"": []}]}
        token = encode(claims, PRIVATE_KEY, JWK["kid"])
        self.assertEqual(decode(token, JWKS, audience="us", now=NOW), claims)

    def test_refuses_registered_claims_of_the_wrong_type(self) -> None:
        wrong: dict[str, Any] = {
            "iss": 7,
            "sub": None,
            "aud": [1],
            "exp": "1",
            "nbf": True,
            "jti": 4,
        }
        for name, value in {**wrong, "iat": 1.5}.items():
            with self.subTest(name), self.assertRaisesRegex(jwt_minimal.InvalidClaim, f"^{name} "):
                issue(**{name: value})

    def test_refuses_what_json_cannot_say(self) -> None:
        for value in (float("nan"), float("inf"), "\ud800", b"x", {1, 2}, {1: 2, "a": 3}):
            with self.subTest(value=value), self.assertRaises(jwt_minimal.InvalidClaim):
                issue(x=value)

    def test_signs_with_any_object_that_has_the_sign_method(self) -> None:
        signer = mock.Mock(spec=["sign"])
        signer.sign.return_value = b"seal"
        self.assertTrue(sign({"alg": "RS256"}, b"{}", signer).endswith(".c2VhbA"))


class Keys(unittest.TestCase):
    def test_thumbprint_of_rfc_7638(self) -> None:
        published = RFC["rfc7638_3_1"]
        self.assertEqual(jwt_minimal.thumbprint(published["jwk"]), published["thumbprint"])

    def test_the_jwk_has_the_six_members_that_are_published(self) -> None:
        self.assertEqual(list(JWK), ["kty", "use", "alg", "kid", "n", "e"])
        self.assertEqual((JWK["n"], JWK["e"]), (vectors.PRIVATE["n"], "AQAB"))

    def test_the_kid_is_the_thumbprint(self) -> None:
        self.assertEqual(JWK["kid"], jwt_minimal.thumbprint(JWK))

    def test_a_key_that_is_not_rsa_has_no_thumbprint_here(self) -> None:
        for jwk in ({"kty": "EC", "e": "", "n": ""}, {"kty": "RSA", "n": "AQ"}, {}):
            with self.subTest(jwk), self.assertRaises(jwt_minimal.UnusableKey):
                jwt_minimal.thumbprint(jwk)

    def test_what_is_not_a_jwks_is_refused_as_such(self) -> None:
        not_sets: list[Any] = [None, [], "{}", {}, {"keys": None}, {"keys": {}}, JWK]
        for jwks in not_sets:
            with self.subTest(jwks), self.assertRaises(jwt_minimal.UnusableKey):
                verify(issue(), jwks)

    def test_members_of_a_jwks_that_are_not_understood_are_passed_over(self) -> None:
        jwks = {"keys": [None, 7, {"kty": "EC", "kid": JWK["kid"]}, {"kid": JWK["kid"]}, JWK]}
        self.assertEqual(decode(issue(), jwks, now=NOW), {"exp": NOW + 60})

    def test_without_a_kid_the_only_rsa_key_is_meant(self) -> None:
        public = RFC["rfc7515_a2"]["token"]
        self.assertEqual(decode(public, JWKS, now=0)["iss"], "joe")


class Verifying(unittest.TestCase):
    def test_the_jws_of_rfc_7520_whose_payload_is_no_json(self) -> None:
        published = RFC["rfc7520_4_1"]
        header, payload = verify(published["token"], {"keys": [published["public_jwk"]]})
        self.assertEqual(header, {"alg": "RS256", "kid": "bilbo.baggins@hobbiton.example"})
        self.assertTrue(payload.decode().startswith("It’s a dangerous business, Frodo"))

    def test_the_jws_of_rfc_7515(self) -> None:
        published = RFC["rfc7515_a2"]
        self.assertEqual(verify(published["token"], JWKS)[1].decode(), published["payload"])

    def test_an_exponent_of_three_is_a_legal_one(self) -> None:
        key = rsa.generate_private_key(3, 2048)
        jwk = jwt_minimal.public_jwk(key.public_key())
        token = encode({"exp": NOW + 1}, key, jwk["kid"])
        self.assertEqual(decode(token, {"keys": [jwk]}, now=NOW), {"exp": NOW + 1})

    def test_every_change_of_one_character_is_refused(self) -> None:
        token = issue()
        for at, old in enumerate(token):
            changed = token[:at] + ("B" if old == "A" else "A") + token[at + 1 :]
            with self.subTest(at), self.assertRaises(jwt_minimal.InvalidToken):
                verify(changed, JWKS)

    def test_every_shorter_token_is_refused(self) -> None:
        token = issue()
        for length in range(len(token)):
            with self.subTest(length), self.assertRaises(jwt_minimal.InvalidToken):
                verify(token[:length], JWKS)

    def test_a_token_that_is_no_text_is_refused(self) -> None:
        for token in (None, 7, issue().encode(), [issue()]):
            with self.subTest(type(token)), self.assertRaises(jwt_minimal.MalformedToken):
                verify(token, JWKS)  # type: ignore[arg-type]

    def test_a_token_too_long_is_refused_before_anything_of_it_is_decoded(self) -> None:
        with mock.patch.object(jwt_minimal, "b64url_decode", side_effect=AssertionError):
            for rubbish in ("A" * 10**6, "." * 10**6, issue() + "A" * 10**6):
                with self.assertRaisesRegex(jwt_minimal.MalformedToken, "longer than 16384"):
                    decode(rubbish, JWKS)

    def test_brackets_are_counted_before_they_are_read(self) -> None:
        for depth, accepted in ((499, True), (500, False)):
            nested = b'{"exp":2e9,"x":' + b"[" * depth + b"]" * depth + b"}"
            error = vectors.refusal(vectors.token(claims=nested), vectors.JWKS, now=NOW)
            self.assertEqual(error is None, accepted, error)

    def test_a_token_as_long_as_allowed_is_accepted(self) -> None:
        token = issue(x="y" * 11_925)
        self.assertEqual(len(token), jwt_minimal.MAX_TOKEN)
        self.assertEqual(len(decode(token, JWKS, now=NOW)["x"]), 11_925)

    def test_no_key_is_tried_before_the_header_is_found_acceptable(self) -> None:
        token = vectors.token(header={**vectors.HEADER, "alg": "none"})
        with mock.patch.object(jwt_minimal, "find_key", side_effect=AssertionError):
            self.assertRaises(jwt_minimal.UnsupportedToken, verify, token, JWKS)

    def test_no_claim_is_read_before_the_signature_is_found_right(self) -> None:
        head, _, seal = issue().split(".")
        for claims in (b"not json", b'{"exp":0}'):
            with self.assertRaises(jwt_minimal.BadSignature):
                decode(f"{head}.{b64url_encode(claims)}.{seal}", JWKS)


class Refusals(unittest.TestCase):
    def test_every_row_of_the_table_meets_its_refusal(self) -> None:
        for row in TABLE["rows"]:
            checks = row.get("checks", {})
            with self.subTest(row["name"]):
                jwks = vectors.jwks_of(row)
                error = vectors.refusal(row["token"], jwks, now=NOW, **checks)
                self.assertEqual(error and type(error).__name__, row["refusal"], error)

    def test_the_table_has_rows_of_every_kind(self) -> None:
        kinds = {row["refusal"] for row in TABLE["rows"]}
        leaves = {kind.__name__ for kind in all_refusals()} - {"InvalidToken"}
        self.assertEqual(kinds, leaves | {None})

    def test_every_refusal_says_what_to_do_and_is_a_value_error(self) -> None:
        for kind in all_refusals():
            with self.subTest(kind.__name__):
                self.assertTrue(issubclass(kind, ValueError))
                self.assertRegex(kind("cause").fix, r"^[A-Z].{20,}\.$|^Do not use the token\.$")

    def test_a_refusal_carries_what_it_refused(self) -> None:
        with self.assertRaises(jwt_minimal.ExpiredToken) as caught:
            decode(issue(exp=NOW - 5), JWKS, now=NOW)
        self.assertEqual(caught.exception.seen, {"claims": {"exp": NOW - 5}})
        self.assertIn("(5 s ago)", str(caught.exception))

    def test_causes_stay_short_and_without_control_characters(self) -> None:
        for hostile in ("\x1b[2J" * 400, [[[[[[[[[["\n"]]]]]]]]]] * 40, {"\r": 1}):
            header = {**vectors.HEADER, "alg": hostile}
            error = vectors.refusal(vectors.token(header=header), JWKS)
            self.assertIsInstance(error, jwt_minimal.UnsupportedToken)
            self.assertLess(len(str(error)), 300)
            self.assertTrue(str(error).isprintable())


def all_refusals(kind: type[jwt_minimal.InvalidToken] = jwt_minimal.InvalidToken) -> Any:
    yield kind
    for narrower in kind.__subclasses__():
        yield from all_refusals(narrower)


class Clocks(unittest.TestCase):
    def test_now_is_the_system_clock_unless_given(self) -> None:
        with mock.patch("jwt_minimal.time.time", return_value=NOW + 59):
            self.assertEqual(decode(issue(), JWKS)["exp"], NOW + 60)
        with mock.patch("jwt_minimal.time.time", return_value=NOW + 60):
            self.assertRaises(jwt_minimal.ExpiredToken, decode, issue(), JWKS)

    def test_a_now_of_zero_is_a_time_like_any_other(self) -> None:
        self.assertEqual(decode(issue(exp=1), JWKS, now=0), {"exp": 1})
        self.assertIn("VALID", explain(issue(exp=1), JWKS, now=0).splitlines())

    def test_a_clock_or_leeway_that_is_not_a_number_accepts_nothing(self) -> None:
        nan = float("nan")
        for now, leeway in ((nan, 0), (NOW, nan), (nan, nan)):
            with self.assertRaises(jwt_minimal.ExpiredToken):
                decode(issue(), JWKS, now=now, leeway=leeway)

    def test_dates_that_are_absent_are_not_compared(self) -> None:
        self.assertEqual(decode(issue(exp=1), JWKS, now=-5), {"exp": 1})

    def test_says_how_far_away_a_time_is(self) -> None:
        told = {0: "0 s ago", 1: "in 1 s", 119: "in 119 s", -120: "2 min ago", 7200: "in 2 h"}
        for distance, words in {**told, -172800: "2 d ago"}.items():
            with self.subTest(distance):
                self.assertTrue(jwt_minimal.when(NOW + distance, NOW).endswith(f" UTC ({words})"))

    def test_names_the_day_in_utc(self) -> None:
        self.assertEqual(jwt_minimal.when(1300819380, 0)[:23], "2011-03-22 18:43:00 UTC")

    def test_a_time_beyond_the_calendar_is_no_failure(self) -> None:
        for seconds in (10**300, -(10**300), 1e300, -1e300, 253402300800):
            self.assertIn("beyond the calendar", jwt_minimal.when(seconds, NOW))


class Explaining(unittest.TestCase):
    def test_shows_every_claim_in_words(self) -> None:
        page = explain(issue(sub="joe", nbf=NOW - 3 * 86400), JWKS, now=NOW)
        self.assertRegex(page, r'(?m)^  sub  "joe" +whom it is about$')
        self.assertRegex(page, r"(?m)^  exp  \d+ +expires 2027-01-15 08:01:00 UTC \(in 60 s\)$")
        self.assertRegex(page, r"(?m)^  nbf  \d+ +valid from .*\(3 d ago\)$")

    def test_aligns_the_hash_in_the_signature_with_the_computed_one(self) -> None:
        lines = explain(issue(), JWKS, now=NOW).splitlines()
        computed, sealed = (line for line in lines if "SHA-256  " in line)
        self.assertEqual(computed[15:], sealed[15:])
        self.assertEqual(len(sealed), 15 + 64)

    def test_shows_the_padding_and_the_digest_info(self) -> None:
        page = explain(issue(), JWKS, now=NOW)
        self.assertEqual(page.count("ff" * 32), 6)
        self.assertRegex(page, rf"(?m)^  DigestInfo   {jwt_minimal.DIGEST_INFO.hex()}$")
        self.assertNotIn("differs", page)

    def test_shows_which_part_of_the_padded_hash_differs(self) -> None:
        row = next(row for row in TABLE["rows"] if row["name"] == "the hash of something else")
        page = explain(row["token"], vectors.JWKS, now=NOW)
        self.assertEqual(page.count("<- differs"), 1)
        self.assertRegex(page, rf"(?m)^  SHA-256      {'00' * 32}  <- differs$")

    def test_ends_with_the_cause_and_the_fix(self) -> None:
        page = explain(issue(exp=NOW), JWKS, now=NOW).splitlines()
        self.assertEqual(
            page[-2:],
            [
                "REFUSED (ExpiredToken): exp is 2027-01-15 08:00:00 UTC (0 s ago)",
                jwt_minimal.ExpiredToken("").fix,
            ],
        )

    def test_without_keys_nothing_is_called_valid(self) -> None:
        self.assertIn("REFUSED (UnknownKey)", explain(issue(), now=NOW))

    def test_never_fails_and_never_prints_a_control_character(self) -> None:
        for row in TABLE["rows"]:
            with self.subTest(row["name"]):
                page = explain(row["token"] + "\x1b[2J\u202e", vectors.jwks_of(row), now=NOW)
                page += explain(row["token"], vectors.jwks_of(row), now=NOW)
                self.assertRegex(page, r"\A[ -~\n]+\Z")

    def test_a_hostile_name_or_value_is_shown_escaped(self) -> None:
        token = issue(**{"a\x1b]0;x\x07": "\u202egnp.exe\x9b31m"})
        page = explain(token, JWKS, now=NOW)
        self.assertRegex(page, r"\A[ -~\n]+\Z")
        self.assertIn(r"\x1b]0;x\x07", page)

    def test_a_megabyte_is_not_printed_back(self) -> None:
        self.assertLess(len(explain("x" * 10**6, JWKS)), 20_000)

    def test_colour_changes_nothing_but_the_colour(self) -> None:
        plain, coloured = (explain(issue(), JWKS, now=NOW, colour=on) for on in (False, True))
        self.assertNotIn("\x1b", plain)
        for code in ("31", "35", "36", "1", "0", ""):
            coloured = coloured.replace(f"\x1b[{code}m", "")
        self.assertEqual(coloured, plain)


class Hearing(BaseHTTPRequestHandler):
    """Serves what the test put under each path: status, headers, body."""

    answers: ClassVar[dict[str, tuple[int, dict[str, str], bytes]]] = {}

    def do_GET(self) -> None:
        status, headers, body = self.answers[self.path]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the tests quiet."""


class CommandLineTest(unittest.TestCase):
    """A JWKS in a file and at URLs of this process."""

    directory: Path
    jwks: Path
    server: HTTPServer
    url: str

    @classmethod
    def setUpClass(cls) -> None:
        cls.directory = Path(tempfile.mkdtemp())
        cls.addClassCleanup(shutil.rmtree, cls.directory)
        cls.jwks = cls.directory / "jwks.json"
        cls.jwks.write_text(json.dumps(JWKS))
        cls.server = HTTPServer(("127.0.0.1", 0), Hearing)
        cls.url = f"http://127.0.0.1:{cls.server.server_port}"
        threading.Thread(target=cls.server.serve_forever, args=(0.01,), daemon=True).start()
        cls.addClassCleanup(cls.server.server_close)
        cls.addClassCleanup(cls.server.shutdown)
        Hearing.answers = {
            "/jwks": (200, {}, json.dumps(JWKS).encode()),
            "/moved": (302, {"Location": cls.jwks.as_uri()}, b""),
            "/elsewhere": (302, {"Location": "/jwks"}, b""),
            "/huge": (200, {}, json.dumps(JWKS).encode().ljust(jwt_minimal.MAX_JWKS + 1)),
            "/broken": (200, {}, b'{"keys":'),
            "/failing": (500, {}, b""),
        }

    def run_it(self, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
        out, err, given = io.StringIO(), io.StringIO(), io.TextIOWrapper(io.BytesIO(stdin.encode()))
        with contextlib.ExitStack() as streams:
            streams.enter_context(contextlib.redirect_stdout(out))
            streams.enter_context(contextlib.redirect_stderr(err))
            streams.enter_context(mock.patch.object(sys, "stdin", given))
            try:
                status = jwt_minimal.main(list(arguments))
            except SystemExit as exit:
                status = int(exit.code or 0)
        return status, out.getvalue(), err.getvalue()

    def fresh(self) -> str:
        return issue(exp=4_000_000_000, sub="joe")


class CommandLine(CommandLineTest):
    def test_imports_nothing_but_the_standard_library_and_that_when_it_signs(self) -> None:
        tree = ast.parse(Path(jwt_minimal.__file__).read_text("utf-8"))
        checking = next(node for node in tree.body if isinstance(node, ast.If))
        self.assertEqual(ast.unparse(checking.test), "TYPE_CHECKING")
        names = [n for node in tree.body if isinstance(node, ast.Import) for n in node.names]
        modules = [name.name for name in names]
        modules += [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
        self.assertNotIn("cryptography", {module.split(".")[0] for module in modules})

    def test_decode_prints_the_claims(self) -> None:
        status, out, _ = self.run_it("decode", self.fresh(), "--jwks", str(self.jwks))
        self.assertEqual((status, json.loads(out)["sub"]), (0, "joe"))

    def test_the_token_may_stand_before_or_after_the_options(self) -> None:
        for words in (
            ("--jwks", str(self.jwks), self.fresh()),
            (self.fresh(), "--jwks", str(self.jwks)),
        ):
            self.assertEqual(self.run_it("decode", *words)[0], 0)
        self.assertEqual(self.run_it("--jwks", str(self.jwks), "decode", self.fresh())[0], 0)

    def test_the_token_may_come_from_standard_input(self) -> None:
        status, _, _ = self.run_it("decode", "--jwks", str(self.jwks), stdin=self.fresh() + "\n")
        self.assertEqual(status, 0)

    def test_verify_looks_at_the_signature_only(self) -> None:
        status, out, _ = self.run_it("verify", issue(exp=7), "--jwks", str(self.jwks))
        self.assertEqual((status, out), (0, '{"exp":7}\n'))

    def test_a_refusal_is_status_1_and_one_line_with_cause_and_fix(self) -> None:
        status, out, err = self.run_it("decode", issue(exp=7), "--jwks", str(self.jwks))
        self.assertEqual((status, out, err.count("\n")), (1, "", 1))
        self.assertRegex(err, r"^ExpiredToken: exp is 1970-01-01 00:00:07 UTC .* Get a new token")

    def test_explain_has_the_status_of_its_verdict(self) -> None:
        tokens = {self.fresh(): (0, "VALID"), issue(exp=7): (1, "REFUSED"), "x": (1, "REFUSED")}
        for token, (expected, word) in tokens.items():
            status, out, _ = self.run_it("explain", token, "--jwks", str(self.jwks))
            self.assertEqual(status, expected)
            self.assertRegex(out, rf"(?m)^{word}")

    def test_explain_has_the_status_of_its_verdict_without_docstrings_too(self) -> None:
        with mock.patch.object(jwt_minimal.ExpiredToken, "__doc__", None):
            self.assertEqual(self.run_it("explain", issue(exp=7), "--jwks", str(self.jwks))[0], 1)

    def test_says_its_version_which_is_that_of_the_server(self) -> None:
        self.assertEqual(jwt_minimal.__version__, jwksd.__version__)
        told = self.run_it("--version")
        self.assertEqual(told, (0, f"jwt_minimal.py {jwksd.__version__}\n", ""))

    def test_explain_without_keys_is_status_1(self) -> None:
        self.assertEqual(self.run_it("explain", self.fresh())[0], 1)

    def test_issuer_audience_and_leeway_are_passed_on(self) -> None:
        token = issue(exp=4_000_000_000, iss="i", aud="us")
        given = ("decode", token, "--jwks", str(self.jwks))
        self.assertEqual(self.run_it(*given, "--issuer", "i", "--audience", "us")[0], 0)
        self.assertEqual(self.run_it(*given, "--issuer", "j", "--audience", "us")[0], 1)
        self.assertEqual(self.run_it(*given, "--issuer", "i", "--audience", "me")[0], 1)
        given = ("decode", issue(exp=7), "--jwks", str(self.jwks))
        self.assertEqual(self.run_it(*given, "--leeway", "4000000000")[0], 0)

    def test_keys_come_from_a_url(self) -> None:
        self.assertEqual(self.run_it("decode", self.fresh(), "--jwks", f"{self.url}/jwks")[0], 0)

    def test_no_redirect_is_followed_and_no_other_scheme(self) -> None:
        urls = (
            f"{self.url}/moved",
            f"{self.url}/elsewhere",
            self.jwks.as_uri(),
            "ftp://127.0.0.1/",
        )
        for source in urls:
            with self.subTest(source):
                self.assertEqual(self.run_it("decode", self.fresh(), "--jwks", source)[0], 2)

    def test_keys_that_cannot_be_read_are_status_2(self) -> None:
        for source in ("/huge", "/broken", "/failing"):
            with self.subTest(source):
                status, out, err = self.run_it("decode", self.fresh(), "--jwks", self.url + source)
                self.assertEqual((status, out, err.count("\n")), (2, "", 1))

    def test_wrong_usage_is_status_2(self) -> None:
        for arguments in ((), ("guess",), ("decode", "a", "b"), ("decode", "--leeway", "nan")):
            with self.subTest(arguments):
                self.assertEqual(self.run_it(*arguments)[0], 2)

    def test_jwk_turns_a_pem_public_key_into_what_is_published(self) -> None:
        encoding, form = serialization.Encoding.PEM, serialization.PublicFormat
        pem = PRIVATE_KEY.public_key().public_bytes(encoding, form.SubjectPublicKeyInfo)
        status, out, _ = self.run_it("jwk", stdin=pem.decode())
        self.assertEqual((status, json.loads(out)), (0, JWK))

    def test_a_thumbprint_of_something_else_is_refused(self) -> None:
        for text in ("{}", '{"keys": 7}', '{"kty": "EC"}'):
            with self.subTest(text):
                self.assertEqual(self.run_it("thumbprint", stdin=text)[0], 1)

    def test_jwk_refuses_other_input(self) -> None:
        self.assertEqual(self.run_it("jwk", stdin="no key")[0], 2)

    def test_thumbprint_of_a_key_and_of_each_key_of_a_set(self) -> None:
        published = RFC["rfc7638_3_1"]
        for keys in (published["jwk"], {"keys": [published["jwk"]]}):
            status, out, _ = self.run_it("thumbprint", stdin=json.dumps(keys))
            self.assertEqual((status, out.strip()), (0, published["thumbprint"]))


if __name__ == "__main__":
    unittest.main()
