"""The inspector page in a real browser: Chromium, headless, spoken to over a pipe.

Needs a program `chromium` (Debian: `apt-get install chromium`), or the one that CHROMIUM names.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from typing import Any

import jwt_minimal
import server
from tests import jwt_refusals
from tests.support import CHEAPEST

PATIENCE = 30  # s for one answer of the browser; a cold start on a busy machine takes several
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--remote-debugging-pipe",  # the DevTools protocol, JSON ended by NUL, on descriptors 3 and 4
)
# Gives the two ends of our pipes the numbers that the browser expects, then becomes the browser.
LAUNCHER = """import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3), os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])"""


def browser_program() -> str:
    """Where Chromium is; without one these checks fail, they are not skipped."""
    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        raise AssertionError("no Chromium: apt-get install chromium, or set CHROMIUM to its path")
    return found


class Browser:
    """One page of a headless browser: `go` somewhere, `run` JavaScript, read `console`."""

    def __init__(self, width: int = 1280, height: int = 900) -> None:
        self.console: list[str] = []
        self._folder = tempfile.mkdtemp(prefix="jwks-browser-")
        theirs_in, self._write = os.pipe()
        self._read, theirs_out = os.pipe()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", LAUNCHER, str(theirs_in), str(theirs_out)),
                *(browser_program(), *FLAGS, f"--user-data-dir={self._folder}"),
                f"--window-size={width},{height}",
            ],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer, self._count, self._session = b"", 0, ""
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        attached = self.command("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.command(f"{domain}.enable")

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol, and its result."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return answer["result"]
            self._notice(answer)

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            left = max(0, deadline - time.monotonic())
            readable = select.select([self._read], [], [], left)[0]
            arrived = os.read(self._read, 1 << 20) if readable else b""
            if not arrived:
                raise AssertionError("the browser ended or does not answer")
            self._buffer += arrived
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _notice(self, event: dict[str, Any]) -> None:
        kind, told = event.get("method", ""), event.get("params", {})
        if kind == "Log.entryAdded":
            self.console.append(told["entry"]["text"] + " " + told["entry"].get("url", ""))
        elif kind in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.console.append(json.dumps(told))

    def go(self, url: str) -> None:
        """Open a page and wait until it is ready."""
        self.command("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """The value of an expression, or of what it promises."""
        result = self.command(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in result:
            raise AssertionError(result["exceptionDetails"])
        return result["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until an expression holds."""
        deadline = time.monotonic() + PATIENCE
        while not self.run(condition):
            if time.monotonic() > deadline:
                raise AssertionError(f"still not: {condition}")
            time.sleep(0.02)

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG file."""
        size = self.command("Page.getLayoutMetrics")["cssContentSize"]
        picture = self.command(
            "Page.captureScreenshot", captureBeyondViewport=True, clip={**size, "scale": 1}
        )["data"]
        path.write_bytes(base64.b64decode(picture))

    def close(self) -> None:
        """End the browser and remove its folder."""
        os.close(self._write)  # a browser whose pipe closes goes
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        shutil.rmtree(self._folder, ignore_errors=True)


def setUpModule() -> None:
    global browser, issuer
    issuer = server.running(argon2=CHEAPEST, auth_limit="off", register_limit="off")
    unittest.addModuleCleanup(issuer.stop)
    browser = Browser()
    unittest.addModuleCleanup(browser.close)


browser: Browser
issuer: server.Issuer


class PageTest(unittest.TestCase):
    def setUp(self) -> None:
        browser.go("about:blank#")
        browser.console.clear()
        browser.go(issuer.url + "/")
        browser.wait("document.getElementById('issuer').value !== ''")

    def put(self, element: str, text: str) -> None:
        browser.run(
            f"{{const it = document.getElementById({element!r}); it.value = {json.dumps(text)};"
            "it.dispatchEvent(new Event('input'));}"
        )

    def text(self, element: str) -> str:
        return browser.run(f"document.getElementById({element!r}).textContent")

    def press(self, button: str) -> None:
        browser.run(
            "[...document.querySelectorAll('button')]"
            f".find(button => button.textContent === {button!r}).click()"
        )


class ALiveToken(PageTest):
    def test_is_valid(self):
        self.put("token", issuer.token(sub="alice"))
        self.assertEqual(self.text("word"), "Valid")

    def test_has_its_claims_in_words(self):
        self.put("token", issuer.token(sub="alice"))
        payload = self.text("payload")
        self.assertIn('"alice"whom it is about', payload)
        self.assertRegex(payload, r"expires 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC \(in 59 min\)")

    def test_has_its_signature_opened(self):
        token = issuer.token()
        self.put("token", token)
        opened = self.text("signature")
        self.assertIn("30 31 30 0d 06 09 60 86 48 01 65 03 04 02 01 05 00 04 20", opened)
        self.assertEqual(browser.run("document.querySelectorAll('#signature mark').length"), 0)

    def test_is_painted_segment_by_segment(self):
        token = issuer.token()
        self.put("token", token)
        spans = browser.run("[...document.querySelectorAll('#paint span')].map(s => s.textContent)")
        head, payload, signature = token.split(".")
        self.assertEqual(spans, [head, "." + payload, "." + signature])


class ARefusedToken(PageTest):
    def refused(self, token: str) -> str:
        self.put("token", token)
        return self.text("word") + ": " + self.text("cause")

    def test_that_was_tampered_with(self):
        head, payload, signature = issuer.token(sub="alice").split(".")
        forged = jwt_minimal.b64url_decode(payload).replace(b"alice", b"admin")
        word = self.refused(f"{head}.{jwt_minimal.b64url_encode(forged)}.{signature}")
        self.assertIn("BadSignature", word)
        self.assertGreater(browser.run("document.querySelectorAll('#signature mark').length"), 20)

    def test_that_expired(self):
        word = self.refused(issuer.token(exp=int(time.time()) - 100))
        self.assertRegex(word, r"ExpiredToken: exp is 20.* UTC \(10\d s ago\)")

    def test_from_a_foreign_server(self):
        token = jwt_refusals.token()
        self.assertIn(
            'UnknownKey: the token has kid "a2": of 1 RSA keys, 0 fit', self.refused(token)
        )

    def test_for_somebody_else(self):
        token = issuer.token(aud="them")
        self.assertIn("WrongAudience", self.refused(token))
        self.put("audience", "them")
        self.assertEqual(self.text("word"), "Valid")

    def test_of_another_issuer_with_the_same_key(self):
        self.assertIn("WrongIssuer", self.refused(issuer.token(iss="https://evil.example")))

    def test_stops_at_the_first_check_that_fails(self):
        self.refused(issuer.token(exp=1, iss="https://evil.example"))
        steps = browser.run("[...document.querySelectorAll('#checks li')].map(li => li.className)")
        self.assertEqual(steps, ["done"] * 5 + ["failed"] + ["unasked"] * 2)


class TheForms(PageTest):
    def test_register_and_log_in(self):
        name = f"user-{time.time_ns()}"
        browser.run(f"document.querySelector('[name=username]').value = {name!r}")
        self.press("Register")
        browser.wait("document.querySelector('[name=password]').value !== ''")
        self.press("Log in")
        browser.wait("document.getElementById('token').value !== ''")
        self.assertEqual(self.text("word"), "Valid")
        self.assertIn(name, self.text("payload"))
        self.press("Expired token")
        browser.wait("document.getElementById('word').textContent !== 'Valid'")
        self.assertIn("UnknownKey", self.text("word"))

    def test_say_what_the_server_says(self):
        browser.run("document.querySelector('[name=username]').value = 'nobody'")
        browser.run("document.querySelector('[name=password]').value = 'wrong'")
        self.press("Log in")
        browser.wait("document.getElementById('answer').className === 'wrong'")
        self.assertEqual(self.text("answer"), "Unknown user or wrong password.")


class TheVerdict(PageTest):
    def test_of_every_row_of_the_table_is_that_of_jwt_minimal(self):
        rows = list(jwt_refusals.rows())
        asked = [
            [
                row["token"],
                jwt_refusals.jwks_of(row),
                {"now": jwt_refusals.NOW, **row.get("checks", {})},
            ]
            for row in rows
        ]
        kinds = browser.run(
            "import('/inspector.js').then(({inspect}) =>"
            f"{json.dumps(asked)}.map(row => inspect(...row).kind ?? null))"
        )
        for row, kind in zip(rows, kinds):
            with self.subTest(row["name"]):
                self.assertEqual(kind, row["refusal"])

    def test_of_tokens_with_a_letter_changed_is_that_of_jwt_minimal(self):
        chance = random.Random(1)  # the same letters each time
        good = [row["token"] for row in jwt_refusals.rows() if not row["refusal"]]
        good += [jwt_refusals.token(claims=self.damaged(chance)) for _ in range(300)]
        tokens = []
        for token in good * 3:
            at = chance.randrange(len(token))
            changed = chance.choice([chance.choice("AZaz09-_.=+ \u00e9"), "", token[at] * 2])
            tokens += [token, token[:at] + changed + token[at + 1 :]]
        checks = {"now": jwt_refusals.NOW, "issuer": jwt_refusals.CLAIMS["iss"]}
        found = browser.run(
            "import('/inspector.js').then(({inspect}) =>"
            f"{json.dumps(tokens)}.map(token => inspect(token, {json.dumps(jwt_refusals.JWKS)},"
            f"{json.dumps(checks)}).kind ?? 'none'))"
        )
        for token, kind in zip(tokens, found):
            error = jwt_refusals.refusal(token, jwt_refusals.JWKS, **checks)
            self.assertEqual(kind, type(error).__name__ if error else "none", (token, error))
        self.assertGreater(len(set(found)), 5)

    def damaged(self, chance: random.Random) -> bytes:
        """Claims with a few octets of their JSON changed."""
        claims = bytearray(json.dumps(jwt_refusals.CLAIMS).encode())
        for _ in range(chance.randrange(1, 3)):
            claims[chance.randrange(len(claims))] = chance.choice(b'"{}[]:,.019eE-+\\ntu\xff\x00 ')
        return bytes(claims)

    def test_rests_on_a_right_sha256(self):
        lengths = [*range(130), 1000, 16384]
        found = browser.run(
            "import('/inspector.js').then(({sha256}) =>"
            f"{lengths}.map(n => sha256(Uint8Array.from({{length: n}}, (_, i) => i * 7))))"
        )
        for length, digest in zip(lengths, found):
            message = bytes(i * 7 % 256 for i in range(length))
            self.assertEqual(digest, hashlib.sha256(message).hexdigest())


class APaste(PageTest):
    def pasted(self, text: str) -> str:
        self.put("token", text)
        return browser.run("document.getElementById('token').value")

    def test_of_what_holds_a_token_is_judged_as_that_token(self):
        token = issuer.token(sub="alice")
        lines = "\n".join(token[at : at + 60] for at in range(0, len(token), 60))
        answer = {"token": token, "token_type": "Bearer", "expires_in": 3600}
        oauth = {"access_token": token, "token": "older", "token_type": "Bearer"}
        for text, note in (
            (token, ""),
            (f"  {token}\n", ""),
            (f"Bearer {token}", "Taken from behind the word Bearer."),
            (f"authorization: bearer {lines}", "Taken from behind the word Bearer."),
            (f"curl -H 'Authorization: Bearer {token}' URL", "Taken from behind the word Bearer."),
            (f'curl -H "Authorization: Bearer {token}" URL', "Taken from behind the word Bearer."),
            (lines, "Lines and spaces were joined."),
            (lines.replace("\n", "\r\n  "), "Lines and spaces were joined."),
            (json.dumps(answer), "Taken from the member token."),
            (json.dumps(answer, indent=2), "Taken from the member token."),
            (json.dumps(answer).replace(token, lines), "Taken from the member token."),
            (json.dumps(oauth), "Taken from the member access_token."),
        ):
            with self.subTest(text[:40], note=note):
                self.assertEqual(self.pasted(text), token)
                self.assertEqual(self.text("taken"), note)
                self.assertEqual(self.text("word"), "Valid")

    def test_with_a_letter_that_no_token_has_is_left_as_it_is(self):
        token = issuer.token()
        for text in (f"{token} <b>", f"Bearer {token};", f'"{token}"', f"{token}\u200b", "{token}",
                     f"Bearer {token}\nAccept: text/html"):  # fmt: skip
            with self.subTest(text[-10:]):
                self.assertEqual(self.pasted(text), text)
                self.assertIn("MalformedToken", self.text("word"))

    def test_of_json_without_a_token_says_so(self):
        for text in ('{"password":"x"}', '{"token":7}', '{"token":null,"__proto__":"a.b.c"}'):
            self.assertEqual(self.pasted(text), text)
            self.assertEqual(self.text("taken"), "JSON without access_token or token.")

    def test_of_five_megabytes_is_cut_before_it_is_painted(self):
        for letter in (".", "a", "{", "Bearer a "):
            self.assertEqual(len(self.pasted(letter * (5_000_000 // len(letter)))), 65536)
            self.assertEqual(
                self.text("taken"), "Cut after 65536 characters: no token is that long."
            )
            self.assertLessEqual(len(self.text("paint")), jwt_minimal.MAX_TOKEN + 2)
            self.assertIn("MalformedToken", self.text("word"))

    def test_by_hand_is_bounded_by_the_browser(self):
        browser.run("document.getElementById('token').focus()")
        browser.command("Input.insertText", text="." * 70_000)
        self.assertEqual(browser.run("document.getElementById('token').value.length"), 65536)
        self.assertIn("Cut after", self.text("taken"))


class AFragment(PageTest):
    def test_brings_a_token_and_leaves_the_address_bar(self):
        for arrived in (issuer.token(sub="alice"), issuer.token(sub="bob")):  # loaded, then changed
            browser.run(f"location.hash = 'token={arrived}'")
            browser.wait("location.hash === ''")
            self.assertEqual(self.text("word"), "Valid")
        self.assertIn('"bob"', self.text("payload"))

    def test_is_read_when_the_page_is_opened(self):
        browser.go("about:blank#")
        browser.go(f"{issuer.url}/#token=a.b.c")
        browser.wait("document.getElementById('token').value === 'a.b.c'")
        self.assertEqual(browser.run("location.href"), issuer.url + "/")

    def test_of_another_name_is_left_alone(self):
        browser.run("location.hash = 'legend'")
        self.assertEqual(browser.run("location.hash"), "#legend")
        self.assertEqual(self.text("word"), "No token yet")


class Copies(PageTest):
    def copied(self, button: str, secure: bool = True) -> str:
        """What a press of the button would put into the clipboard."""
        browser.run(
            "globalThis.copied = null;"
            "navigator.clipboard.writeText = async (text) => { globalThis.copied = text; };"
            "document.oncopy = () => { globalThis.copied = document.activeElement.value; };"
            f"Object.defineProperty(globalThis, 'isSecureContext', {{configurable: true,"
            f"value: {json.dumps(secure)}}}); 0"
        )
        script = (
            "[...document.querySelectorAll('button')]"
            f".find(button => button.textContent === {button!r}).click()"
        )
        browser.command("Runtime.evaluate", expression=script, userGesture=True)
        browser.wait("document.getElementById('copied').textContent !== ''")
        return browser.run("globalThis.copied")

    def test_are_a_token_a_header_and_a_command(self):
        token = issuer.token()
        self.put("token", token)
        for secure in (True, False):  # a page over plain http has no clipboard object
            with self.subTest(secure=secure):
                found = [
                    self.copied(f"Copy {kind}", secure) for kind in ("token", "header", "curl")
                ]
                header = f"Authorization: Bearer {token}"
                self.assertEqual(found, [token, header, f"curl -H '{header}' URL"])
                self.assertEqual(self.text("copied"), "Copied as curl.")

    def test_are_read_back_as_the_token(self):
        token = issuer.token()
        self.put("token", token)
        for text in [self.copied(f"Copy {kind}") for kind in ("token", "header", "curl")]:
            self.put("token", text)
            self.assertEqual(browser.run("document.getElementById('token').value"), token)

    def test_are_made_of_nothing_that_a_shell_could_obey(self):
        for text in (
            "",
            "a.b",
            "a.b.c'; touch x; '",
            "a.b.c\u001b[2J",
            "a.b.$(x)",
            "a.b.c.d",
            '"a.b.c"',
        ):
            self.put("token", text)
            enabled = browser.run("document.querySelectorAll('#copy button:enabled').length")
            self.assertEqual(enabled, 0, text)


HASURA = "https://hasura.io/jwt/claims"
ROLES = {"x-hasura-default-role": "user", "x-hasura-allowed-roles": ["user", "editor"]}
READ: list[tuple[dict[str, Any], str, list[str], str]] = [
    ({"sub": "a", "scope": "x y"}, "Spring", ["name a", "authority SCOPE_x", "authority SCOPE_y"],
     "authorities from scope"),
    ({"scp": ["x y", "z"]}, "Spring", ["authority SCOPE_x y", "authority SCOPE_z"], "from scp"),
    ({"scope": "", "scp": "x"}, "Spring", [], "scope holds no scope"),
    ({"scope": 7}, "Spring", [], "scope holds no scope"),
    ({"sub": "a", "undefined": "x"}, "Spring", ["name a"], "neither scope nor scp"),
    ({"iss": "https://i", "sub": "a", "aud": "k", "groups": ["dev", "ops"]}, "Kubernetes",
     ["user https://i#a", "group dev", "group ops"], "--oidc-groups-claim=groups"),
    ({"iss": "https://i", "sub": "a", "aud": "k", "groups": "dev"}, "Kubernetes",
     ["user https://i#a", "group dev"], "--oidc-groups-claim=groups"),
    ({"iss": "http://i", "sub": "a"}, "Kubernetes", ["user http://i#a"],
     "no groups; it also needs an aud that is its client ID and an issuer with https"),
    ({"iss": "https://i"}, "Kubernetes", [], "refused: it needs iss and sub"),
    ({"role": "editor"}, "PostgREST", ["role editor"], "the database role"),
    ({"role": ["editor"]}, "PostgREST", [], "the anonymous role"),
    ({}, "PostgREST", [], "the anonymous role"),
    ({HASURA: {**ROLES, "X-Hasura-User-Id": "7", "x-hasura-n": 7, "other": "x"}}, "Hasura",
     ["role user of user, editor", "x-hasura-user-id: 7", "x-hasura-n: not text"], "roles and"),
    ({HASURA: {**ROLES, "x-hasura-default-role": "admin"}}, "Hasura", [], "is without"),
    ({HASURA: {"x-hasura-default-role": "user"}}, "Hasura", [], "it needs the text"),
    ({HASURA: json.dumps(ROLES)}, "Hasura", [], "no object named"),
    ({}, "Hasura", [], "no object named"),
]  # fmt: skip


class TheServices(PageTest):
    def test_read_the_claims_that_their_manuals_name(self):
        found = browser.run(
            "import('/readers.js').then(({services}) =>"
            f"{json.dumps([row[0] for row in READ])}.map(services))"
        )
        for (claims, service, lines, says), rows in zip(READ, found):
            with self.subTest(service, claims=claims):
                rows_by_name = {row[0]: row[1:] for row in rows}
                self.assertEqual(rows_by_name[service][0], lines)
                self.assertIn(says, rows_by_name[service][1])

    def test_stand_in_the_page_with_what_that_is_worth(self):
        token = issuer.token(sub="alice", scope="read write", role="editor")
        self.put("token", token)
        shown = self.text("services")
        for words in ("once it accepts", "authority SCOPE_write", "role editor", "alice"):
            self.assertIn(words, shown)
        self.put("token", token[:-9])
        self.assertIn("The token is refused here", self.text("services"))

    def test_hide_nothing_and_make_no_markup(self):
        self.put("token", issuer.token(role="<b>\u202e", scope="<img src=x>"))
        self.assertIn(r"role <b>\u{202e}", self.text("services"))
        self.assertEqual(browser.run("document.querySelectorAll('#services b, img').length"), 0)


class AHostileToken(PageTest):
    def test_injects_no_markup(self):
        evil = "<img src=x onerror=document.title=1><script>document.title=1</script>"
        for claims in ({"sub": evil}, {evil: evil}, {"a": {evil: [evil]}}, {"iss": evil}):
            self.put("token", issuer.token(**claims))
        claims = {"exp": "<b>"}
        self.put("token", jwt_refusals.token({"alg": evil, "kid": evil}, claims) + "<b>" + evil)
        found = browser.run("document.querySelectorAll('main img, main script, main b').length")
        self.assertEqual((found, browser.run("document.title")), (0, "Token inspector"))

    def test_hides_nothing_by_control_characters(self):
        self.put("token", issuer.token(sub="\u202eadmin\u200b\x1b[2J"))
        self.assertIn(r'"\u{202e}admin\u{200b}\u001b[2J"', self.text("payload"))

    def test_takes_no_words_from_the_prototype_of_objects(self):
        self.put("token", issuer.token(constructor=1, __proto__={"x": 1}))
        self.assertNotIn("native code", self.text("payload"))
        self.assertEqual(self.text("word"), "Valid")

    def test_that_is_huge_is_answered(self):
        for token in ("a" * 1_000_000, "." * 1_000_000):
            self.put("token", token)
            self.assertIn("MalformedToken", self.text("word"))


class TheBrowser(PageTest):
    def test_has_nothing_to_complain_of(self):
        self.put("token", issuer.token())
        browser.run("new Promise(done => setTimeout(done, 300))")
        self.assertEqual(browser.console, [])

    def test_runs_no_inline_script(self):
        browser.run(
            "{const s = document.createElement('script'); s.textContent = 'document.title = 1';"
            "document.body.append(s);}"
        )
        self.assertEqual(browser.run("document.title"), "Token inspector")
        self.assertIn("Content Security Policy", " ".join(browser.console))

    def test_can_draw_the_icon_of_the_page(self):
        width = browser.run(
            "{const it = new Image(); it.src = document.querySelector('link[rel=icon]').href;"
            "it.decode().then(() => it.width)}"
        )
        self.assertGreater(width, 0)
        self.assertEqual(browser.console, [])

    def test_sends_nothing_to_other_places(self):
        refused = browser.run("fetch('http://127.0.0.1:9/').then(() => 'sent', e => e.message)")
        self.assertEqual(refused, "Failed to fetch")
        self.assertIn("connect-src", " ".join(browser.console))

    def test_finds_a_name_for_every_control(self):
        nodes = browser.command("Accessibility.getFullAXTree")["nodes"]
        controls = [
            n
            for n in nodes
            if n.get("role", {}).get("value")
            in ("textbox", "button", "spinbutton", "DisclosureTriangle")
        ]
        self.assertGreater(len(controls), 9)
        unnamed = [node for node in controls if not node.get("name", {}).get("value")]
        self.assertEqual(unnamed, [])

    def test_need_not_scroll_sideways_on_a_phone(self):
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(browser.command, "Emulation.clearDeviceMetricsOverride")
            browser.command(
                "Emulation.setDeviceMetricsOverride",
                width=360,
                height=740,
                deviceScaleFactor=1,
                mobile=True,
            )
            self.put("token", issuer.token())
            self.assertLessEqual(browser.run("document.documentElement.scrollWidth"), 360)


if __name__ == "__main__":
    unittest.main()
