"""All of tests/live, a module more at a time than there are cores; each in a process of its own.

    python -m tests.live [MODULE ...]

These tests wait for processes much of the time, which one more than the cores makes use of.
What a module printed stands together, and the last lines are those of unittest for all of them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).parent
SECONDS = 900  # for a module; the longest takes a fifth of that
# These take longest, so they begin: else one of them would end alone.
FIRST = ("documents", "postgres", "debian", "httpd_fuzz", "process", "wrong_solutions", "release")
RAN = re.compile(r"(?m)^Ran (\d+) tests? in ")
ENDED = re.compile(r"(?m)^(?:OK|FAILED)(?: \((.*)\))?$")


def modules() -> list[str]:
    """Their names, in the order in which they begin."""
    names = sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))
    return sorted(names, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))


def run(name: str) -> tuple[str, float, int, str]:
    """A module, how long it took, the exit code, and what it printed."""
    began = time.monotonic()
    words = [sys.executable, "-m", "unittest", f"tests.live.{name}"]
    try:
        done = subprocess.run(
            words,
            cwd=FOLDER.parent.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=SECONDS,
        )
        code, printed = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        code, printed = 1, f"{error.stdout!r}\nit did not end within {SECONDS} s\n"
    return name, time.monotonic() - began, code, printed


def main(wanted: Sequence[str]) -> int:
    """Run them; 0 if all of them passed."""
    began, ran, troubles = time.monotonic(), 0, {"failures": 0, "errors": 0, "skipped": 0}
    failed = []
    with ThreadPoolExecutor((os.cpu_count() or 1) + 1) as pool:
        for name, seconds, code, printed in pool.map(run, wanted or modules()):
            found, ended = RAN.findall(printed), ENDED.findall(printed)
            tests = int(found[-1]) if found else 0
            details = ended[-1] if ended else ""
            print(f"{name}: {tests} tests in {seconds:.0f} s {details}", flush=True)
            ran += tests
            for word in troubles:
                counted = re.search(rf"{word}=(\d+)", details)
                troubles[word] += int(counted[1]) if counted else 0
            # Python 3.12 and later end with 5 where a module has no test: a module of support.
            if code and not (code == 5 and not tests):
                failed.append(name)
                print(printed, flush=True)
    if failed and not troubles["failures"] + troubles["errors"]:
        troubles["errors"] = len(failed)  # it came to no end of its own
    print(f"Ran {ran} tests in {time.monotonic() - began:.3f}s\n")
    shown = ", ".join(f"{word}={count}" for word, count in troubles.items() if count)
    print(("FAILED" if failed else "OK") + (f" ({shown})" if shown else ""))
    print(*failed)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
