#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = ["cryptography>=3.3", "argon2-cffi>=18.3"]
# ///
"""A server that registers users, authenticates them, and issues RS256 JSON Web Tokens that anyone
can verify from its published key set. Run `python server.py`; see README.md for a first session.

    bytes --> jwksd.httpd --> Handler.route --> App.respond --> find_route --> endpoint --> Response
                                                                                  |
        worker thread <-- a Future <-- submit(create_account | issue_token) ------+
          jwksd.store.accounts    who is it? (Argon2id)
          jwksd.store.keystore    which key signs now?
          jwt_minimal             header.claims.signature
          writer thread           the login's row, on disk; then the Future has its Response

    ratelimit.py   how often an address may ask      jwksd/api/    what comes in, what goes out
    schema.sql     the tables, column by column      jwksd/ops/    settings, secret, upkeep, signals
    admin.py       the operator's commands           web/          the token inspector

Rules of this file:
- An endpoint returns a Response or a Future of one, or raises. Failures become answers in one
  place, `App.refusal`.
- Nothing that can block runs on the event loop: hashing, signing and writing are for the workers.
- The issuer is what the configuration says, never what a Host field claims.
- Every route is one row of `ROUTES`, every failure one row of `answers.FAILURES`, every setting one
  row of `settings.Settings`.
"""

from __future__ import annotations

import datetime
import functools
import os
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping, MutableMapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import MappingProxyType
from typing import Any, Callable
from urllib.parse import urlsplit

# Our modules stand beside this file, also if it is reached through a link or by `python -I`. The
# path is given back below: a program that imports this file finds its own modules, not ours.
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))

from jwksd.ops import packages

try:
    from jwksd.store import accounts, keystore
except ModuleNotFoundError as missing:
    packages.refuse_without(missing)

import jwt_minimal
import ratelimit
from jwksd import __version__, httpd
from jwksd.api import answers, inputs, limits, metrics, oauth, pages
from jwksd.httpd import Answer, Request, Response, json_response
from jwksd.ops import certificate, journal, process, secret, settings, startup
from jwksd.ops.settings import ConfigurationError, Settings
from jwksd.ops.upkeep import WRITING, Upkeep
from jwksd.store import names
from jwksd.store.claims import read as claims_of_account
from jwksd.store.database import CannotOpen, Database, Unavailable
from jwksd.store.logins import LoginLog

sys.path.pop(0)

# -- the endpoints, in the order in which a user meets them

LOOPBACK = ratelimit.parse_networks(("127.0.0.0/8", "::1"))  # RFC 1122 §3.2.1.3, RFC 4291 §2.5.3
FORWARDING = {"x-forwarded-for", "forwarded", "x-real-ip", "via"}  # what a proxy adds
Endpoint = Callable[[Request], Answer]
SHARED = {"/register", "/auth"}  # what a page of --allow-origin may call
UNTIMED = {"jwks"}  # a look at the clock would be a part of what it takes
# Lanes of the workers: what costs less never waits behind what costs more.
REMEMBERED_LOGIN, FIRST_LOGIN, REGISTRATION = range(httpd.LANES)


class App:
    """The server without a socket: requests in, answers out."""

    def __init__(
        self,
        config: Settings,
        database: Database,
        keys: keystore.KeyStore,
        users: accounts.Accounts,
        workers: httpd.Workers,
        *,
        issuer: str,
        stats: httpd.Stats,
        log: Callable[[str], None],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = config
        self.database = database
        self.keys = keys
        self.accounts = users
        self.workers = workers
        self.upkeep = Upkeep(
            database,
            keys,
            LoginLog(database, clock),
            log_retention=config.log_retention,
            log=log,
        )
        self.issuer = issuer
        self.pages = pages.Pages(issuer, config.allow_origin)
        self.stats = stats
        self.log = log
        self.clock = clock
        self.limits = {
            name: limits.Limit(name, rules, config.limiter_sources, monotonic)
            for name, rules in (("auth", config.auth_limit), ("register", config.register_limit))
        }
        self.seconds = metrics.Seconds(monotonic)
        self.base = urlsplit(issuer).path.rstrip("/")
        self.routes = {
            place: {method: self.timed(name) for method, name in methods.items()}
            for path, methods in ROUTES.items()
            for place in answers.places(path, self.base)
        }
        self._jwks: answers.PublishedKeys | None = None
        self._metadata = json_response(
            200,
            answers.server_metadata(issuer),
            (*answers.PUBLIC, answers.cached(answers.MAX_AGE)),
        )
        self._page = answers.inspector_page()
        # outcome -> attempts since the start; counted by the database's one writer thread alone
        self.logins: Counter[str] = Counter()
        self._warned_of_forwarding = False

    def respond(self, request: Request) -> Answer:
        """Answer a request. Never raises, never blocks."""
        try:
            answer = self.find_route(request)(request)
        except Exception as failure:
            answer = self.refusal(failure)
        return self.share(request, answer)

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
        self.pages.require_own(request.headers)
        self.limits["register"].admit(self.client(request))
        members = inputs.fields(request.headers, request.body)
        name = names.checked_new_name(inputs.text(members, "username"))
        email = None
        if members.get("email") is not None:
            email = names.checked_email(inputs.text(members, "email"))
        source = ratelimit.source(self.client(request))
        return self.workers.submit(
            self.create_account, name, email, lane=REGISTRATION, source=source
        )

    def create_account(self, answer: Future[Response], name: str, email: str | None) -> None:
        """The slow rest of /register, on a worker thread."""
        password = str(uuid.uuid4())  # RFC 9562: 122 random bits
        account = self.accounts.new_account(name, email, password)
        response = json_response(201, {"password": password}, answers.NO_STORE)
        self.accounts.insert(account, answer, response)

    def auth(self, request: Request) -> Answer:
        """POST /auth: name and password -> a signed token."""
        self.pages.require_own(request.headers)
        self.limits["auth"].admit(self.client(request))
        return self.log_in(request)

    def log_in(self, request: Request) -> Future[Response]:
        """Read a request for a token and have a worker judge it: /auth without its limit."""
        asked = oauth.token_request(request.headers, request.body)
        audience = oauth.narrowed_audience(asked.targets, self.settings.audience)
        expired = inputs.flag(request.query, "expired")
        client = self.client(request)
        user = self.accounts.remembered(asked.name, asked.password)
        return self.workers.submit(
            *(self.issue_token, client, asked, user, audience, expired),
            lane=FIRST_LOGIN if user is None else REMEMBERED_LOGIN,
            source=ratelimit.source(client),
        )

    def issue_token(
        self,
        answer: Future[Response],
        client: str,
        asked: oauth.TokenRequest,
        user: accounts.User | None,
        audience: tuple[str, ...],
        expired: bool,
    ) -> None:
        """The slow rest of /auth, on a worker thread. Whatever comes of it is logged first.

        `user` is the account if its password is remembered; else it is authenticated here.
        """
        try:
            user = user or self.accounts.authenticate(asked.name, asked.password)
        except accounts.InvalidCredentials as failure:
            refused = self.refusal(asked.wrong_credentials())
            self.log_attempt(client, failure.outcome, failure.user_id, answer, refused)
            return
        try:
            key = self.keys.expired_key() if expired else self.keys.signing_key()
        except keystore.NoSigningKey as failure:
            self.log_attempt(client, "no_key", user, answer, self.refusal(failure))
            return
        try:
            more, scope = oauth.narrowed_scope(asked.scope, claims_of_account(user.claims))
        except oauth.GrantError as failure:
            self.log_attempt(client, "invalid_scope", user, answer, self.refusal(failure))
            return
        with self.database.expect():
            claims = self.claims(user.name, key, expired, audience, more)
            typ = self.settings.token_type
            token = jwt_minimal.encode(claims, key.private_key, key.kid, typ=typ)
            response = answers.token_response(
                token,
                0 if expired else claims["exp"] - int(self.clock()),
                grant=asked.grant,
                scope=scope if asked.grant and scope != asked.scope else None,
            )
            self.log_attempt(client, "success", user, answer, response)

    def log_attempt(
        self,
        client: str,
        outcome: str,
        user: accounts.User | int | None,
        answer: Future[Response],
        response: Response,
    ) -> None:
        """Have `answer` give the response once the attempt is in the login log, on disk."""
        answer.add_done_callback(functools.partial(self.count, outcome))
        self.accounts.record(client, outcome, user, answer, response)

    def count(self, outcome: str, answer: Future[Response]) -> None:
        """Count an attempt that is on disk, on the writer thread."""
        if answer.exception() is None:
            self.logins[outcome] += 1
            self.upkeep.report(WRITING, None)

    def claims(
        self,
        subject: str,
        key: keystore.Key,
        expired: bool = False,
        audience: tuple[str, ...] = (),
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """What a token for `subject` says (RFC 7519 §4.1); it never outlives its key.

        `more` are claims of the account; they never take the place of ours.
        """
        ttl = int(self.settings.token_ttl)
        issued = key.exp - ttl if expired else int(self.clock())
        since = issued - int(self.settings.backdate)  # verifiers' clocks are behind
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "sub": subject,
            "iat": since,
            "nbf": since,
            "exp": min(issued + ttl, key.exp),
            "jti": str(uuid.uuid4()),
        }
        if audience:  # only if configured: some clients refuse one that they do not expect
            claims["aud"] = audience[0] if len(audience) == 1 else list(audience)
        if self.settings.token_type == settings.AT_JWT:
            # RFC 9068 §2.2. Nobody registers a client: only the account has shown who it is.
            claims["client_id"] = subject
        return {**more, **claims}

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
        return answers.conditional(self._page.get(self.local(request)), request.headers)

    def healthz(self, request: Request) -> Answer:
        """GET /healthz: whether a token could be issued now."""
        if not self.ready():
            raise answers.NotReady
        return json_response(200, {"status": "ok"}, answers.NO_STORE)

    def metrics(self, request: Request) -> Answer:
        """GET /metrics: counters in the Prometheus text format, for those who may see them."""
        client = self.client(request)
        if not self.pages.is_own_host(request.headers.get("host")):
            raise answers.Forbidden  # a page whose name was pointed here
        # A proxy on this machine that is not declared would lend its loopback address to anybody.
        if client == peer_of(request) and FORWARDING & request.headers.keys():
            raise answers.Forbidden
        if not ratelimit.is_trusted(client, (*LOOPBACK, *self.settings.metrics_from)):
            raise answers.Forbidden
        return metrics.response(
            request.headers.get("accept", ""),
            *(self.stats, self.workers, self.seconds, self.logins, self.limits, self.keys),
            ready=self.ready(),
        )

    def options(self, allowed: str, request: Request) -> Answer:
        """OPTIONS of any route: its methods, and what a page elsewhere may send."""
        path = self.local(request)
        if path in SHARED:
            return pages.preflight(allowed, self.pages.shared_with(request.headers))
        public = path.startswith("/.well-known/")
        return pages.preflight(allowed, pages.ANY_ORIGIN if public else ())

    # -- what the endpoints share

    def ready(self) -> bool:
        """Whether a token could be issued now."""
        return not self.upkeep.in_trouble() and bool(self.keys.published().keys)

    def timed(self, name: str) -> Endpoint:
        """The endpoint of this name; how long its answers take is counted, but for the JWKS."""
        endpoint: Endpoint = getattr(self, name)
        return endpoint if name in UNTIMED else self.seconds.of(name, endpoint)

    def local(self, request: Request) -> str:
        """The path of a request without the path of the issuer in front."""
        path = request.path
        return path[len(self.base) :] if path.startswith(f"{self.base}/") else path

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

    def is_proxy(self, peer: str) -> bool:
        """Whether an address is a trusted proxy, which names the client in each request."""
        address = "127.0.0.1" if peer == "unix" else peer
        return ratelimit.is_trusted(address, self.settings.trusted_proxy)

    def share(self, request: Request, answer: Answer) -> Answer:
        """The answer, readable for the page of an allowed origin."""
        fields = self.pages.shared_with(request.headers)
        if not fields or self.local(request) not in SHARED or request.method == "OPTIONS":
            return answer
        with_fields = functools.partial(answers.with_fields, fields)
        return (
            with_fields(answer) if isinstance(answer, Response) else httpd.then(answer, with_fields)
        )

    def recover(self, request: Request, failure: BaseException) -> Answer:
        """The answer in place of a Future that failed."""
        if isinstance(failure, accounts.Superseded):  # it was remembered, and has changed
            self.accounts.forget(failure.name)
            try:
                return self.share(request, self.log_in(request))
            except Exception as trouble:
                failure = trouble
        return self.share(request, self.refusal(failure))

    def refusal(self, failure: BaseException) -> Response:
        """The one place where a failure becomes an answer."""
        if isinstance(failure, Unavailable):
            self.upkeep.report(WRITING, str(failure))
        make = answers.FAILURES.get(type(failure))
        if make is not None:
            return make(failure)
        # A defect of ours. The client may try again, and the operator is told; no traceback leaves.
        self.log(f"internal error: {httpd.where(failure)}")
        return answers.UNEXPECTED

    def ready_line(self, url: str) -> str:
        """The line on standard error that says that the server takes connections."""
        count = len(self.keys.published().keys)
        return (
            f"ready: {url} database={self.database.name} keys={count} issuer={self.issuer} "
            f"version={__version__}"
        )


# -- reading a request, routing it


def peer_of(request: Request) -> str:
    """The address of the peer. One that reaches a Unix domain socket is on this machine."""
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
        """The answer to a request."""
        answer: Answer = self.server.app.respond(request)
        return answer

    def recover(self, request: Request, failure: BaseException) -> Answer:
        """The answer to a request whose Future failed, or whose endpoint raised."""
        answer: Answer = self.server.app.recover(request, failure)
        return answer

    def named_client(self, request: Request) -> str:
        """The client for the access log and its share: behind a trusted proxy, the one named."""
        client: str = self.server.app.client(request)
        return client


# -- start-up

STOP_SECONDS = 1.0  # for the chores and the workers to finish; what is written is whole or not


class Service:
    """A running server: the socket, the App, and the thread that keeps the keys."""

    def __init__(
        self,
        config: Settings,
        environ: MutableMapping[str, str],
        log: Callable[[str], None],
        supervisor: httpd.Supervisor | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Listen, open the database and its keys.

        Raises:
            ConfigurationError: it cannot start; nothing was changed that was there before.
        """
        # First the socket: if another server has the port, its database stays untouched.
        # Clients that come while the keys are made wait in the backlog.
        self.listener = startup.listen(config)
        # One for each core: it hashes or signs, and waits for nothing; the commit that follows has
        # its own thread. More would only take turns at core and interpreter, and hold 19 MiB each.
        self.workers, stats = httpd.Workers(httpd.CORES), httpd.Stats()
        try:
            self.app = open_app(
                config, environ, self.listener.url, self.workers, stats, log, clock=clock
            )
        except BaseException:
            self.listener.close()
            raise
        self.http = httpd.Server(
            self.listener,
            Handler,
            app=self.app,
            stats=stats,
            max_connections=config.max_connections,
            max_per_client=config.max_per_client,
            limits=config.limits,
            access_log=config.access_log,
            log=log,
            is_proxy=self.app.is_proxy,
            on_turn=self.app.upkeep.notice_changes,
            supervisor=supervisor,
        )
        self.supervisor = supervisor or httpd.Supervisor()
        self.certificate = certificate.Certificate(self.listener, self.supervisor, log)
        self._stopping = threading.Event()
        chores: dict[Callable[..., None], Callable[..., None]] = {
            self.app.upkeep.run: self._every_second
        }
        if self.app.database.shared and config.share_limits == "on":
            chores[self.app.upkeep.learn] = self.app.limits["auth"].prime
        self._chores = [
            threading.Thread(
                target=run, args=(self._stopping, also), name=run.__name__, daemon=True
            )
            for run, also in chores.items()
        ]

    def _every_second(self) -> None:
        self.certificate.read_if_wanted()
        self.workers.expire()

    def run(self) -> None:
        """Serve until `stop`; then answer what is in flight, and close."""
        for chore in self._chores:
            chore.start()
        self.supervisor.ready()
        try:
            self.http.serve_forever()
        finally:
            self._stopping.set()
            self.workers.stop(STOP_SECONDS)
            for chore in self._chores:
                chore.join(STOP_SECONDS)
            self.app.database.close()

    def stop(self) -> None:
        """Make `run` return; from any thread or signal handler."""
        self.supervisor.stopping()
        self.http.stop()


def open_app(
    config: Settings,
    environ: MutableMapping[str, str],
    url: str,
    workers: httpd.Workers,
    stats: httpd.Stats,
    log: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
) -> App:
    """The database, its keys and accounts, and the App on top."""
    unusable = startup.unusable_issuer(config, url)
    if unusable is not None:
        log(unusable)
    secret.check_given_secrets(environ, shared=startup.is_url(config.db))
    try:
        database = startup.open_database(config.db)
    except CannotOpen as error:
        raise ConfigurationError(str(error)) from error
    try:
        startup.warn_of_readers(config.db, log)
        current, previous = secret.load_secret(database, environ, log)
        keys = keystore.KeyStore(
            database, current, config.policy, previous=previous, log=log, clock=clock
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
            workers,
            issuer=config.issuer or settings.default_issuer(url),
            stats=stats,
            log=log,
            clock=clock,
            monotonic=monotonic,
        )
        app.limits["auth"].count_earlier(LoginLog(database, clock), log)
        return app
    except (keystore.WrongSecret, Unavailable, MemoryError) as error:
        database.close()
        raise ConfigurationError(str(error)) from error
    except BaseException:
        database.close()
        raise


class Issuer:
    """A server running in this process, for tests and notebooks: `with server.running() as it:`."""

    def __init__(self, values: Mapping[str, object], clock: Callable[[], float]) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="jwks-")
        defaults = {
            "port": 0,
            "access_log": "off",
            "db": str(Path(self._directory.name, "keys.db")),
        }
        try:
            config = settings.make_settings({**defaults, **values})
            self._service = Service(config, dict(os.environ), lambda line: None, clock=clock)
        except BaseException:
            self._directory.cleanup()
            raise
        self.url = self._service.listener.url
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
        app = self._service.app
        merged = {**app.claims(sub, key, audience=app.settings.audience), **claims}
        kept = {name: value for name, value in merged.items() if value is not None}
        return jwt_minimal.encode(kept, key.private_key, key.kid, typ=app.settings.token_type)

    def stop(self) -> None:
        """Stop the server and remove its files. May be called twice."""
        self._service.stop()
        self._thread.join()
        self._service.app.database.close()  # this thread's own connection
        self._directory.cleanup()

    def __enter__(self) -> Issuer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def wall_clock() -> float:
    """Seconds since 1970, also where freezegun sets them: it leaves threads their `time.time`."""
    return datetime.datetime.now(datetime.timezone.utc).timestamp()


def running(*, clock: Callable[[], float] = wall_clock, **values: Any) -> Issuer:
    """Start a real server on a free port with a temporary database.

    Takes the settings of the command line by name: `running(auth_limit="off", token_ttl="5s")`.
    `clock` gives seconds since 1970; it dates tokens and keys.

    Raises:
        ConfigurationError: a setting is not acceptable.
    """
    return Issuer(values, clock)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0 after a stop, 2 if it cannot start."""
    process.occupy_standard_streams()
    packages.refuse_old()
    parser = settings.Parser(prog="server.py", description=(__doc__ or "").split("\n\n")[0])
    settings.add_settings(parser)
    flags = vars(parser.parse_args(arguments))
    log = httpd.LineLog()
    try:
        process.leave_on_signals()
        process.keep_secrets()
        config, supervisor = settings.configure(flags, os.environ), httpd.Supervisor.of(os.environ)
        if config.access_log == "json":
            journal.speak_json(log)
        service = Service(config, os.environ, log.write, supervisor)
    except ConfigurationError as error:
        log.write(f"server.py: {error}")
        log.flush(1.0)
        return 2
    process.obey_signals(service.stop, service.certificate.want if config.tls_cert else None)
    log.write(service.app.ready_line(service.listener.url))
    service.run()
    log.flush(1.0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
