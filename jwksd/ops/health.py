"""`server.py --check URL`: whether a server is well, for containers without curl.

It asks `/healthz`, which says whether a token could be issued now. Exit code 0: well; 1: not.

It leaves out: servers on a Unix domain socket.
"""

from __future__ import annotations

import argparse
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException

PATIENCE = 3.0  # s: a container engine asks again


def trouble(url: str) -> str | None:
    """What is wrong with the server at this URL; None if it is well."""
    if not url.startswith(("http://", "https://")):
        return f"{url} is no http(s) URL"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url.rstrip("/") + "/healthz", timeout=PATIENCE) as answer:
            answer.read(1024)
    except (OSError, ValueError, HTTPException) as error:
        return f"{url} is not well: {error}"
    return None


class Check(argparse.Action):
    """The flag: it asks, and ends the command as --help does."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,
        option_string: str | None = None,
    ) -> None:
        """Ask the server, and exit with 0 or 1."""
        found = trouble(str(values))
        parser.exit(0 if found is None else 1, "" if found is None else f"{parser.prog}: {found}\n")
