"""Will anybody notice that the keys rotate? The rule of keystore.py, met by clients as they are.

    python -m bench.rotation_plan [--token-ttl 1h] [--key-lifetime 30d] [--key-lead 24h] ...

Prints the life of three keys on a line of time, and for each client whether it ever refuses a good
token, for how long at the worst, and how long it trusts a key that was revoked. Nothing is served
or measured: time is simulated, and only the rule itself is the product's.

Rules of this file:
- A client is one row of `CLIENTS`: what its documentation and source say about its copy.
- The worst phase counts: every client is started at several moments of its own cache.
- A refusal is a refusal, even if the next attempt succeeds.

Left out: JWKS requests that fail, and caches between client and server (add their max-age, 300 s).
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import NamedTuple

from jwksd.api import answers
from jwksd.ops import settings
from jwksd.store import keystore
from jwksd.store.keystore import Key, KeySet, Policy

MINUTE, HOUR = 60.0, 3600.0
PHASES = 12  # moments at which a client may have fetched, spread over the age of its copy
ROTATIONS = 3
LONGEST_RUN = 2 * HOUR  # of keys that live for seconds, beyond ROTATIONS


class Client(NamedTuple):
    """How a verifier keeps its copy of the JWKS; seconds."""

    name: str
    cache: float  # a copy older than this is fetched again before it is used
    unknown: str  # an unknown kid: "refused", "fetched", or "fetched later" (this one is refused)
    cooldown: float = 0.0  # no fetch for an unknown kid so soon after the last fetch
    each_kid: bool = False  # every key has an age of its own
    max_age: bool = False  # the age is what Cache-Control says, `cache` at the most

    @property
    def needs(self) -> float:
        """The lead without which it can refuse a good token after a rotation."""
        if self.unknown == "fetched":
            return self.cooldown
        return self.cache


CLIENTS = (
    Client("a cache that obeys max-age", 300, "refused", max_age=True),
    Client("PyJWT", 5 * MINUTE, "fetched"),
    Client("jose for Node", 10 * MINUTE, "fetched", cooldown=30),
    Client("Envoy", 10 * MINUTE, "refused"),
    Client("istiod", 20 * MINUTE, "refused"),
    Client("Nimbus, Spring", 5 * MINUTE, "fetched", cooldown=30),
    Client("go-oidc", math.inf, "fetched"),
    Client(".NET", 12 * HOUR, "fetched later", cooldown=5 * MINUTE),
    Client("jwks-rsa for Java", 10 * HOUR, "fetched", each_kid=True),
)


class Token(NamedTuple):
    """What a verifier looks at."""

    kid: str
    exp: float


class Issuer:
    """The server, reduced to what decides: the keys and the rule. Times are its own clock's."""

    def __init__(self, policy: Policy, now: float, *, delay: float = 0.0) -> None:
        self.policy = policy
        self.delay = delay  # between the moment a key is due and the moment it is published
        self.keys: tuple[Key, ...] = ()
        self.made = 0
        self._since = now  # it did not run before
        self._set = KeySet((), now, now)
        self.run(now)

    def run(self, now: float) -> None:
        """Make what came due until now."""
        while True:
            due = keystore.rotation_due([key.exp for key in self.keys], self.policy)
            # A start makes what is overdue before it serves.
            at = due + self.delay if due > self._since else self._since
            if at > now:
                return
            self.add(at)

    def start_again(self, now: float) -> None:
        """Rotation is on from now: it was off before."""
        self._since = now
        self.run(now)

    def add(self, now: float) -> None:
        """Make a key; those that nobody needs any more are forgotten."""
        self.made += 1
        new = Key(f"key-{self.made}", int(now) + int(self.policy.lifetime), {}, None)
        self.keys = (*(key for key in self.keys if key.exp > now - self.policy.lifetime), new)
        self._set = KeySet((), now, now)

    def rotate(self, now: float, wait: float) -> None:
        """End the older keys early, as `admin.py keys rotate` does."""
        ended = {key.kid: key for key in keystore.endings(self.keys, now, wait, self.policy)}
        self.keys = tuple(ended.get(key.kid, key) for key in self.keys)
        self.add(now)

    def revoke(self, kid: str, now: float) -> None:
        """Drop a key; make one if none is left."""
        self.keys = tuple(key for key in self.keys if key.kid != kid)
        self._set = KeySet((), now, now)
        self.run(now)

    def published(self, now: float) -> KeySet:
        """The JWKS."""
        if not self._set.since <= now < self._set.until:
            self._set = keystore.published(self.keys, now, self.policy)
        return self._set

    def sign(self, now: float) -> Token:
        """A token made now."""
        key = keystore.signing_key(self.keys, now, self.policy)
        assert key is not None, "no key to sign with"
        return Token(key.kid, min(int(now) + int(self.policy.token_ttl), key.exp))


class Verifier:
    """A client at work: its copy, and when it was made."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.fetched = -math.inf
        self._copy: dict[str, float] = {}  # kid -> until when it is used
        self._fresh_until = -math.inf  # of the copy as a whole

    def fetch(self, issuer: Issuer, now: float, server_now: float | None = None) -> None:
        """Ask for the JWKS."""
        at = now if server_now is None else server_now
        shown = issuer.published(at)
        lasts = self.client.cache
        if self.client.max_age:  # as answers.publish cuts it
            lasts = min(lasts, answers.MAX_AGE, int(max(0.0, shown.until - at)))
        self.fetched, self._fresh_until = now, now + lasts
        self._copy = {key.kid: now + lasts for key in shown.keys}

    def leap(self, seconds: float) -> None:
        """Time in which nothing changes has passed: its copy is as old as before."""
        self.fetched += seconds
        self._fresh_until += seconds
        self._copy = {kid: until + seconds for kid, until in self._copy.items()}

    def accepts(
        self, kid: str, issuer: Issuer, now: float, server_now: float | None = None
    ) -> bool:
        """Whether a token with this kid is accepted now, having fetched what it would."""
        if self.client.each_kid:
            return self._accepts_each(kid, issuer, now, server_now)
        if now >= self._fresh_until:
            self.fetch(issuer, now, server_now)
        if kid in self._copy:
            return True
        if self.client.unknown == "refused" or now - self.fetched < self.client.cooldown:
            return False
        self.fetch(issuer, now, server_now)
        return self.client.unknown == "fetched" and kid in self._copy

    def _accepts_each(self, kid: str, issuer: Issuer, now: float, server_now: float | None) -> bool:
        if now < self._copy.get(kid, -math.inf):
            return True
        before = self._copy
        self.fetch(issuer, now, server_now)
        # Only the key that was asked for is kept, beside those kept before.
        self._copy = {**before, kid: self._copy[kid]} if kid in self._copy else before
        return kid in self._copy and now < self._copy[kid]


# -- questions


class Verdict(NamedTuple):
    """What a rotation means to a client."""

    refusals: int
    longest: float  # s from the first refusal after a rotation to the last


def meet(client: Client, policy: Policy, phase: float, rotations: int = ROTATIONS) -> Verdict:
    """One client that verifies new and old tokens all along; `phase` in 0..1 is its copy's age."""
    age = min(client.cache, 12 * HOUR)
    issuer, verifier = Issuer(policy, 0.0), Verifier(client)
    verifier.fetch(issuer, -phase * age, 0.0)
    step = max(1.0, min(age, policy.lead, policy.token_ttl) / 24)
    now, refusals, began, longest = 0.0, 0, math.inf, 0.0
    old = issuer.sign(0.0)
    while issuer.made < rotations + 2 or now < min(2 * age, LONGEST_RUN):
        issuer.run(now)
        new = issuer.sign(now)
        accepted = verifier.accepts(new.kid, issuer, now)
        if now < old.exp + policy.skew:  # the client's clock may be behind
            accepted &= verifier.accepts(old.kid, issuer, now)
        else:
            old = new
        if not accepted:
            refusals += 1
            began = min(began, now)
            longest = max(longest, now + step - began)
        else:
            began = math.inf
        quiet = quiet_time(issuer, now, age)
        verifier.leap(quiet)
        now += quiet or step
    return Verdict(refusals, longest)


def quiet_time(issuer: Issuer, now: float, age: float) -> float:
    """How far time can leap: as many whole ages of a copy as fit well before the next change."""
    published = issuer.published(now)
    ages = math.floor((published.until - now) / age) - 1
    return ages * age if now - published.since > 2 * age and ages > 1 else 0.0


def worst(client: Client, policy: Policy) -> Verdict:
    """The worst of all phases."""
    found = [meet(client, policy, number / PHASES) for number in range(PHASES)]
    return Verdict(sum(v.refusals for v in found), max(v.longest for v in found))


def trusts_revoked(client: Client, policy: Policy, *, good_tokens: bool) -> float:
    """How long a key that is revoked just after a fetch is still trusted; inf is for ever.

    `good_tokens`: the client also meets tokens of the new key, which may make it fetch.
    """
    issuer, verifier = Issuer(policy, 0.0), Verifier(client)
    stolen = issuer.sign(0.0).kid
    verifier.accepts(stolen, issuer, 0.0)
    issuer.revoke(stolen, 0.0)
    step, now = 15.0, 0.0
    while now <= 2 * 12 * HOUR:  # .NET's twelve hours are the longest age of any copy
        issuer.run(now)
        if good_tokens:
            verifier.accepts(issuer.sign(now).kid, issuer, now)
        if not verifier.accepts(stolen, issuer, now):
            return now
        now += step
    return math.inf


# -- what is printed


def spell(seconds: float) -> str:
    """`90 s`, `10 min`, `12 h`, `30 d`."""
    if seconds == math.inf:
        return "for ever"
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size or (seconds >= size and seconds % size == 0):
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def timeline(policy: Policy, keys: int = 3, width: int = 64) -> list[str]:
    """The lives of some keys, one line each: waiting `.`, signing `#`, outliving its tokens `-`."""
    tail = policy.token_ttl + policy.skew
    period = policy.lifetime - policy.lead - tail  # from one making to the next
    column = ((keys - 1) * period + policy.lifetime) / width
    lines = [f"one column is {spell(column)}; . published, # signs, - outlives its tokens"]
    for number in range(keys):
        made = number * period
        signs = made + (policy.lead if number else 0.0)
        marks = [round(moment / column) for moment in (made, signs, made + period + policy.lead)]
        end = round((made + policy.lifetime) / column)
        waits = max(marks[1] - marks[0], 1 if number else 0)
        outlives = max(end - marks[2], 1)
        signing = max(end - marks[0] - waits - outlives, 1)
        life = "." * waits + "#" * signing + "-" * outlives
        lines.append(f"key {number + 1}  {' ' * marks[0]}{life}")
    return lines


def report(policy: Policy) -> list[str]:
    """The whole answer for these settings."""
    lines = [
        f"token-ttl {spell(policy.token_ttl)}, key-lifetime {spell(policy.lifetime)}, "
        f"key-lead {spell(policy.lead)}, key-skew {spell(policy.skew)}, "
        f"max-age {spell(answers.MAX_AGE)} cut to the next change",
        "",
        *timeline(policy),
        "",
        f"{'client':<27} {'after a rotation':<33} {'lead needed':<12} trusts a revoked key",
    ]
    for client in CLIENTS:
        verdict = worst(client, policy)
        outcome = "never refuses a good token"
        if verdict.refusals:
            outcome = f"refuses for up to {spell(verdict.longest)}"
        alone = spell(trusts_revoked(client, policy, good_tokens=False))
        mixed = spell(trusts_revoked(client, policy, good_tokens=True))
        trust = alone if alone == mixed else f"{alone}; {mixed} once it meets the new key"
        needed = "-" if client.max_age or not client.needs else spell(client.needs)
        lines.append(f"{client.name:<27} {outcome:<33} {needed:<12} {trust}")
    lines += ["", "A clock that the server sets forward shortens the lead by as much."]
    return lines


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    settings.add_settings(parser, ("token_ttl", "key_lifetime", "key_lead", "key_skew"))
    try:
        policy = settings.make_settings(vars(parser.parse_args())).policy
    except settings.ConfigurationError as error:
        print(f"rotation_plan.py: {error}", file=sys.stderr)
        return 2
    print("\n".join(report(policy)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
