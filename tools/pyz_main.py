"""The one file's front door: `python3 jwks-server.pyz [admin|lab|grade|explain ...]`.

The first word chooses a program; without one of them the server starts. tools/release.py puts this
into the archive as `__main__.py`.
"""

from __future__ import annotations

import sys
from importlib import import_module

PROGRAMS = {"server": "server", "admin": "admin", "lab": "lab", "grade": "grade"}
TOKEN_COMMANDS = {"explain", "decode", "verify", "jwk", "thumbprint"}  # of jwt_minimal


def main(words: list[str]) -> int:
    """Run the chosen program; its exit code."""
    first = words[0] if words else ""
    if first in TOKEN_COMMANDS:
        module, rest = "jwt_minimal", words
    else:
        module = PROGRAMS.get(first, "server")
        rest = words[1:] if first in PROGRAMS else words
    # A program may look at the command line itself.
    sys.argv[1:] = rest
    code: int = import_module(module).main(rest)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
