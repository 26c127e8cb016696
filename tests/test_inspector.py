"""How the inspector page is served; what it does in a browser is tried in live/inspector.py."""

from __future__ import annotations

import re
import unittest
from pathlib import Path
from unittest import mock

import jwt_minimal
import server
from jwksd.api import answers
from tests.support import ROOT, AppTest, header

FILES = {path: (ROOT / "web" / name).read_bytes() for path, (name, _) in answers.PAGE.items()}
SCRIPTS = {path for path in FILES if path.endswith(".js")}
# Addresses that name something and are never fetched.
NAMES = (b"http://www.w3.org/2000/svg", b"https://hasura.io/jwt/claims")


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    long = colour if len(colour) == 6 else "".join(digit * 2 for digit in colour)
    parts = [int(long[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


class ThePage(AppTest):
    def test_is_the_files_of_the_folder(self):
        for path, content in FILES.items():
            self.assertEqual(self.call("GET", path).body, content)

    def test_names_its_types(self):
        types = [header(self.call("GET", path), "Content-Type") for path in FILES]
        self.assertEqual(
            [t.split(";")[0] for t in types],
            ["text/html", *["text/javascript"] * 3, "text/css", "image/svg+xml"],
        )

    def test_runs_no_script_but_its_own_and_speaks_to_nobody_else(self):
        for path in FILES:
            policy = header(self.call("GET", path), "Content-Security-Policy").split("; ")
            self.assertEqual(
                policy,
                [
                    *("default-src 'none'", "script-src 'self'", "style-src 'self'"),
                    *("img-src 'self'", "connect-src 'self'", "base-uri 'none'"),
                    *("form-action 'none'", "frame-ancestors 'none'"),
                ],
            )

    def test_leaks_no_address_to_where_a_reader_goes_next(self):
        self.assertEqual(header(self.call("GET", "/"), "Referrer-Policy"), "no-referrer")

    def test_is_asked_for_each_time_and_sent_when_it_changed(self):
        first = self.call("GET", "/")
        self.assertEqual(header(first, "Cache-Control"), "no-cache")
        again = self.call("GET", "/", headers={"if-none-match": header(first, "ETag")})
        self.assertEqual((again.status, again.body), (304, b""))
        self.assertEqual(self.call("GET", "/", headers={"if-none-match": '"old"'}).status, 200)

    def test_has_an_entity_tag_for_each_file(self):
        tags = {header(self.call("GET", path), "ETag") for path in FILES}
        self.assertEqual(len(tags), len(FILES))

    def test_is_found_nowhere_when_its_files_are_missing(self):
        with mock.patch("jwksd.resource", side_effect=FileNotFoundError):
            self.app._page = answers.inspector_page()
        self.assertEqual([self.call("GET", path).status for path in FILES], [404] * len(FILES))

    def test_is_not_posted_to(self):
        self.assertEqual(header(self.call("POST", "/"), "Allow"), "GET, HEAD, OPTIONS")


class TheFiles(unittest.TestCase):
    def test_need_nothing_from_elsewhere(self):
        for path, content in FILES.items():
            with self.subTest(path):
                for name in NAMES:
                    content = content.replace(name, b"")
                self.assertNotRegex(content, rb"//\w|\burl\(|@import|from \"[^.]|import\(")

    def test_hold_no_inline_script_or_style_which_the_policy_would_block(self):
        html = FILES["/"].decode()
        self.assertEqual(re.findall(r"<script(?![^>]*\ssrc=)|<style|\s(?:on\w+|style)=", html), [])

    def test_make_no_markup_of_text(self):
        sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\("
        for path in SCRIPTS:
            self.assertEqual(re.findall(sinks, FILES[path].decode()), [])

    def test_know_no_page_but_in_the_script_of_the_page(self):
        for path in SCRIPTS - {"/page.js"}:
            page = r"\b(?:document|window|location|history|navigator|Date\.now)\b"
            code = re.sub(r"/\*.*?\*/|//.*", "", FILES[path].decode(), flags=re.DOTALL)
            self.assertEqual(re.findall(page, code), [])

    def test_stay_small_enough_to_be_read(self):
        self.assertLess(sum(map(len, FILES.values())), 42_000)
        self.assertLess(max(map(len, FILES.values())), 16_000)

    def test_can_be_read_in_light_and_in_dark(self):
        text = {
            **dict.fromkeys(("s0", "s1", "s2"), ("ground", "card")),
            "ink": ("ground", "card", "good-ground", "bad-ground", "mark"),
            "quiet": ("ground", "card", "good-ground", "bad-ground"),
            "accent": ("card",),
            "good": ("good-ground",),
            "bad": ("bad-ground", "card"),
        }
        for scheme in re.findall(r":root \{(.*?)\}", FILES["/style.css"].decode(), re.DOTALL):
            colours = dict(re.findall(r"--([\w-]+): #(\w+)", scheme))
            for name, grounds in text.items():
                for ground in grounds:
                    with self.subTest(scheme=colours["ground"], text=name, on=ground):
                        self.assertGreater(contrast(colours[name], colours[ground]), 4.5)
            self.assertGreater(contrast(colours["edge"], colours["card"]), 3)
            self.assertGreater(contrast(colours["edge"], colours["ground"]), 3)

    def test_load_each_other_by_the_names_that_are_served(self):
        loaded = set(re.findall(r'(?:href|src)="([^"]+)"', FILES["/"].decode()))
        for path in SCRIPTS:
            loaded |= set(re.findall(r'from "\./([^"]+)"', FILES[path].decode()))
        self.assertEqual({f"/{name}" for name in loaded} | {"/"}, set(FILES))

    def test_bound_a_paste_alike_in_the_markup_and_in_the_script(self):
        bound = re.findall(r'maxlength="(\d+)"', FILES["/"].decode())
        factor = re.findall(r"MAX_PASTE = (\d+) \* MAX_TOKEN;", FILES["/readers.js"].decode())
        self.assertEqual([int(n) for n in bound], [int(n) * jwt_minimal.MAX_TOKEN for n in factor])
        self.assertEqual(len(bound), 1)

    def test_stand_beside_the_server(self):
        self.assertTrue((Path(server.__file__).parent / "web").is_dir())


if __name__ == "__main__":
    unittest.main()
