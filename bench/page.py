"""All figures of docs/performance.md, measured in one run, and the page and its pictures from them.

    python -m bench.page [--quick] [--only SECTION ...]     measure, then write
    python -m bench.page --write                            write again what was measured

    bench.throughput, bench.auth --> docs/figures.json --> docs/performance.md, SVGs

A section that is measured again replaces its own figures, and says of which commit they are. The
page's prose is written by hand; tables stand between `<!-- figures: NAME -->` and `<!-- end -->`.
It takes about half an hour; `--quick`, some minutes, is for trying the program.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import platform
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

from bench import auth, throughput
from bench.serving import ROOT
from tools import pictures

PAGE = ROOT / "docs" / "performance.md"
MARKED = re.compile(r"(<!-- figures: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
Rows = Mapping[str, Mapping[str, float]]
Sections = Mapping[str, Rows]
LOGINS = (auth.REPEATED, auth.FIRST)
PROGRAMS = {
    "Go": ("go", "version"),
    "nginx": ("nginx", "-v"),
    "Node": ("node", "--version"),
    "wrk": ("wrk", "-v"),
}
PACKAGES = ("cryptography", "argon2-cffi", "uvicorn", "uvloop", "httptools", "fastapi", "flask",
            "gunicorn", "bjoern")  # fmt: skip


# -- tables


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def shown(name: str) -> str:
    return f"**{name}**" if name == "ours" else name


def ratio(rows: Rows, name: str) -> str:
    return "" if name == "ours" else f"{rows['ours']['rate'] / rows[name]['rate']:.2f} x"


def milliseconds(value: float) -> str:
    return f"{value:.2f} ms" if value < 10 else f"{value:,.0f} ms"


def served(rows: Rows) -> str:
    """Servers by what one scenario came to."""
    return table(
        ("server", "requests/s", "ours is", "p99", "processor"),
        [
            (shown(name), f"{row['rate']:,}", ratio(rows, name), milliseconds(row["p99"]),
             f"{row['processor']:.1f} µs")
            for name, row in rows.items()
        ],
    )  # fmt: skip


def side_by_side(sections: Sections, titles: Sequence[str], last: str = "processor") -> str:
    """Servers by rate, ratio and processor or p99 in several scenarios."""
    names = list(dict.fromkeys(name for title in titles for name in sections[title]))
    head = ["server"]
    for title in titles:
        head += [f"{title}: requests/s", "ours is", last]
    rows = []
    for name in names:
        cells = [shown(name)]
        for title in titles:
            row = sections[title].get(name)
            cells += (
                ["", "", ""]
                if row is None
                else [
                    f"{row['rate']:,}",
                    ratio(sections[title], name),
                    milliseconds(row["p99"]) if last == "p99" else f"{row['processor']:.1f} µs",
                ]
            )
        rows.append(cells)
    return table(head, rows)


def crowd(rows: Rows) -> str:
    """Servers by what one client sees beside many that rest."""
    keys = ("p50", "p99", "slowest")
    return table(
        ("server", "memory", *keys),
        [
            (shown(name), f"{row['memory']} MB", *(milliseconds(row[key]) for key in keys))
            for name, row in rows.items()
        ],
    )


def grown(sections: Sections) -> str:
    """Clients by rate and p99 of each server."""
    titles = pictures.growing(sections)
    names = list(sections[titles[0]])
    head = ["clients", *(f"{name}: {what}" for name in names for what in ("requests/s", "p99"))]
    rows = []
    for title in titles:
        cells = [title.split()[0]]
        for name in names:
            row = sections[title].get(name)
            cells += [f"{row['rate']:,}", milliseconds(row["p99"])] if row else ["", ""]
        rows.append(cells)
    return table(head, rows)


def logins(sections: Sections, kind: str) -> str:
    """Clients and servers by logins."""
    rows = []
    for title in (title for title in sections if title.startswith(kind)):
        for name, row in sections[title].items():
            rows.append((
                title.split(", ")[1].split()[0], shown(name), f"{row['rate']:,}",
                "" if name == "ours" else f"{row['ours']:.2f} x", f"{row['ratio']:.2f}",
                milliseconds(row["p99"]), f"{row['processor']:,} µs",
            ))  # fmt: skip
    head = ("clients", "server", "logins/s", "ours is", "of bare", "p99", "processor")
    return table(head, rows)


def machine(found: Mapping[str, Any]) -> str:
    """On what, with what and when it was measured."""
    commits = sorted({f"`{commit}`" for commit in found["commits"].values()})
    versions = ", ".join(f"{name} {text}" for name, text in found["versions"].items())
    rough = len(found.get("quick", []))
    note = (
        f"\n\n{rough} of {len(found['commits'])} parts were measured with `--quick`: roughly."
        if rough
        else ""
    )
    first = f"{found['machine']}; {found['date']}; commit {', '.join(commits)}."
    return f"{first}\n\n{versions}.{note}\n"


TABLES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "machine": machine,
    "kept": lambda found: served(found["sections"]["32 connections"]),
    "many": lambda found: side_by_side(
        found["sections"], ("256 connections", "1,000 connections"), "p99"
    ),
    "one": lambda found: side_by_side(found["sections"], ("1 connection", "pipelined, 16 at once")),
    "each": lambda found: served(found["sections"]["a connection per request"]),
    "growing": lambda found: grown(found["sections"]),
    "idle": lambda found: crowd(found["sections"][throughput.IDLE_SCENARIO]),
    "readers": lambda found: served(found["sections"]["beside 100 clients that never read"]),
    "tls": lambda found: side_by_side(
        found["sections"], ("TLS, 32 connections", "TLS, a resumed session per request")
    ),
    "handshakes": lambda found: side_by_side(
        found["sections"],
        ("TLS, a handshake per request, ECDSA", "TLS, a handshake per request, RSA"),
    ),
    "repeated": lambda found: logins(found["sections"], LOGINS[0]),
    "first": lambda found: logins(found["sections"], LOGINS[1]),
}


def filled(page: str, found: Mapping[str, Any]) -> str:
    """The page with its tables made of these figures."""
    return MARKED.sub(lambda mark: mark[1] + TABLES[mark[2]](found) + mark[3], page)


# -- measuring


def measured(wanted: Sequence[str], quick: bool, found: dict[str, Any]) -> None:
    """Measure these sections, and keep each as soon as it is there."""
    seconds, rounds = (1, 1) if quick else (2, 4)
    servers = [name for name in throughput.SERVERS if name != throughput.others.OTHER_TREE]
    of_throughput = [title for title in wanted if title not in LOGINS]
    if of_throughput:
        with throughput.prepared() as folder:
            for title in of_throughput:
                rows = throughput.measure(title, servers, seconds, rounds, folder)
                keep(found, title, rows, quick)
                print(f"\n{title}: the first column is what ours is of each", flush=True)
                print(throughput.table(rows), flush=True)
    if set(wanted) & set(LOGINS):
        kinds = [title for title in LOGINS if title in wanted]
        for title, by_clients in auth.measure(auth.SERVERS, 1 if quick else 5, kinds=kinds):
            auth.report(title, by_clients)
            for clients, figures in by_clients.items():
                keep(found, f"{title}, {clients} clients", auth.rows_of(figures), quick)


def keep(found: dict[str, Any], title: str, rows: Rows, quick: bool) -> None:
    found["sections"][title] = rows
    found["quick"] = sorted({*found.get("quick", []), title} - (set() if quick else {title}))
    found["commits"][title] = commit()
    found["machine"], found["versions"] = processor(), versions()
    found["date"] = datetime.date.today().isoformat()
    pictures.FIGURES.write_text(json.dumps(found, indent=1, sort_keys=False) + "\n", "utf-8")


def commit() -> str:
    """The commit that is measured; marked if files differ from it."""
    words = ["git", "-C", str(ROOT)]
    name = subprocess.check_output([*words, "rev-parse", "--short", "HEAD"], text=True).strip()
    differs = subprocess.run(
        [*words, "diff", "--quiet", "HEAD", "--", "*.py", "*.sql", "*.go", "*.mjs"], check=False
    ).returncode
    return f"{name}+" if differs else name


def processor() -> str:
    models = re.findall(r"(?m)^model name\s*:\s*(.*)$", read("/proc/cpuinfo"))
    system = f"{platform.system()} {platform.release().partition('-')[0]}"
    return f"{auth.CORES} cores of {models[0] if models else platform.machine()}, {system}"


def read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def versions() -> dict[str, str]:
    found = {"Python": platform.python_version(), "OpenSSL": ssl.OPENSSL_VERSION.split()[1]}
    for name, words in PROGRAMS.items():
        program = shutil.which(words[0], path="/usr/sbin:/usr/bin:/bin:/usr/local/bin")
        if program:
            done = subprocess.run(
                [program, *words[1:]], capture_output=True, text=True, check=False
            )
            numbers = re.search(r"\d+\.\d+(\.\d+)?", done.stdout + done.stderr)
            found[name] = numbers[0] if numbers else "?"
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    for package in auth.NODE_PACKAGES:
        name, _, version = package.rpartition("@")
        found[name] = version
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    sections = [*throughput.SCENARIOS, throughput.IDLE_SCENARIO, *LOGINS]
    parser.add_argument("--only", nargs="+", choices=sections, default=sections, metavar="SECTION")
    parser.add_argument("--quick", action="store_true", help="short rounds, to try the program")
    parser.add_argument("--write", action="store_true", help="measure nothing")
    options = parser.parse_args()
    found: dict[str, Any] = {"sections": {}, "commits": {}}
    if pictures.FIGURES.exists():
        found.update(json.loads(pictures.FIGURES.read_text("utf-8")))
    if not options.write:
        measured(options.only, options.quick, found)
    PAGE.write_text(filled(PAGE.read_text("utf-8"), found), "utf-8")
    pictures.draw()
    print(f"\nwritten: {PAGE.relative_to(ROOT)} and the pictures", file=sys.stderr)


if __name__ == "__main__":
    main()
