"""The two packages that the server needs, and which versions of them.

It imports nothing but the standard library, so that a command can say what is missing.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from functools import cache
from typing import NoReturn

# The packages of Debian 11, with Python 3.9: the oldest that the tests have passed with.
# requirements.txt and the head of server.py say the same.
FLOORS = {"cryptography": (3, 3), "argon2-cffi": (18, 3)}
MODULES = {"argon2", "cryptography"}  # the names that they are imported by


def requirements() -> list[str]:
    """The packages as pip takes them."""
    return [f"{name}>={'.'.join(map(str, floor))}" for name, floor in FLOORS.items()]


def refuse_without(missing: ModuleNotFoundError) -> NoReturn:
    """End a command that lacks one of them with one line; any other module is a defect.

    Raises:
        ModuleNotFoundError: the missing module is none of these packages.
    """
    if missing.name not in MODULES:
        raise missing
    wanted = " ".join(f"'{requirement}'" for requirement in requirements())
    print(
        f"the package {missing.name} is missing; install both that are needed with: "
        f"{sys.executable} -m pip install {wanted}",
        file=sys.stderr,
    )
    sys.exit(2)


@cache  # they do not change while a process runs
def refuse_old() -> None:
    """End a command with one line if one of them is older than what works."""
    for name, floor in FLOORS.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # a copy without its description
            continue
        if tuple(map(int, re.findall("[0-9]+", version)[:2])) < floor:
            wanted = f"'{name}>={'.'.join(map(str, floor))}'"
            print(
                f"{name} {version} is too old; get another with: "
                f"{sys.executable} -m pip install {wanted}",
                file=sys.stderr,
            )
            sys.exit(2)
