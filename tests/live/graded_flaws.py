"""Every flaw of the table, graded whole: the one check that is about it fails, and no other."""

from __future__ import annotations

import unittest

from tests.live import grading


class EachFlaw(grading.Grading):
    """One run of all checks for each: too long for the fast tests."""

    def test_is_found_once_and_said_in_one_sentence(self):
        for name, check, flaw in grading.FLAWS:
            with self.subTest(flaw=name):
                failed = self.grade(flaw)
                self.assertEqual(set(failed), {check}, "\n".join(failed.values()))
                self.assertSentences(failed)


class EachVariation(grading.Grading):
    def test_costs_nothing(self):
        for name, change in grading.VARIATIONS:
            with self.subTest(variation=name):
                self.assertEqual(self.grade(change), {})


def load_tests(loader, tests, pattern):
    """These two tests; those that they inherit are run with the fast ones."""
    return unittest.TestSuite(
        [
            EachFlaw("test_is_found_once_and_said_in_one_sentence"),
            EachVariation("test_costs_nothing"),
        ]
    )


if __name__ == "__main__":
    unittest.main()
