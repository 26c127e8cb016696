"""The checks of the exercises: each step fails a file with the hole that it is about.

Each of them makes signatures with keys of several sizes: seconds together, so not among the fast.
"""

from __future__ import annotations

import json
import unittest
from typing import Any

import jwt_minimal
from tests import jwt_refusals as vectors
from tests.test_jwt_docs import (
    changed,
    hash_of_the_whole_key,
    lenient_b64url_decode,
    nothing,
    passes,
    searching_verify,
    spaced_sign,
    unbounded_verify,
    vector_n,
)


class Exercises(unittest.TestCase):
    def test_jwt_minimal_itself_passes_every_step(self) -> None:
        for step in range(1, 7):
            with self.subTest(step):
                self.assertTrue(passes(step, jwt_minimal))

    def test_each_step_fails_a_file_with_the_hole_it_is_about(self) -> None:
        holes: list[tuple[int, dict[str, Any]]] = [
            (1, {"b64url_decode": lenient_b64url_decode}),
            (2, {"thumbprint": hash_of_the_whole_key}),
            (3, {"verify_rs256": searching_verify}),
            (3, {"verify_rs256": unbounded_verify}),
            (3, {"verify_rs256": lambda *_: True}),
            (4, {"sign": spaced_sign}),
            (5, {"_check_header": nothing}),
            (5, {"rsa_numbers": lambda jwk: (vector_n(jwk), 65537)}),
            (5, {"b64url_decode": lenient_b64url_decode}),
            (5, {"parse_object": json.loads}),
            (5, {"verify_rs256": searching_verify}),
            (6, {"parse_object": json.loads}),
            (6, {"_check_types": nothing}),
            (6, {"_check_dates": nothing}),
            (6, {"TYPES": ("jwt", "at+jwt", "logout+jwt")}),
        ]
        for step, hole in holes:
            with self.subTest(f"{step}: {list(hole)}"):
                self.assertFalse(passes(step, changed(**hole)))


class Refusals(unittest.TestCase):
    def test_the_table_is_what_its_maker_makes(self) -> None:
        written = (vectors.VECTORS / "refusals.json").read_text("utf-8")
        self.assertEqual(written, vectors.table())


if __name__ == "__main__":
    unittest.main()
