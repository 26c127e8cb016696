"""The rooms of the JWKS server: what it is made of, below the commands that people type.

httpd/    HTTP/1.1 on one loop; knows nothing of tokens
store/    what is kept: accounts, keys, the login log; the only SQL and the only AES
api/      what comes in and what goes out
ops/      what an operator sets and asks
grading/  what test_server.py and grade.py are made of: a client, verdicts, reports
flaws.py  tokens with one flaw each, for lab.py
progress.py  how far a long command is, on a terminal
"""

from __future__ import annotations

import os

__version__ = "1.0.0"


def resource(name: str) -> bytes:
    """The content of a file that stands beside the package, such as `schema.sql` or `web/...`.

    Read through the module's loader, so that it is found in a zip archive, too.
    """
    top = os.path.dirname(os.path.dirname(__file__))
    content: bytes = __loader__.get_data(os.path.join(top, *name.split("/")))  # type: ignore[name-defined]
    return content
