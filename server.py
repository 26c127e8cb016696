#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = ["cryptography>=42", "argon2-cffi>=23.1"]
# ///
"""A server that registers users, authenticates them, and issues RS256 JSON Web Tokens that anyone
can verify from its published key set. Run `python server.py`; see README.md for a first session.

    bytes --> httpd.py --> Handler.route --> App.respond --> find_route --> an endpoint --> Response
                                                                               |
                     worker thread <-- Later(create_account | issue_token) ----+
                       accounts.py     who is it? (Argon2id)         database.py
                       keystore.py     which key signs now?          SQLite, one writer,
                       jwt_minimal.py  header.claims.signature       an fsync before the answer
                       attempts.py     write down what came of it

    ratelimit.py     how often an address may ask        credentials.py   bodies and HTTP Basic
    names.py         what is a name, a password          settings.py      flags, the secret
    answers.py       refusals, published documents       process.py       signals and streams
    admin.py         the operator's commands             web/             the token inspector

Rules of this file:
- An endpoint returns a Response, returns a Later, or raises. Failures become answers in one place.
- Nothing that can block runs on the event loop: hashing, signing and writing are a Later.
- The issuer is what the configuration says, never what a Host field claims.
- Every route is one row of `ROUTES`, every failure one row of `FAILURES` (and every setting one row
  of `Settings`, in settings.py). The process environment is read here and nowhere else.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Callable, Union

try:
    import accounts
    import keystore
    import settings
except ModuleNotFoundError as missing:
    if missing.name not in ("argon2", "cryptography"):
        raise
    print(
        f"the package {missing.name} is missing; install both that are needed with: "
        f"{sys.executable} -m pip install 'cryptography>=42' 'argon2-cffi>=23.1'",
        file=sys.stderr,
    )
    sys.exit(2)

import answers
import credentials
import httpd
import jwt_minimal
import names
import process
import ratelimit
from attempts import AttemptLog
from database import CannotOpen, Database, Unavailable
from httpd import Eventually, Later, Request, Response, json_response
from settings import ConfigurationError, Settings

# -- the endpoints, in the order in which a user meets them

LOOPBACK = ratelimit.parse_networks(("127.0.0.0/8", "::1"))  # RFC 1122 §3.2.1.3, RFC 4291 §2.5.3
FORWARDING = {"x-forwarded-for", "forwarded", "x-real-ip", "via"}  # what a proxy adds
WRITING = "reading and writing the database"  # what a 503 of it is reported as
Answer = Union[Response, Later]
Endpoint = Callable[[Request], Answer]


class App:
    """The server without a socket: requests in, answers out."""

    def __init__(
        self,
        config: Settings,
        database: Database,
        keys: keystore.KeyStore,
        users: accounts.Accounts,
        *,
        issuer: str,
        log: Callable[[str], None],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = config
        self.database = database
        self.keys = keys
        self.accounts = users
        self.attempts = AttemptLog(database, clock)
        self.issuer = issuer
        self.log = log
        self.clock = clock
        self.limits = {
            name: answers.Limit(name, rules, config.limiter_sources, monotonic)
            for name, rules in (("auth", config.auth_limit), ("register", config.register_limit))
        }
        self.routes = {
            path: {method: getattr(self, name) for method, name in methods.items()}
            for path, methods in ROUTES.items()
        }
        self._jwks: answers.PublishedKeys | None = None
        self._metadata = json_response(
            200,
            answers.server_metadata(issuer),
            (*answers.ANY_ORIGIN, answers.cached(answers.MAX_AGE)),
        )
        self._page = answers.inspector_page(Path(__file__).with_name("web"))
        self._database_stamp: object = None
        self.http_stats = httpd.Stats()  # the server's own, once there is one
        # outcome -> attempts since the start; counted by the database's one writer thread alone
        self.logins: Counter[str] = Counter()
        self._troubles: dict[str, str | None] = {}
        self._warned_of_forwarding = False

    def respond(self, request: Request) -> Answer:
        """Answer a request. Never raises, never blocks."""
        try:
            return self.find_route(request)(request)
        except Exception as failure:
            return self.refusal(failure)

    def find_route(self, request: Request) -> Endpoint:
        """The endpoint for path and method (RFC 9110 §9.1: HEAD and OPTIONS follow from GET...)."""
        methods = self.routes.get(request.path)
        if methods is None:
            raise answers.NotFound
        wanted = "GET" if request.method == "HEAD" else request.method
        endpoint: Endpoint | None = methods.get(wanted)
        if endpoint is not None:
            return endpoint
        allowed = ", ".join([*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS"])
        if request.method == "OPTIONS":
            return functools.partial(self.options, allowed)
        raise answers.MethodNotAllowed(allowed)

    def register(self, request: Request) -> Answer:
        """POST /register: a name and perhaps an e-mail address -> a generated password."""
        if self.settings.registration == "closed":
            raise answers.RegistrationClosed
        self.refuse_cross_site(request)
        self.limits["register"].admit(self.client(request))
        members = credentials.fields(request.headers, request.body)
        name = names.checked_name(credentials.text(members, "username"))
        email = None
        if members.get("email") is not None:
            email = names.checked_email(credentials.text(members, "email"))
        return self.later(self.create_account, name, email)

    def create_account(self, name: str, email: str | None) -> Eventually:
        """The slow rest of /register, on a worker thread."""
        password = str(uuid.uuid4())  # RFC 9562: 122 random bits
        account = self.accounts.new_account(name, email, password)
        answer = json_response(201, {"password": password}, answers.NO_STORE)

        def once_on_disk(deliver: Callable[[Answer], None]) -> None:
            def written(trouble: Exception | None) -> None:
                deliver(answer if trouble is None else self.refusal(trouble))

            self.accounts.insert(account, written)

        return once_on_disk

    def auth(self, request: Request) -> Answer:
        """POST /auth: name and password -> a signed token."""
        self.refuse_cross_site(request)
        client = self.client(request)
        self.limits["auth"].admit(client)
        given = credentials.name_and_password(request.headers, request.body)
        name, password = names.checked_name(given[0]), names.checked_password(given[1])
        expired = credentials.flag(request.query, "expired")
        basic = credentials.uses_basic(request.headers)
        return self.later(self.issue_token, client, name, password, expired, basic)

    def issue_token(
        self, client: str, name: str, password: str, expired: bool, basic: bool
    ) -> Eventually:
        """The slow rest of /auth, on a worker thread. Whatever comes of it is logged first."""
        outcome, user, answer = self.judge(name, password, expired, basic)
        again = self.later(self.issue_token, client, name, password, expired, basic)
        return self.logged(client, outcome, user, answer, again)

    def judge(
        self, name: str, password: str, expired: bool, basic: bool
    ) -> tuple[str, accounts.User | int | None, Response]:
        """What comes of an attempt: the outcome for the log, whose account it was, the answer."""
        try:
            user = self.accounts.authenticate(name, password)
        except accounts.InvalidCredentials as failure:
            return failure.outcome, failure.user_id, self.refusal(answers.Unauthorized(basic))
        try:
            key = self.keys.expired_key() if expired else self.keys.signing_key()
        except keystore.NoSigningKey as failure:
            return "no_key", user, self.refusal(failure)
        with self.accounts.about_to_record():
            claims = self.claims(user.name, key, expired)
            token = jwt_minimal.encode(claims, key.private_key, key.kid)
            return "success", user, answers.token_response(token, claims, expired)

    def logged(
        self,
        client: str,
        outcome: str,
        user: accounts.User | int | None,
        answer: Response,
        again: Later,
    ) -> Eventually:
        """The answer once the attempt is in the log, on disk; a 503 if it cannot be written.

        `again`, if the account was changed while the attempt was on its way there.
        """

        def once_on_disk(deliver: Callable[[Answer], None]) -> None:
            def written(trouble: Exception | None) -> None:
                if isinstance(trouble, accounts.Superseded):
                    deliver(again)
                elif trouble is not None:
                    deliver(self.refusal(trouble))
                else:
                    self.logins[outcome] += 1
                    self.report(WRITING, None)
                    deliver(answer)

            self.accounts.record(client, outcome, user, written)

        return once_on_disk

    def claims(self, subject: str, key: keystore.Key, expired: bool = False) -> dict[str, Any]:
        """What a token for `subject` says (RFC 7519 §4.1); it never outlives its key."""
        ttl = int(self.settings.token_ttl)
        now = key.exp - ttl if expired else int(self.clock())
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "sub": subject,
            "iat": now,
            "nbf": now,
            "exp": min(now + ttl, key.exp),
            "jti": str(uuid.uuid4()),
        }
        if self.settings.audience is not None:  # unasked it breaks clients that expect none
            claims["aud"] = self.settings.audience
        return claims

    def jwks(self, request: Request) -> Answer:
        """GET /.well-known/jwks.json: the public keys (RFC 7517 §5)."""
        key_set = self.keys.published()
        now = self.clock()
        known = self._jwks
        if known is None or known.key_set is not key_set or not known.since <= now < known.until:
            known = self._jwks = answers.publish(key_set, now)
        return answers.conditional(known, request.headers)

    def metadata(self, request: Request) -> Answer:
        """GET the discovery documents (RFC 8414 §3, OpenID Connect Discovery §4)."""
        return self._metadata

    def inspector(self, request: Request) -> Answer:
        """GET / and what it loads: the page that takes a token apart in the browser."""
        return answers.conditional(self._page.get(request.path), request.headers)

    def healthz(self, request: Request) -> Answer:
        """GET /healthz: whether a token could be issued now."""
        if any(self._troubles.values()) or not self.keys.published().keys:
            raise answers.NotReady
        return json_response(200, {"status": "ok"}, answers.NO_STORE)

    def metrics(self, request: Request) -> Answer:
        """GET /metrics: counters in the Prometheus text format, for those who may see them."""
        client = self.client(request)
        # A proxy on this machine that is not declared would lend its loopback address to anybody.
        if client == peer_of(request) and FORWARDING & request.headers.keys():
            raise answers.Forbidden
        if not ratelimit.is_trusted(client, (*LOOPBACK, *self.settings.metrics_from)):
            raise answers.Forbidden
        return Response(
            200,
            (("Content-Type", answers.METRICS_TYPE), *answers.NO_STORE),
            self.exposition().encode(),
        )

    def exposition(self) -> str:
        """The counters, as Prometheus reads them."""
        limited = {name: limit.refused for name, limit in self.limits.items()}
        sources = {name: len(limit.limiter) for name, limit in self.limits.items()}
        keys = {"": len(self.keys.published().keys)}
        return answers.exposition(self.http_stats, self.logins, limited, sources, keys)

    def options(self, allowed: str, request: Request) -> Answer:
        """OPTIONS of any route: its methods (RFC 9110 §9.3.7)."""
        return Response(204, (("Allow", allowed),))

    # -- what the endpoints share

    def client(self, request: Request) -> str:
        """The client's address; behind a trusted proxy the one that the proxy names."""
        peer = peer_of(request)
        forwarded = request.headers.get("x-forwarded-for")
        if forwarded is None:
            return peer
        trusted = self.settings.trusted_proxy
        if not ratelimit.is_trusted(peer, trusted) and not self._warned_of_forwarding:
            self._warned_of_forwarding = True
            self.log(f"X-Forwarded-For from {peer} is ignored: name your proxy in --trusted-proxy")
        return ratelimit.client_address(peer, forwarded, trusted)

    def refuse_cross_site(self, request: Request) -> None:
        """Refuse a browser's post from a foreign page, which could spend its user's attempts."""
        if credentials.is_cross_site(request.headers, answers.origin_of(self.issuer)):
            raise answers.CrossSite

    def later(self, function: Callable[..., Response | Eventually], *arguments: object) -> Later:
        """Have a worker call it; its failures become answers as those of an endpoint do."""
        return Later(self.finish, function, arguments)

    def finish(
        self, function: Callable[..., Response | Eventually], arguments: tuple[object, ...]
    ) -> Response | Eventually:
        """On a worker thread: the answer of `function`, or its refusal."""
        try:
            return function(*arguments)
        except Exception as failure:
            return self.refusal(failure)

    def refusal(self, failure: Exception) -> Response:
        """The one place where a failure becomes an answer."""
        if isinstance(failure, Unavailable):
            self.report(WRITING, str(failure))
        make = answers.FAILURES.get(type(failure))
        if make is not None:
            return make(failure)
        # A defect of ours. The client may try again, and the operator is told; no traceback leaves.
        self.log(f"internal error: {type(failure).__name__} {answers.where(failure)}")
        return answers.UNEXPECTED

    # -- what happens beside the requests

    def notice_changes(self) -> None:
        """Before the first request of a turn: has another process changed the database?"""
        try:
            stamp = self.database.stamp()
            if stamp != self._database_stamp:
                self.keys.refresh()
                self._database_stamp = stamp
            self.report("database", None)
        except Unavailable as trouble:
            self.report("database", str(trouble))

    def prime_limits(self) -> None:
        """Count the attempts of the last minutes that stand in the log: a restart frees no slot."""
        longest = max((rule.period for rule in self.settings.auth_limit), default=0.0)
        try:
            attempts = self.attempts.recent(longest) if longest else []
        except Unavailable as trouble:  # a courtesy, not worth a start
            self.log(f"the limiter starts empty: {trouble}")
            return
        ages: dict[str, list[float]] = {}
        for address, seconds_ago in attempts:
            ages.setdefault(ratelimit.source(address), []).extend(seconds_ago)
        for source, seconds_ago in ages.items():
            self.limits["auth"].limiter.prime(source, seconds_ago)

    def ready_line(self, url: str) -> str:
        """What the operator waits for at a start."""
        count = len(self.keys.published().keys)
        return f"ready: {url} database={self.database.path} keys={count} issuer={self.issuer}"

    def maintain(self) -> None:
        """Every second, on its own thread: make the keys that are due, drop what is too old."""
        # Asked here as well as at a commit: a server without requests would leave the log of a file
        # that was replaced where SQLite applies it to the new one.
        if self._troubles.get(WRITING) or self.database.moved():
            self.attempt(WRITING, self.database.probe)
        self.attempt("rotation", self.make_key_if_due)
        self.attempt("retention of keys", self.keys.prune)
        log_retention = self.settings.log_retention
        self.attempt("retention of the log", lambda: self.attempts.prune(log_retention))

    def make_key_if_due(self) -> None:
        """Make the next key one lead before it must sign."""
        if self.keys.make_due():
            self.log("a new key was made")

    def attempt(self, subject: str, task: Callable[[], object]) -> None:
        """Do it; if it fails, tell the operator once and let the next tick try again."""
        try:
            task()
            self.report(subject, None)
        except Unavailable as trouble:
            self.report(subject, str(trouble))
        except Exception as failure:  # one task's defect must not end the others
            self.report(subject, f"{type(failure).__name__} {answers.where(failure)}")

    def report(self, subject: str, trouble: str | None) -> None:
        """Tell the operator once that something is wrong, and once that it is well again."""
        before = self._troubles.get(subject)
        if trouble != before:
            self._troubles[subject] = trouble
            self.log(f"{subject}: {trouble or 'works again'}")


# -- reading a request, routing it


def peer_of(request: Request) -> str:
    """The address of who is connected. Whoever reaches a Unix domain socket is on this machine."""
    return "127.0.0.1" if request.client == "unix" else request.client


ROUTES: dict[str, dict[str, str]] = {
    "/register": {"POST": "register"},
    "/auth": {"POST": "auth"},
    "/.well-known/jwks.json": {"GET": "jwks"},
    "/.well-known/openid-configuration": {"GET": "metadata"},
    "/.well-known/oauth-authorization-server": {"GET": "metadata"},
    "/healthz": {"GET": "healthz"},
    "/metrics": {"GET": "metrics"},
    **{path: {"GET": "inspector"} for path in answers.PAGE},
}


class Handler(httpd.Handler):
    """One connection (a BaseHTTPRequestHandler): its requests go to the App, in their order."""

    server: httpd.Server

    def route(self, request: Request) -> Answer:
        """What the server should answer."""
        answer: Answer = self.server.app.respond(request)
        return answer

    def log_client(self, request: Request) -> str:
        """Who stands in the access log: behind a trusted proxy, the one that it names."""
        client: str = self.server.app.client(request)
        return client


# -- start-up

# One for each core: it hashes or signs, and waits for nothing; the commit that follows has its own
# thread. More of them would only take turns at core and interpreter, and hold 19 MiB each.
WORKERS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
TICK_SECONDS = 1.0  # between looks at the clock for keys that are due, unless one is due sooner


class Service:
    """A running server: the socket, the App, and the thread that keeps the keys."""

    def __init__(
        self, config: Settings, environ: MutableMapping[str, str], log: Callable[[str], None]
    ) -> None:
        """Listen, open the database and its keys.

        Raises:
            ConfigurationError: it cannot start; nothing was changed that was there before.
        """
        # First the socket: if the port is taken, the database of whoever has it stays untouched.
        # Clients that come while the keys are made wait in the backlog.
        self.http = listen(config, log, lambda: self.app.notice_changes())
        try:
            self.app = open_app(config, environ, self.http.url, log)
        except BaseException:
            self.http.close()
            raise
        self.http.app = self.app
        self.app.http_stats = self.http.stats
        self._reload_wanted = False
        self._stopping = threading.Event()
        self._maintenance = threading.Thread(target=self._maintain, name="keys", daemon=True)

    def run(self) -> None:
        """Serve until `stop`; then answer what is in flight, and close."""
        self._maintenance.start()
        try:
            self.http.serve_forever()
        finally:
            self._stopping.set()
            self._maintenance.join(TICK_SECONDS)  # not for ever: what it writes is whole or not
            self.app.database.close()

    def stop(self) -> None:
        """Make `run` return; from any thread or signal handler."""
        self.http.stop()

    def reload(self) -> None:
        """Have the certificate read again; from any thread or signal handler."""
        self._reload_wanted = True

    def reload_certificate(self) -> None:
        """Use the certificate that is in the files now; keep the old one if it cannot be read."""
        try:
            self.http.reload_tls()
            self.app.log("the certificate was read again")
        except (OSError, ValueError) as error:
            self.app.log(f"the certificate was not read again: {error}")

    def _reload_aside(self) -> None:
        """On its own thread: a pipe in place of a file takes for ever, and keys cannot wait."""
        reading = threading.Thread(target=self.reload_certificate, daemon=True)
        try:
            reading.start()
        except RuntimeError:  # the system has no more threads now
            self._reload_wanted = True

    def _maintain(self) -> None:
        wait = min(TICK_SECONDS, self.app.keys.due_in())
        while not self._stopping.wait(wait):
            was_due = not self.app.keys.due_in()
            self.app.maintain()
            if self._reload_wanted:
                self._reload_wanted = False
                self._reload_aside()
            left = self.app.keys.due_in()
            # What was due and still is cannot be made now; what came due meanwhile is made at once.
            wait = TICK_SECONDS if was_due and not left else min(TICK_SECONDS, left)


def listen(
    config: Settings, log: Callable[[str], None], on_turn: Callable[[], None]
) -> httpd.Server:
    """The listening server, not serving yet."""
    tls = (config.tls_cert, config.tls_key) if config.tls_cert and config.tls_key else None
    try:
        return httpd.Server(
            Handler,
            host=config.host,
            port=config.port,
            workers=WORKERS,
            max_connections=config.max_connections,
            max_per_client=config.max_per_client,
            tls=tls,
            access_log=config.access_log,
            log=log,
            on_turn=on_turn,
        )
    except ValueError as error:
        raise ConfigurationError(f"--tls-cert, --tls-key: {error}") from error
    except OSError as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(
            f"cannot listen on {config.host} port {config.port}: {reason}; "
            "choose another --host or --port"
        ) from error


def open_app(
    config: Settings,
    environ: MutableMapping[str, str],
    url: str,
    log: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
) -> App:
    """The database, its keys and accounts, and the App on top."""
    settings.check_given_secrets(environ)
    try:
        database = Database(config.db, accept=settings.require_ours)
    except CannotOpen as error:
        raise ConfigurationError(str(error)) from error
    try:
        settings.warn_of_readers(database.path, log)
        secret, previous = settings.load_secret(database, environ, log)
        keys = keystore.KeyStore(
            database, secret, config.policy, previous=previous, log=log, clock=clock
        )
        keys.open()
        keys.remember_policy()
        keys.make_due()
        users = accounts.Accounts(
            database,
            cost=config.argon2,
            verified_seconds=config.verified_cache,
            clock=clock,
            monotonic=monotonic,
        )
        app = App(
            config,
            database,
            keys,
            users,
            issuer=config.issuer or settings.default_issuer(url),
            log=log,
            clock=clock,
            monotonic=monotonic,
        )
        app.prime_limits()
        return app
    except (keystore.WrongSecret, Unavailable, MemoryError) as error:
        database.close()
        raise ConfigurationError(str(error)) from error
    except BaseException:
        database.close()
        raise


class Issuer:
    """A server running in this process, for tests and notebooks: `with server.running() as it:`."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="jwks-")
        defaults = {
            "port": 0,
            "access_log": "off",
            "db": str(Path(self._directory.name, "keys.db")),
        }
        try:
            config = settings.make_settings({**defaults, **values})
            self._service = Service(config, dict(os.environ), lambda line: None)
        except BaseException:
            self._directory.cleanup()
            raise
        self.url = self._service.http.url
        self._thread = threading.Thread(target=self._service.run, name="issuer", daemon=True)
        self._thread.start()

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """The published key set."""
        return self._service.app.keys.published().document()

    def token(self, sub: str = "somebody", **claims: object) -> str:
        """A token for `sub`, without an account; `claims` are added or take the place of ours.

        A claim given as None is left out.
        """
        key = self._service.app.keys.signing_key()
        merged = {**self._service.app.claims(sub, key), **claims}
        kept = {name: value for name, value in merged.items() if value is not None}
        return jwt_minimal.encode(kept, key.private_key, key.kid)

    def stop(self) -> None:
        """Stop the server and remove its files. May be called twice."""
        self._service.stop()
        self._thread.join()
        self._directory.cleanup()

    def __enter__(self) -> Issuer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def running(**values: object) -> Issuer:
    """Start a real server on a free port with a temporary database.

    Takes the settings of the command line by name: `running(auth_limit="off", token_ttl="5s")`.

    Raises:
        ConfigurationError: a setting is not acceptable.
    """
    return Issuer(values)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0 after a stop, 2 if it cannot start."""
    process.occupy_standard_streams()
    parser = settings.Parser(prog="server.py", description=(__doc__ or "").split("\n\n")[0])
    settings.add_settings(parser)
    flags = vars(parser.parse_args(arguments))
    log = httpd.LineLog()
    try:
        process.leave_on_signals()
        process.keep_secrets()
        service = Service(settings.configure(flags, environment()), environment(), log.write)
    except ConfigurationError as error:
        log.write(f"server.py: {error}")
        log.flush(1.0)
        return 2
    process.obey_signals(service.stop, service.reload if service.app.settings.tls_cert else None)
    log.write(service.app.ready_line(service.http.url))
    service.run()
    log.flush(1.0)
    return 0


def environment() -> MutableMapping[str, str]:
    """The variables of this process."""
    return os.environ


if __name__ == "__main__":
    sys.exit(main())
