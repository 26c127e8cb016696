"""The checks of the exercises find wrong solutions that are easy to write."""

from __future__ import annotations

import io
import tempfile
import types
import unittest
from pathlib import Path

import jwt_minimal
from tests.test_jwt_docs import check

SOURCE = Path(jwt_minimal.__file__).read_text("utf-8")
# The step, what is wrong, and the change of a right solution that makes it so.
WRONG: tuple[tuple[int, str, str, str], ...] = (
    (5, "e = 1 is accepted", "if not 3 <= e <", "if not 1 <= e <"),
    (5, "an even e is accepted", "or e % 2 == 0", ""),
    (5, "any modulus is accepted",
     "MIN_MODULUS, MAX_MODULUS = 2048", "MIN_MODULUS, MAX_MODULUS = 8"),
    (5, "a modulus of 1536 bits is enough", "MAX_MODULUS = 2048,", "MAX_MODULUS = 1000,"),
    (5, "an even modulus is accepted", "or n % 2 == 0", ""),
    (5, "a large e is accepted", "MAX_EXPONENT = 2**64", "MAX_EXPONENT = 2**99"),
    (5, "the token brings its key", "rsa_numbers(find_key(header, jwks))",
     'rsa_numbers(header.get("jwk") or find_key(header, jwks))'),
    (5, "the first key of a name is taken", "if len(found) != 1:", "if not found:"),
    (5, "the use of a key is not looked at", '(("use", "sig"), ("alg", "RS256"))', "()"),
    (5, "key_ops are not looked at", '"verify" not in operations', "False"),
    (5, "padding is skipped", "    if b64url_encode(raw) != text:", "    if not raw and text:"),
    (5, "crit is ignored", 'if "crit" in header:', 'if "cirt" in header:'),
    (6, "now must be given", "    now: float | None = None,", "    now: float,"),
    (6, "now is always the clock", "time.time() if now is None else now", "time.time()"),
    (6, "encode forgets the kid", '"typ": typ, "kid": kid}', '"typ": typ}'),
    (6, "encode knows registered claims alone", "payload = _sorted_json(claims)",
     "payload = _sorted_json({k: v for k, v in claims.items() if k in REGISTERED})"),
    (6, "decode drops other claims", "    return claims\n\n\ndef _check_dates",
     "    return {k: v for k, v in claims.items() if k in REGISTERED}\n\n\ndef _check_dates"),
    (6, "encode takes any nbf", "    _check_types(claims, WHOLE)",
     "    _check_types({k: v for k, v in claims.items() if k != 'nbf'}, WHOLE)"),
    (6, "encode takes any iss", "    _check_types(claims, WHOLE)",
     "    _check_types({k: v for k, v in claims.items() if k != 'iss'}, WHOLE)"),
    (6, "encode takes any jti", "    _check_types(claims, WHOLE)",
     "    _check_types({k: v for k, v in claims.items() if k != 'jti'}, WHOLE)"),
    (6, "true is a date", "and not isinstance(value, bool)", ""),
    (6, "the very second of exp is in time", 'if not now - leeway < claims["exp"]',
     'if not now - leeway <= claims["exp"]'),
    (6, "an aud is nobody's business without an audience",
     '("aud" in claims or audience is not None)', "audience is not None"),
    (6, "exp may be absent",
     'if "exp" not in claims:', 'if claims.setdefault("exp", 1e18) is None:'),
)  # fmt: skip


class AWrongSolution(unittest.TestCase):
    def test_fails_the_step_that_is_about_it(self):
        for step, name, right, wrong in WRONG:
            with self.subTest(name):
                self.assertEqual(SOURCE.count(right) > 0, True, right)
                mine = types.ModuleType("mine")
                exec(compile(SOURCE.replace(right, wrong), "mine.py", "exec"), mine.__dict__)
                self.assertFalse(check.check(step, mine, io.StringIO()))

    def test_may_not_be_ours_under_another_name(self):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "mine.py")
            file.write_text("from jwt_minimal import *\n", "utf-8")
            with self.assertRaisesRegex(SystemExit, "write it yourself"):
                check.load(str(file))


if __name__ == "__main__":
    unittest.main()
