"""What a teacher and a student get to read: grades, reasons, and the requests that show them.

    DIR/grades.csv  DIR/index.html
    DIR/NAME/results.json (Gradescope)  junit.xml  feedback.md  server.log  replay.sh

Rules of this file
  - A point is earned, lost with a sentence, or not judged with a reason; the three are the whole.
  - What a submission sent is quoted where no program takes it for more than text.
  - The same verdicts give the same grades: nothing here looks at a clock.

Left out: what a check is worth (rubric.py).
"""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from jwksd.grading.asking import printable
from jwksd.grading.rubric import Rubric

COLUMNS = ("name", "points", "lost", "not judged", "possible", "outcome")
PASSED, FAILED, OPEN = "passed", "failed", "not judged"
# A cell that begins with one of these is computed by a spreadsheet.
FORMULA = re.compile(r"^[=+\-@\t\r]")
RUN = re.compile(r"(?<=user-)|(?<=nobody-)|(?=@example\.org)")  # where a replay has its own names


class Verdict(NamedTuple):
    """How one check ended."""

    check: str
    verdict: str
    why: str
    points: float
    about: str = ""
    asked: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


class Graded(NamedTuple):
    """One submission, graded."""

    name: str
    outcome: str  # "graded", or what went wrong
    isolated: bool
    port: int
    verdicts: list[Verdict]
    log: str

    def points(self, verdict: str) -> float:
        """The points of all checks that ended so."""
        return sum(it.points for it in self.verdicts if it.verdict == verdict)

    def row(self) -> dict[str, str]:
        """The submission's row of grades.csv."""
        parts = [self.points(verdict) for verdict in (PASSED, FAILED, OPEN)]
        shown = [f"{number:g}" for number in (*parts, sum(parts))]
        outcome = self.outcome if self.isolated else f"{self.outcome} (not isolated)"
        return dict(zip(COLUMNS, (self.name, *shown, outcome)))


def judge(name: str, told: Iterable[Mapping[str, Any]], rubric: Rubric, **known: Any) -> Graded:
    """What the warden told, with the points of the rubric."""
    lines = list(told)
    end = next((line for line in lines if "end" in line), {"end": "the grader lost it", "log": ""})
    by_check = {line["check"]: line for line in lines if "check" in line}
    verdicts = []
    for check, points in rubric.points.items():
        line = by_check.get(check, {"verdict": OPEN, "why": f"not judged: {end['end']}"})
        verdict = Verdict(check, line["verdict"], line["why"], points, line.get("about", ""),
                          tuple(line.get("asked", ())), tuple(line.get("notes", ())))  # fmt: skip
        verdicts.append(verdict)
    return Graded(name, end["end"], verdicts=verdicts, log=end["log"], **known)


# ---- one submission ----


def write_one(folder: Path, graded: Graded) -> None:
    """Every report of one submission."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "results.json": gradescope(graded),
        "junit.xml": junit(graded),
        "feedback.md": feedback(graded),
        "server.log": "".join(printable(line) + "\n" for line in graded.log.splitlines()),
        "replay.sh": replay(graded),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")
    (folder / "replay.sh").chmod(0o755)


def gradescope(graded: Graded) -> str:
    """Gradescope's results.json: a score, and a test for each check."""
    tests = [
        {
            "name": it.check, "score": it.points if it.verdict == PASSED else 0,
            "max_score": it.points, "output": it.why, "visibility": "visible",
            "status": "passed" if it.verdict == PASSED else "failed",
            "extra_data": {"verdict": it.verdict, "notes": list(it.notes)},
        }
        for it in graded.verdicts
    ]  # fmt: skip
    output = graded.outcome if graded.isolated else f"{graded.outcome} (not isolated)"
    document = {"score": graded.points(PASSED), "output": output, "tests": tests}
    return json.dumps(document, indent=1) + "\n"


def junit(graded: Graded) -> str:
    """The format that continuous integration reads."""
    count = {verdict: sum(it.verdict == verdict for it in graded.verdicts)
             for verdict in (FAILED, OPEN)}  # fmt: skip
    suite = ElementTree.Element(
        "testsuite", name=graded.name, tests=str(len(graded.verdicts)), errors="0",
        failures=str(count[FAILED]), skipped=str(count[OPEN]),
    )  # fmt: skip
    for it in graded.verdicts:
        group, _, check = it.check.partition(".")
        case = ElementTree.SubElement(suite, "testcase", classname=group, name=check)
        if it.verdict != PASSED:
            kind = "failure" if it.verdict == FAILED else "skipped"
            ElementTree.SubElement(case, kind, message=it.why)
    return ElementTree.tostring(suite, "unicode", xml_declaration=True) + "\n"


def feedback(graded: Graded) -> str:
    """For the student: a sentence for each lost point, and what could not be judged."""
    row = graded.row()
    lines = [f"# {row['points']} of {row['possible']} points", "", f"Outcome: {row['outcome']}", ""]
    for verdict, title in ((FAILED, "Lost"), (OPEN, "Not judged")):
        found = [it for it in graded.verdicts if it.verdict == verdict]
        if found:
            lines += [f"## {title}: {graded.points(verdict):g}", ""]
        for it in found:
            # Four spaces make it code: what a server sent is no Markdown.
            lines += [f"{it.check}, {it.points:g}. {it.about}", "", f"    {it.why}", ""]
    notes = [note for it in graded.verdicts for note in it.notes]
    if notes:
        lines += ["## Notes", "", *(f"- {note}" for note in notes), ""]
    if graded.points(FAILED):
        lines += ["`replay.sh URL` sends the requests of what was lost to a running server.", ""]
    return "\n".join(lines)


# ---- replay.sh ----


def replay(graded: Graded) -> str:
    """Shell lines that send the requests of each failed check again."""
    lines = [
        "#!/bin/sh",
        f"# The requests of every lost point of {graded.name}: sh replay.sh [URL]",
        f"URL=${{1:-http://127.0.0.1:{graded.port}}}",
        "RUN=$$-  # a name in use would be refused",
        "show='\\n-> %{http_code}\\n'",
    ]
    for it in graded.verdicts:
        if it.verdict == FAILED:
            lines += ["", f"echo; echo {shlex.quote(f'== {it.check}, {it.points:g} points')}"]
            lines += [f"echo {shlex.quote(it.why)}", *commands(it.asked)]
    return "\n".join(lines) + "\n"


def commands(asked: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each request; a password that was given is taken up by those that follow."""
    passwords: dict[str, str] = {}
    lines = []
    for request in asked:
        password = request["password"]
        if password in passwords:
            continue  # the same registration, which two of a check's steps need
        line = curl(request, passwords)
        if password:
            name = f"P{len(passwords) + 1}"
            passwords[password] = name
            given = r"""sed -n 's/.*"password" *: *"\([^"]*\)".*/\1/p'"""
            line = f"{name}=$({line} | tee /dev/stderr | {given}); echo"
        lines.append(f"{line}  # then: {request['status'] or 'no answer'}")
    return lines


def curl(request: Mapping[str, Any], passwords: Mapping[str, str]) -> str:
    """One request as a line of curl."""
    words = ['curl -s -m 20 -D - -w "$show"']
    if request["password"]:
        words = ["curl -s -m 20"]
    words.append("-I" if request["method"] == "HEAD" else f"-X {request['method']}")
    for name, value in request["fields"].items():
        scheme, _, rest = value.partition(" ")
        if name == "Authorization" and scheme == "Basic":
            words.append("-u " + spliced(base64.b64decode(rest).decode(), passwords))
        else:
            words.append("-H " + shlex.quote(f"{name}: {value}"))
    before = ""
    if request["raw"] is not None:
        raw = bytes.fromhex(request["raw"])
        if raw.isascii():
            words.append("--data-binary " + spliced(raw.decode(), passwords))
        else:
            before = "printf '" + "".join(f"\\{octet:03o}" for octet in raw) + "' | "
            words.append("--data-binary @-")
    elif request["method"] == "POST":
        words.append("--data-binary ''")
    return f'{before}{" ".join(words)} "$URL"{shlex.quote(request["path"])}'


def spliced(text: str, passwords: Mapping[str, str]) -> str:
    """A word of the shell, with its own names, and with passwords from before."""
    pieces = [(RUN.sub("\0RUN\0", text))]
    for password, name in passwords.items():
        pieces = [piece.replace(password, f"\0{name}\0") for piece in pieces]
    parts = pieces[0].split("\0")
    quoted = (f'"${part}"' if at % 2 else shlex.quote(part) for at, part in enumerate(parts))
    return "".join(part for part in quoted if part != "''") or "''"


# ---- the class ----


def write_class(folder: Path, rows: Iterable[Mapping[str, str]], title: str) -> None:
    """grades.csv and index.html; rows of others that stand there already stay."""
    path = folder / "grades.csv"
    found = {row["name"]: row for row in (read_rows(path) if path.exists() else [])}
    found.update({row["name"]: dict(row) for row in rows})
    ordered = [found[name] for name in sorted(found)]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in ordered:
        writer.writerow({name: harmless(row[name]) for name in COLUMNS})
    path.write_text(text.getvalue(), "utf-8")
    (folder / "index.html").write_text(page(ordered, title), "utf-8")


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a grades.csv that we wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: row.get(name) or "" for name in COLUMNS} for row in csv.DictReader(file)]


def harmless(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return "'" + cell if FORMULA.match(cell) else cell


def page(rows: Iterable[Mapping[str, str]], title: str) -> str:
    """The table for people: no script, nothing from elsewhere."""
    head = "".join(f"<th>{html.escape(name)}" for name in (*COLUMNS, "reports"))
    body = []
    for row in rows:
        cells = "".join(f"<td>{html.escape(row[name])}" for name in COLUMNS)
        name = html.escape(row["name"])
        links = " ".join(
            f'<a href="{name}/{file}">{file}</a>'
            for file in ("feedback.md", "replay.sh", "server.log", "results.json", "junit.xml")
        )
        body.append(f"<tr>{cells}<td>{links}")
    return PAGE.format(title=html.escape(title), head=head, body="\n".join(body))


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Grades: {title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>body{{font:1rem sans-serif;margin:2rem}} td,th{{padding:.3rem .8rem;text-align:left;
border-bottom:1px solid #ccc}} td:nth-child(n+2):nth-child(-n+5){{text-align:right}}</style>
<h1>{title}</h1>
<p>Points are earned, lost, or not judged; feedback.md has a sentence for each that was lost.</p>
<table><thead><tr>{head}</thead><tbody>
{body}
</tbody></table>
"""
