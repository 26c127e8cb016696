"""The packages with their versions and hashes: `python tools/lock.py > requirements.lock`.

    for each platform and Python --> pip resolves, installs nothing --> versions, hashes of wheels

`pip install --require-hashes -r requirements.lock` then takes these files and no others. Where the
Pythons need different versions of a package, each has a line with a marker.

It leaves out: platforms without a complete set of wheels. Their distributions have the packages.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")
# pip decides by the Python that runs it whether a condition holds; so what cryptography
# needs on older Pythons alone is named here.
# And pycparser 3 wants Python 3.10, which only its own metadata says.
ALSO = {"3.9": ("typing-extensions", "pycparser<3"), "3.10": ("typing-extensions",)}
PLATFORMS = {  # what a wheel's name says of the oldest system that it runs on, newest first
    "linux-x86_64": ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"),
    "linux-aarch64": ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"),
    "macos-arm64": ("macosx_11_0_arm64", "macosx_10_9_universal2", "macosx_10_13_universal2"),
    "windows-amd64": ("win_amd64",),
}


def target(platform: str, python: str) -> list[str]:
    """What makes pip choose for another machine."""
    tags = [word for tag in PLATFORMS[platform] for word in ("--platform", tag)]
    # Some packages shun 3.9.0 and 3.9.1, which pip takes "3.9" for.
    full = "3.9.2" if python == "3.9" else python
    return [*tags, "--python-version", full, "--only-binary", ":all:"]


def resolved(platform: str, python: str) -> list[dict[str, Any]]:
    """What pip would install there."""
    command = [
        *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"),
        *("--disable-pip-version-check", "--report", "-", "--target", "unused"),
        *target(platform, python),
        *("-r", str(ROOT / "requirements.txt")),
        *ALSO.get(python, ()),
    ]
    run = subprocess.run(command, stdout=subprocess.PIPE, check=True)  # noqa: S603
    found: list[dict[str, Any]] = json.loads(run.stdout)["install"]
    return found


def lock() -> str:
    """The lines of requirements.lock."""
    hashes: dict[tuple[str, str], set[str]] = defaultdict(set)
    pythons: dict[tuple[str, str], set[str]] = defaultdict(set)
    for platform in PLATFORMS:
        for python in PYTHONS:
            for package in resolved(platform, python):
                known = package["metadata"]["name"].lower(), package["metadata"]["version"]
                hashes[known].add(package["download_info"]["archive_info"]["hashes"]["sha256"])
                pythons[known].add(python)
    for name in {name for name, _ in pythons}:
        of_all = [python for known in pythons if known[0] == name for python in pythons[known]]
        if len(of_all) != len(set(of_all)):  # pip would refuse the file
            raise ValueError(f"two versions of {name} for one Python: a platform has no newer")
    lines = ["# Made by tools/lock.py: pip install --require-hashes -r requirements.lock"]
    for known in sorted(hashes):
        wanted = " or ".join(f'python_version == "{p}"' for p in PYTHONS if p in pythons[known])
        marker = "" if len(pythons[known]) == len(PYTHONS) else f" ; {wanted}"
        digests = [f"    --hash=sha256:{digest}" for digest in sorted(hashes[known])]
        lines.append(" \\\n".join([f"{known[0]}=={known[1]}{marker}", *digests]))
    return "\n".join(lines) + "\n"


def lines_for(python: str, text: str) -> str:
    """The packages of a lock for one Python, without conditions: pip would ask its own Python."""
    kept = []
    for entry in text.replace(" \\\n", "\0").splitlines():
        package, *digests = entry.split("\0")
        package, _, condition = package.partition(" ; ")
        if not condition or f'"{python}"' in condition:
            kept.append(" \\\n".join([package, *digests]))
    return "\n".join(kept) + "\n"


if __name__ == "__main__":
    sys.stdout.write(lock())
