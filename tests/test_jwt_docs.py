"""The pages about tokens run, and the exercises tell right from wrong."""

from __future__ import annotations

import base64
import contextlib
import doctest
import hashlib
import importlib.util
import io
import json
import re
import types
import unittest
from pathlib import Path
from typing import Any

import jwt_minimal

DOCS = Path(__file__).parents[1] / "docs"


def load_check() -> Any:
    spec = importlib.util.spec_from_file_location("check", DOCS / "exercises" / "check.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check = load_check()


class Walkthrough(unittest.TestCase):
    page = (DOCS / "token-walkthrough.md").read_text("utf-8")

    def test_shows_what_the_code_answers(self) -> None:
        blocks = "\n".join(re.findall(r"```python\n(.*?)```", self.page, re.S))
        test = doctest.DocTestParser().get_doctest(blocks, {}, "token-walkthrough", None, 0)
        report = io.StringIO()
        result = doctest.DocTestRunner().run(test, out=report.write)
        self.assertGreater(result.attempted, 50)
        self.assertEqual(result.failed, 0, report.getvalue())

    def test_every_function_it_names_exists(self) -> None:
        names = set(re.findall(r"`([a-z]\w+)`", self.page))
        ours = {name for name in names if "_" in name}
        self.assertGreater(len(ours), 6)
        self.assertEqual(ours - set(dir(jwt_minimal)), set())


def changed(**functions: Any) -> types.ModuleType:
    """A copy of jwt_minimal in which some functions are replaced by worse ones."""
    source = Path(jwt_minimal.__file__).read_text("utf-8")
    module = types.ModuleType("mine")
    exec(compile(source, "mine.py", "exec"), module.__dict__)
    module.__dict__.update(functions)
    return module


def passes(step: int, mine: types.ModuleType) -> bool:
    return bool(check.check(step, mine, io.StringIO()))


def lenient_b64url_decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def hash_of_the_whole_key(jwk: Any) -> str:
    members = json.dumps(jwk, sort_keys=True, separators=(",", ":")).encode()
    return jwt_minimal.b64url_encode(hashlib.sha256(members).digest())


def searching_verify(message: bytes, signature: bytes, n: int, e: int) -> bool:
    """The reader that Bleichenbacher forged against: it skips the padding to find the hash."""
    block = pow(int.from_bytes(signature, "big"), e, n).to_bytes((n.bit_length() + 7) // 8, "big")
    tail = jwt_minimal.DIGEST_INFO + hashlib.sha256(message).digest()
    return block.startswith(b"\x00\x01") and block[2:].lstrip(b"\xff").startswith(b"\x00" + tail)


def unbounded_verify(message: bytes, signature: bytes, n: int, e: int) -> bool:
    block = pow(int.from_bytes(signature, "big"), e, n).to_bytes((n.bit_length() + 7) // 8, "big")
    return block == jwt_minimal.padded_hash(message, n)


def spaced_sign(header: Any, payload: bytes, private_key: Any) -> str:
    return jwt_minimal._signed(
        jwt_minimal.b64url_encode(json.dumps(header).encode() + b" "), payload, private_key
    )


def nothing(*_: Any) -> None:
    return None


class Exercises(unittest.TestCase):
    def test_an_empty_file_passes_none(self) -> None:
        for step in range(1, 7):
            with self.subTest(step):
                self.assertFalse(passes(step, types.ModuleType("empty")))

    def test_the_page_names_every_function_that_a_step_asks_for(self) -> None:
        page = (DOCS / "exercises.md").read_text("utf-8")
        steps = page.split("\n## Step ")[1:]
        self.assertEqual(len(steps), len(check.STEPS))
        for step in steps:
            for name in re.findall(r"`(\w+)\(", step.splitlines()[0]):
                self.assertTrue(callable(getattr(jwt_minimal, name)), name)


def vector_n(jwk: Any) -> int:
    with contextlib.suppress(jwt_minimal.InvalidToken, KeyError, TypeError):
        return int.from_bytes(jwt_minimal.b64url_decode(jwk["n"]), "big")
    raise ValueError("no key")


if __name__ == "__main__":
    unittest.main()
