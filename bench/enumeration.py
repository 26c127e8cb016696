"""Can a stranger tell by the clock who has an account? Timed over the wire, on the real server.

    python -m bench.enumeration [ATTEMPTS]        (1,500 of each kind if not given)

Three kinds of refused login, one connection, in random order: a wrong password of an existing user
(who is logged in, so that their real password is remembered), an unknown name, and a deleted user's
name with the password that they had. For each pair of kinds:

    medians      and by how much they differ
    separation   the chance that an attempt of the first kind takes longer than one of the second:
                 0.5 tells nothing, 1.0 everything (the area under the ROC curve), with its standard
                 error under the hypothesis that there is no difference (Mann and Whitney 1947)
    attempts     how many of each kind a stranger would need to tell them apart with confidence of
                 99 %, if what was seen is no accident; the limiter grants five a minute and address
"""

from __future__ import annotations

import math
import random
import socket
import statistics
import sys
from itertools import combinations

from bench.loader import ask, post
from bench.serving import Process, serving

WARM_UP = 50
Z99 = 2.326  # standard deviations, one-sided


def kinds(process: Process, connection: socket.socket) -> dict[str, bytes]:
    """The three refused logins."""
    password = process.register("alice")
    ask(connection, post("/auth", {"username": "alice", "password": password}))
    return {
        "wrong password": post("/auth", {"username": "alice", "password": "0" * len(password)}),
        "unknown user": post("/auth", {"username": "nobody", "password": "0" * len(password)}),
        # A deleted user is a name without a row, whatever the password.
        "deleted user": post("/auth", {"username": "gone", "password": password}),
    }


def measure(attempts: int) -> dict[str, list[float]]:
    with serving() as process, socket.create_connection(("127.0.0.1", process.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        requests = kinds(process, connection)
        times: dict[str, list[float]] = {kind: [] for kind in requests}
        order = [kind for kind in requests for _ in range(attempts)]
        random.Random(1).shuffle(order)
        for number, kind in enumerate([*order[:WARM_UP], *order]):
            seconds, status = ask(connection, requests[kind])
            if status != 401:
                raise RuntimeError(f"{kind} was answered {status}")
            if number >= WARM_UP:
                times[kind].append(seconds)
        return times


def separation(ones: list[float], others: list[float]) -> tuple[float, float]:
    """The area under the ROC curve and its standard error if there is no difference."""
    ranked = sorted([(value, 1) for value in ones] + [(value, 0) for value in others])
    ranks = sum(place for place, (_, mark) in enumerate(ranked, 1) if mark)
    n, m = len(ones), len(others)
    area = (ranks - n * (n + 1) / 2) / (n * m)
    return area, math.sqrt((n + m + 1) / (12 * n * m))


def needed(area: float) -> str:
    """Attempts of each kind until the separation is Z99 standard errors from chance."""
    distance = abs(area - 0.5)
    return f"{math.ceil(Z99**2 / (6 * distance**2)):,}" if distance > 1e-4 else "over 90 million"


def main() -> None:
    attempts = int(sys.argv[1]) if len(sys.argv) > 1 else 1_500
    times = measure(attempts)
    print(f"{attempts:,} refused logins of each kind, in random order")
    for kind, values in times.items():
        quartiles = statistics.quantiles(values, n=4)
        print(
            f"  {kind:15} median {quartiles[1] * 1e6:8.0f} us, "
            f"half of them within {(quartiles[2] - quartiles[0]) * 1e6:.0f} us"
        )
    for one, other in combinations(times, 2):
        area, error = separation(times[one], times[other])
        difference = statistics.median(times[one]) - statistics.median(times[other])
        print(
            f"  {one} against {other}: medians differ by {difference * 1e6:+.0f} us, separation "
            f"{area:.3f} (chance 0.500 +- {error:.3f}, {abs(area - 0.5) / error:.1f} standard "
            f"errors away), attempts {needed(area)}"
        )


if __name__ == "__main__":
    main()
