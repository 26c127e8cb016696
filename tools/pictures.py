"""The pictures of README.md: `python tools/pictures.py [--browser]`.

    docs/figures.json                   --> throughput.svg, logins.svg, growing.svg
    README.md, the settings             --> life-of-a-key.svg
    jwt_minimal.explain                 --> explain.svg
    web/, in Chromium (with --browser)  --> inspector-light.webp, inspector-dark.webp

Rules of this file:
- An SVG follows from the files of the repository alone: a test makes each again and compares.
- Every colour is one of `PALETTE`, for light and for dark; a test measures their contrast.
- Lengths are pixels of the picture.

It leaves out: comparing the photographs of the page, where each browser draws its own letters.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jwt_minimal

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "pictures"
FIGURES = ROOT / "docs" / "figures.json"  # by `python -m bench.page`
# For light and for dark; the same hues as web/style.css. Bars carry no text but their own `-ink`.
PALETTE = {
    "ground": ("#ffffff", "#15181c"),
    "line": ("#84888e", "#757d87"),
    "ink": ("#1f2328", "#e6e8ea"),
    "quiet": ("#5b626b", "#a0a8b1"),
    "red": ("#b3261e", "#ff8f85"),
    "magenta": ("#7a3ea8", "#cf9dff"),
    "cyan": ("#046c7a", "#56cfdf"),
    "ours": ("#1f5fbf", "#86b7ff"),
    "other": ("#8b929b", "#6b747f"),
    "waits": ("#ffe08a", "#6a5200"),
    "signs": ("#1f5fbf", "#86b7ff"),
    "signs-ink": ("#ffffff", "#15181c"),
    "ends": ("#dcd9d2", "#343a42"),
}
Rows = dict[str, dict[str, float]]  # server -> figures
CURVES = ("cyan", "magenta", "quiet")
SANS = 'system-ui, "Segoe UI", "DejaVu Sans", sans-serif'
MONO = 'ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace'


def style() -> str:
    """A class for each colour, and what changes where the reader has chosen dark."""
    light, dark = (
        " ".join(f".{name} {{ fill: {both[at]}; }}" for name, both in PALETTE.items())
        for at in (0, 1)
    )
    strokes = [
        " ".join(
            f".{name} {{ stroke: {PALETTE[of][at]}; fill: none; }}"
            for name, of in (("edge", "line"), *((f"{kind}-edge", kind) for kind in CURVES))
        )
        for at in (0, 1)
    ]
    fonts = f"text {{ font: 14px {SANS}; }} .mono {{ font: 13px {MONO}; white-space: pre; }}"
    return (
        f"<style>\n{fonts} .bold {{ font-weight: 600; }}\n{light} {strokes[0]}\n"
        f"@media (prefers-color-scheme: dark) {{ {dark} {strokes[1]} }}\n</style>"
    )


def picture(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """A whole SVG file with a ground of its own, readable on any page."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    ground = f'<rect class="ground" width="{width}" height="{height}" rx="8"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", style(), ground, *parts, "</svg>\n"])


def text(x: float, y: float, words: str, kind: str = "ink", anchor: str = "start") -> str:
    """A line of text."""
    place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {place}>{escape(words, quote=False)}</text>'


def bar(x: float, y: float, width: float, height: float, kind: str) -> str:
    """A filled rectangle."""
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:.1f}" height="{height:g}"/>'


def sections() -> dict[str, dict[str, dict[str, float]]]:
    """What was measured: scenario -> server -> figures."""
    found: dict[str, dict[str, dict[str, float]]] = json.loads(FIGURES.read_text("utf-8"))[
        "sections"
    ]
    return found


def bars(heading: str, rows: Sequence[tuple[str, int]]) -> str:
    """Rates as bars, the most first."""
    rows = sorted(rows, key=lambda row: -row[1])
    top, step, left, room = 56, 30, 230, 500
    parts = [text(24, 34, heading, "ink bold")]
    for at, (name, number) in enumerate(rows):
        y, length = top + at * step, room * number / rows[0][1]
        ours = name.startswith("ours")
        parts += [
            text(left - 12, y + 16, name, "ink bold" if ours else "ink", "end"),
            bar(left, y, length, 21, "ours" if ours else "other"),
            text(left + length + 8, y + 16, f"{number:,}", "ink bold" if ours else "quiet"),
        ]
    title = f"{heading}: " + ", ".join(f"{name} {number:,}" for name, number in rows)
    return picture(820, top + len(rows) * step + 14, title, parts)


def rates(scenario: str) -> list[tuple[str, int]]:
    """Server and rate of a scenario."""
    return [(name, int(row["rate"])) for name, row in sections()[scenario].items()]


def throughput() -> str:
    """Requests a second for the key set."""
    return bars("Key sets a second, one core, 32 kept connections", rates("32 connections"))


def logins() -> str:
    """Logins a second that cost a signature and a row on disk."""
    heading = "Repeated logins a second, two cores with the load generator, 64 clients"
    return bars(heading, rates("repeated login, 64 clients"))


def growing(found: Mapping[str, object]) -> list[str]:
    """The scenarios that differ in the number of clients alone, the fewest first."""
    titles = [title for title in found if re.fullmatch(r"[\d,]+ clients", title)]
    return sorted(titles, key=lambda title: int(title.split()[0].replace(",", "")))


def more_clients() -> str:
    """Rate and p99 over the number of clients, both axes of the second by powers of ten."""
    found = sections()
    titles = growing(found)
    names = list(found[titles[0]])
    most = max(row["rate"] for title in titles for row in found[title].values())
    slowest = max(row["p99"] for title in titles for row in found[title].values())
    fastest = min(row["p99"] for title in titles for row in found[title].values())
    parts = [
        text(24, 34, "Requests a second", "ink bold"),
        text(434, 34, "p99, in ms", "ink bold"),
    ]

    def rate_at(row: Mapping[str, float]) -> float:
        return row["rate"] / most

    def p99_at(row: Mapping[str, float]) -> float:
        return math.log(row["p99"] / fastest) / math.log(slowest / fastest)

    for left, height_of, key in ((64, rate_at, "rate"), (474, p99_at, "p99")):
        places = [left + 280 * at / (len(titles) - 1) for at in range(len(titles))]
        parts += [f'<path class="edge" d="M{left} 52V252H{left + 284}"/>']
        parts += [
            text(x, 272, title.split()[0], "quiet", "middle") for x, title in zip(places, titles)
        ]
        labels: list[tuple[float, float, str, str]] = []
        for number, name in enumerate(names):
            kind = CURVES[number % len(CURVES)]
            there = [
                (x, found[title][name]) for x, title in zip(places, titles) if name in found[title]
            ]
            ends = [(x, 252 - 190 * height_of(row)) for x, row in there]
            points = "L".join(f"{x:.1f} {y:.1f}" for x, y in ends)
            parts.append(f'<path class="{kind}-edge" stroke-width="2.5" d="M{points}"/>')
            last = f"{there[-1][1][key]:,.0f}"
            labels.append((ends[-1][1] + 5, ends[-1][0] + 6, last, kind))
        lowest = 0.0
        for y, x, last, kind in sorted(labels):
            lowest = max(y, lowest + 15)  # one line below the other
            parts.append(text(x, lowest, last, kind))
    parts.append(text(24, 302, "clients, each with a connection that it keeps", "quiet"))
    for number, name in enumerate(names):
        x, kind = 364 + 140 * number, CURVES[number % len(CURVES)]
        parts += [bar(x, 292, 18, 10, kind), text(x + 26, 302, name, kind)]
    title = "How requests a second and the 99th percentile of latency grow with the clients: " + (
        ", ".join(f"{name} {row['rate']:,.0f} a second" for name, row in found[titles[-1]].items())
        + f" with {titles[-1]}"
    )
    return picture(820, 322, title, parts)


def default(flag: str) -> str:
    """A setting's default, from the table in README.md."""
    readme = (ROOT / "README.md").read_text("utf-8")
    for flags, values in re.findall(r"(?m)^\| (`--[^|]+) \| ([^|]+) \|", readme):
        if f"`{flag}`" in flags.split(", "):
            return str(values.split(", ")[flags.split(", ").index(f"`{flag}`")].strip("` "))
    raise ValueError(f"README.md has no default of {flag}")


def life_of_a_key() -> str:
    """Three keys, one after the other; lengths are not to scale."""
    lead, signing, rest, left = 124, 248, 74, 96
    parts = [text(24, 34, "The life of a key, and of those after it", "ink bold")]
    for number, name in enumerate(("a key", "the next", "another")):
        x, y = left + number * signing, 60 + number * 46
        shown = 820 - 24 - x - lead  # the last key's life goes on beyond the picture
        parts += [
            text(24, y + 22, name),
            bar(x, y, lead, 32, "waits"),
            text(x + lead / 2, y + 21, "published", "ink", "middle"),
            bar(x + lead, y, min(signing, shown), 32, "signs"),
            text(x + lead + min(signing, shown) / 2, y + 21, "signs", "signs-ink", "middle"),
        ]
        if signing + rest <= shown:
            parts += [
                bar(x + lead + signing, y, rest, 32, "ends"),
                text(x + lead + signing + rest / 2, y + 21, "verifies", "ink", "middle"),
            ]
        if number:
            line = f"M{x + lead} 52V214"
            parts += [f'<path class="edge" stroke-dasharray="4 4" d="{line}"/>']
            parts += [text(x + lead, 230, f"{name} takes over", "quiet", "middle")]
    lines = [
        f"published: {default('--key-lead')} in which every client can fetch it (--key-lead)",
        f"verifies: until the last token that it signed has expired "
        f"({default('--token-ttl')} of --token-ttl, {default('--key-skew')} of --key-skew)",
        f"in the key set from end to end: {default('--key-lifetime')} (--key-lifetime). "
        "Lengths are not to scale.",
    ]
    parts += [text(24, 262 + 22 * at, line, "quiet") for at, line in enumerate(lines)]
    title = "A key is published before it signs and after it; the next is there before it is needed"
    return picture(820, 322, title, parts)


def explained() -> str:
    """What `explain` prints, in colour, of the token that docs/token-walkthrough.md makes."""
    page = (ROOT / "docs/token-walkthrough.md").read_text("utf-8")
    token = page.split(">>> print(token)\n", 1)[1].split("\n", 1)[0]
    vectors = json.loads((ROOT / "tests/vectors/rfc.json").read_text("utf-8"))
    numbers = vectors["rfc7515_a2"]["private_jwk"]
    jwk = {"kty": "RSA", "n": numbers["n"], "e": numbers["e"]}
    jwks = {"keys": [{**jwk, "kid": jwt_minimal.thumbprint(jwk)}]}
    return jwt_minimal.explain(token, jwks, colour=True, now=1_800_000_000)


def explain() -> str:
    """`explained` in a terminal of 112 columns."""
    columns, cell, step, left = 112, 7.2, 18, 24
    colours = {"31": "red", "35": "magenta", "36": "cyan", "1": "ink bold"}
    lines = [("ink", "$ python jwt_minimal.py explain TOKEN --jwks URL")]
    for code, words in re.findall(r"\x1b\[(\d*)m([^\x1b\n]*)\x1b\[0m", explained()):
        cuts = range(0, max(len(words), 1), columns)
        lines += [(colours.get(code, "ink"), words[at : at + columns]) for at in cuts]
    parts = []
    for at, (kind, words) in enumerate(lines):
        # A length for each line: the columns stand under each other in any font.
        length = f'textLength="{len(words) * cell:.1f}" lengthAdjust="spacingAndGlyphs"'
        place = f'x="{left}" y="{36 + at * step}" {length} xml:space="preserve"'
        if words:
            parts.append(f'<text class="mono {kind}" {place}>{escape(words, quote=False)}</text>')
    width, height = int(2 * left + columns * cell), 36 + len(lines) * step
    title = "explain shows a token's header, its payload, its signature opened, and the word VALID"
    return picture(width, height, title, parts)


PICTURES = {
    "explain.svg": explain,
    "growing.svg": more_clients,
    "life-of-a-key.svg": life_of_a_key,
    "logins.svg": logins,
    "throughput.svg": throughput,
}


def draw() -> None:
    """Write each SVG."""
    FOLDER.mkdir(exist_ok=True)
    for name, make in PICTURES.items():
        (FOLDER / name).write_text(make(), "utf-8")


def photograph() -> None:
    """The inspector page with a token, as Chromium shows it in light and in dark."""
    import server
    from tests.live.inspector import Browser

    with server.running(issuer="https://issuer.example") as issuer:
        browser = Browser()
        try:
            browser.command("Emulation.setDeviceMetricsOverride", width=1180, height=650,
                            deviceScaleFactor=1, mobile=False)  # fmt: skip
            browser.command("Emulation.setScrollbarsHidden", hidden=True)
            for scheme in ("light", "dark"):
                wanted = [{"name": "prefers-color-scheme", "value": scheme}]
                browser.command("Emulation.setEmulatedMedia", features=wanted)
                browser.go("about:blank#")
                token = issuer.token(sub="alice", scope="read write", role="editor")
                browser.go(f"{issuer.url}/#token={token}")
                browser.wait("document.getElementById('word').textContent === 'Valid'")
                taken = browser.command("Page.captureScreenshot", format="webp", quality=85)
                path = FOLDER / f"inspector-{scheme}.webp"
                path.write_bytes(base64.b64decode(taken["data"]))
        finally:
            browser.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="pictures.py", description=__doc__)
    parser.add_argument("--browser", action="store_true", help="the inspector page as well")
    options = parser.parse_args(arguments)
    draw()
    if options.browser:
        photograph()
    return 0


if __name__ == "__main__":
    sys.exit(main())
