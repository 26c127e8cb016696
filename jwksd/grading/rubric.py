"""What a grader asks for, and what each check is worth: the file RUBRIC.json.

    {"title": ..., "points": {"Auth": {"test_takes_a_form": 1, ...}, ...}, "auth_limit": ..., ...}

Rules of this file
  - An unknown name is an error: no typing slip sets a point that nobody can get.
  - A check without points is not run.

Left out: what a check demands (test_server.py, at_rest.py), and whose file it is.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from jwksd.grading.judging import DEFAULTS, settings_of

# What running a submission may cost; all may be set in the rubric.
LIMITS: dict[str, int] = {
    "setup_seconds": 300,  # for pip or npm over a slow line
    "start_seconds": 30,  # until the first answer; a JVM on a busy machine takes ten
    "total_seconds": 600,  # for all checks; a fair server takes a few
    "memory_mib": 1024,  # of all its processes together
    "disk_mib": 512,  # the copy of its folder, with all that setup adds
    "processes": 100,  # threads of a process are not counted
}


class Rubric(NamedTuple):
    """A rubric that was read and found sound."""

    title: str
    points: dict[str, float]  # "Auth.test_takes_a_form": 1
    settings: dict[str, Any]  # those of judging.DEFAULTS
    limits: dict[str, int]  # those of LIMITS

    @property
    def possible(self) -> float:
        """All points together."""
        return sum(self.points.values())


def read(path: Path, checks: Collection[str]) -> Rubric:
    """The rubric in a file; OSError, or ValueError with a sentence that names the slip."""
    try:
        said = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    return sound(said, checks)


def sound(said: Any, checks: Collection[str]) -> Rubric:
    """The rubric, if every name in it is known and every value makes sense."""
    if not isinstance(said, dict) or not isinstance(said.get("points"), dict):
        raise ValueError('a rubric is an object with "points"')
    require_known(set(said) - {"title", "points", *DEFAULTS, *LIMITS}, "setting")
    points = {
        f"{group}.{check}": value
        for group, members in said["points"].items()
        for check, value in (members.items() if isinstance(members, dict) else ())
    }
    require_known(set(points) - set(checks), "check")
    groups = {name.partition(".")[0] for name in checks}
    require_known(set(said["points"]) - groups, "group of checks")
    for name, value in {**points, **{k: v for k, v in said.items() if k in LIMITS}}.items():
        if type(value) not in (int, float) or not 0 < value < 1e6:
            raise ValueError(f"{name}: {value!r} is no number above 0")
    if not points:
        raise ValueError("no check has points")
    limits = {name: int(said.get(name, default)) for name, default in LIMITS.items()}
    return Rubric(str(said.get("title", "")), points, settings_of(said), limits)


def require_known(unknown: set[str], kind: str) -> None:
    """Raise ValueError with the names that are unknown, if any are."""
    if unknown:
        raise ValueError(f"no such {kind}: {', '.join(sorted(unknown))}")
