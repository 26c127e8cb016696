"""docs/performance.md shows the committed figures, and nothing else between its marks."""

from __future__ import annotations

import copy
import json
import unittest

from bench import page
from tools import pictures

TEXT = page.PAGE.read_text("utf-8")
FIGURES = json.loads(pictures.FIGURES.read_text("utf-8"))


class ThePage(unittest.TestCase):
    def test_is_what_the_program_makes_of_the_committed_figures(self):
        again = page.filled(TEXT, FIGURES)
        self.assertTrue(again == TEXT, "run python -m bench.page --write")

    def test_has_one_place_for_each_table(self):
        places = [name for _, name, _ in page.MARKED.findall(TEXT)]
        self.assertEqual(sorted(places), sorted(page.TABLES))

    def test_changes_with_each_rate(self):
        for title, rows in FIGURES["sections"].items():
            for name, row in rows.items():
                key = "rate" if "rate" in row else "memory"
                other = copy.deepcopy(FIGURES)
                other["sections"][title][name][key] += 7_000_000
                with self.subTest(title, server=name):
                    self.assertNotEqual(page.filled(TEXT, other), TEXT)

    def test_names_each_commit_that_was_measured(self):
        self.assertEqual(set(FIGURES["commits"]), set(FIGURES["sections"]))
        for commit in FIGURES["commits"].values():
            self.assertIn(f"`{commit}`", TEXT)

    def test_says_which_share_was_measured_only_roughly(self):
        for quick in ([], ["32 connections"]):
            said = "--quick" in page.machine({**FIGURES, "quick": quick})
            self.assertEqual(said, bool(quick))


class ATable(unittest.TestCase):
    ROWS = {
        "ours": {"rate": 3000, "p99": 1.5, "processor": 10.0},
        "theirs": {"rate": 1500, "p99": 12.4, "processor": 20.0},
    }

    def test_says_how_many_times_another_ours_is(self):
        lines = page.served(self.ROWS).splitlines()
        self.assertEqual(lines[2], "| **ours** | 3,000 |  | 1.50 ms | 10.0 µs |")
        self.assertEqual(lines[3], "| theirs | 1,500 | 2.00 x | 12 ms | 20.0 µs |")

    def test_leaves_empty_what_a_server_did_not_answer(self):
        sections = {"1 clients": self.ROWS, "4 clients": {"ours": self.ROWS["ours"]}}
        last = page.grown(sections).splitlines()[-1]
        self.assertEqual(last, "| 4 | 3,000 | 1.50 ms |  |  |")


if __name__ == "__main__":
    unittest.main()
