"""The pictures are what the program makes of the files that they show, readable for anybody."""

from __future__ import annotations

import re
import unittest
import xml.etree.ElementTree as ET

from tests.support import ROOT
from tools import pictures

PAGES = [(ROOT / name).read_text("utf-8") for name in ("README.md", "docs/performance.md")]
LARGEST = 100_000  # octets of a picture
TEXTS = ("ink", "quiet", "red", "magenta", "cyan")  # on the ground
ON_BARS = (("ink", "waits"), ("signs-ink", "signs"), ("ink", "ends"))
SHAPES = ("ours", "other", "signs")  # told apart from the ground by their colour alone


def luminance(colour: str) -> float:
    """WCAG 2.2, "relative luminance"."""
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


class EachSvg(unittest.TestCase):
    def test_is_what_the_program_makes(self):
        for name, make in pictures.PICTURES.items():
            with self.subTest(name):
                committed = (pictures.FOLDER / name).read_text("utf-8")
                self.assertTrue(committed == make(), "run python tools/pictures.py")

    def test_is_well_formed_and_has_a_title(self):
        for name in pictures.PICTURES:
            root = ET.parse(pictures.FOLDER / name).getroot()
            self.assertGreater(len(root.find("{http://www.w3.org/2000/svg}title").text), 40)

    def test_has_every_server_of_the_table_with_its_figure(self):
        found = pictures.rates("32 connections")
        self.assertGreaterEqual(len(found), 6)
        self.assertEqual(found[0][0], "ours")
        drawn = pictures.throughput()
        for name, number in found:
            self.assertIn(f">{name}<", drawn)
            self.assertIn(f">{number:,}<", drawn)

    def test_names_the_defaults_of_the_settings(self):
        drawn = pictures.life_of_a_key()
        for flag in ("--key-lead", "--token-ttl", "--key-skew", "--key-lifetime"):
            value = pictures.default(flag)
            self.assertRegex(drawn, rf"\b{value}\b[^<]*{flag}")
        with self.assertRaises(ValueError):
            pictures.default("--no-such-flag")

    def test_shows_all_that_explain_prints(self):
        shown = "".join(ET.fromstring(pictures.explain()).itertext())
        printed = re.sub(r"\x1b\[\d*m", "", pictures.explained())
        for line in printed.splitlines():
            self.assertIn(line[:112], shown)
        self.assertIn("VALID", printed)


class EveryPicture(unittest.TestCase):
    def test_is_on_a_page_with_words_for_those_who_cannot_see_it(self):
        pages = "\n".join(PAGES)
        shown = dict(re.findall(r"!\[([^\]]+)\]\((?:docs/)?pictures/([\w.-]+)\)", pages))
        images = re.findall(r'<img src="docs/pictures/([\w.-]+)" alt="([^"]+)">', pages)
        words = {name: alt for alt, name in shown.items()} | dict(images)
        dark = re.findall(r'dark\)" srcset="docs/pictures/([\w.-]+)"', pages)
        self.assertEqual({*words, *dark}, {path.name for path in pictures.FOLDER.iterdir()})
        for name, alt in words.items():
            self.assertGreater(len(alt), 60, name)

    def test_is_small(self):
        for path in pictures.FOLDER.iterdir():
            self.assertLess(path.stat().st_size, LARGEST, path.name)

    def test_can_be_read_in_light_and_in_dark(self):
        for mode in (0, 1):
            colours = {name: both[mode] for name, both in pictures.PALETTE.items()}
            pairs = [*((name, "ground") for name in TEXTS), *ON_BARS]
            for front, behind in pairs:
                with self.subTest(front, behind=behind, mode=mode):
                    self.assertGreaterEqual(contrast(colours[front], colours[behind]), 4.5)
            for shape in SHAPES:
                with self.subTest(shape, mode=mode):
                    self.assertGreaterEqual(contrast(colours[shape], colours["ground"]), 3)

    def test_of_the_page_is_a_photograph_in_each_mode(self):
        found = sorted(pictures.FOLDER.glob("*.webp"))
        self.assertEqual(
            [path.name for path in found], ["inspector-dark.webp", "inspector-light.webp"]
        )
        for path in found:
            self.assertEqual((path.read_bytes()[:4], path.read_bytes()[8:12]), (b"RIFF", b"WEBP"))


if __name__ == "__main__":
    unittest.main()
