"""The two packages that the server needs, and which versions of them.

It imports nothing but the standard library, so that a command can say what is missing.
"""

from __future__ import annotations

import sys
from typing import NoReturn

# The oldest versions that work; requirements.txt and the head of server.py say the same.
FLOORS = {"cryptography": (42,), "argon2-cffi": (23, 1)}
MODULES = {"argon2", "cryptography"}  # what they are imported as


def requirements() -> list[str]:
    """The packages as pip takes them."""
    return [f"{name}>={'.'.join(map(str, floor))}" for name, floor in FLOORS.items()]


def refuse_without(missing: ModuleNotFoundError) -> NoReturn:
    """End a command that lacks one of them with one line; any other module is a defect.

    Raises:
        ModuleNotFoundError: it is no package that an operator could install.
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
