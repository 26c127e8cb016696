/* The page: what was pasted goes in, what inspector.js and readers.js say of it is shown.

   Rules of this file
   - Nothing of a token becomes markup: text goes into text nodes, control characters are escaped.
   - Nothing is painted or copied before its size and its letters are known.
   - A token is a secret: nothing is stored, and the address bar does not keep it. */

import {
  CHECKS, MAX_TOKEN, REGISTERED, base64url, has, inspect, isDate, openedSignature, parseObject,
  printable, utf8, when,
} from "./inspector.js";
import { copies, services, tokenIn } from "./readers.js";

const CLAIMS = Object.fromEntries(Object.entries(REGISTERED).map(([name, row]) => [name, row[2]]));
const FOREIGN = "a key that the token brings along: never used";
const HEADER = { // RFC 7515 §4.1
  alg: "how it was signed; here: RSA, PKCS#1 v1.5 padding, SHA-256",
  typ: "what it is",
  kid: "which key of the JWKS signed it",
  jwk: FOREIGN, jku: FOREIGN, x5u: FOREIGN, x5c: FOREIGN,
  crit: "extensions that a verifier must understand: refused",
  b64: "whether the payload is base64url, as it always is here; only true is accepted",
};
const FIX = {
  MalformedToken: "Copy it again, whole and without quotes; its issuer may be at fault.",
  UnsupportedToken: "Only RS256, typ JWT or at+jwt, and no header extension are accepted.",
  UnknownKey: "Fetch the keys of its issuer. Without them, anyone may have written it.",
  UnusableKey: "The issuer has to publish an RSA signing key of 2048 bits or more.",
  BadSignature: "Reject it: it was changed after it was signed, or another key signed it.",
  InvalidClaim: "The issuer has to set exp, and give every claim the type of RFC 7519.",
  ExpiredToken: "Get a new one; if it should still be good, compare the clocks.",
  ImmatureToken: "Wait, or allow some leeway: the issuer's clock is ahead of yours.",
  WrongIssuer: "Compare the two character by character.",
  WrongAudience: "Name yourself as audience if it is meant for you.",
};
const PARTS = [ // octets; the padding takes what is left of n
  ["start", 2, "a signature begins"],
  ["padding", 0, "as long as n asks"],
  ["end", 1, "of the padding"],
  ["DigestInfo", 19, "SHA-256 follows, in DER"],
  ["hash", 32, "what was signed"],
];

const find = (id) => document.getElementById(id);
function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children); // strings become text nodes
  return made;
}

const row = (name, cell, ...says) =>
  element("tr", "", element("th", "", name), cell, element("td", "says", ...says));

function paint(token) {
  const parts = token.slice(0, MAX_TOKEN).split(".");
  const [head, payload, ...rest] = parts.map((text, i) => (i ? "." : "") + text);
  const segments = [head, payload ?? "", rest.join("")];
  const spans = segments.map((text, i) => element("span", `s${i}`, text));
  const cut = token.length > MAX_TOKEN ? "\u2026" : "";
  find("paint").replaceChildren(...spans, cut, "\n");
}

function members(segment, words, now) {
  let object;
  try { object = parseObject(base64url(segment)); } catch (error) {
    return element("p", "", segment ? error.message : "Nothing here yet.");
  }
  const rows = Object.entries(object).map(([name, value]) => {
    const date = words === CLAIMS && has(REGISTERED, name) && REGISTERED[name][0] === isDate;
    const says = has(words, name) ? words[name] : "";
    const distance = date && isDate(value) ? ` ${when(value, now)}` : "";
    const cell = element("td", "", printable(JSON.stringify(value)));
    return row(printable(name), cell, says, distance);
  });
  return element("table", "", ...rows);
}

// Octets in hex; those that differ from the needed ones are marked, long runs cut in the middle.
function octets(text, needed) {
  const line = element("span", "bytes");
  const pairs = text.match(/../g) ?? [];
  const hidden = pairs.length > 64 ? pairs.length - 13 : 0;
  pairs.forEach((pair, i) => {
    if (hidden && i === 11) line.append(`\u2026 ${hidden} more \u2026 `);
    if (hidden && i > 10 && i < pairs.length - 2) return;
    const same = needed.slice(2 * i, 2 * i + 2) === pair;
    line.append(same ? pair : element("mark", "", pair), " ");
  });
  return line;
}

function signatureParts(seen) {
  if (!seen.n) return [element("p", "", "Opened once its key is known.")];
  const { hash, opened, needed } = openedSignature(seen);
  let at = 0;
  const rows = PARTS.map(([name, length, says]) => {
    const end = at + 2 * (length || needed.length / 2 - 54);
    const [found, right] = [opened.slice(at, end), needed.slice(at, end)];
    at = end;
    const cell = element("td", "", octets(found, right));
    if (found === right) return row(name, cell, says);
    cell.prepend(element("small", "", found ? "it holds" : "it holds nothing"));
    cell.append(element("small", "", "it should hold"), octets(right, right));
    return row(name, cell, says, element("b", "failed", " differs"));
  });
  return [
    element("p", "", `Opened: signature^${seen.e} mod n, ${opened.length / 2} octets`),
    element("table", "", ...rows),
    element("p", "", "SHA-256 of header.payload: ", element("code", "", hash)),
  ];
}

const MARKS = { done: "\u2713", failed: "\u2717", unasked: "\u00b7" };
function ladder(failed) {
  const at = failed ? CHECKS.findIndex((check) => check.name === failed) : CHECKS.length;
  return CHECKS.map(({ name }, i) => {
    const state = i < at ? "done" : i > at ? "unasked" : "failed";
    return element("li", state, `${MARKS[state]} ${name}`);
  });
}

// Neither verdict nor keys are needed to read the claims; the first line says what they are worth.
function reading(payload, seen) {
  let object;
  try { object = parseObject(base64url(payload)); } catch {
    return [element("p", "", "Nothing to read yet.")];
  }
  const worth = seen.failed ? "The token is refused here; a service that refuses it reads nothing."
    : "What each takes from these claims with its defaults, once it accepts the token.";
  const rows = services(object).map(([service, found, says]) => {
    const lines = found.map((line) => element("span", "line", printable(line)));
    return row(service, element("td", "", ...lines), says);
  });
  return [element("p", "", worth), element("table", "", ...rows)];
}

function readKeys() {
  try { return parseObject(utf8(find("jwks").value)); } catch { return null; }
}

let shown = "";
function show() {
  const token = find("token").value.trim();
  const now = Date.now() / 1000;
  const checks = { now, leeway: Number(find("leeway").value) };
  for (const name of ["issuer", "audience"]) checks[name] = find(name).value.trim();
  const seen = inspect(token, readKeys(), checks);
  const [head, payload] = token.slice(0, MAX_TOKEN).split(".");
  const parts = {
    header: [members(head, HEADER, now)],
    payload: [members(payload ?? "", CLAIMS, now)],
    signature: signatureParts(seen),
    services: reading(payload ?? "", seen),
    checks: token ? ladder(seen.failed) : [],
  };
  const word = !token ? "No token yet" : seen.failed ? `Refused: ${seen.kind}` : "Valid";
  const cause = !token ? "Paste one, or register and log in."
    : seen.failed ? `${seen.cause}. ${FIX[seen.kind]}`
      : "Signed with a key of this JWKS, and every claim holds.";
  const text = [word, cause, ...Object.values(parts).flat().map((part) => part.textContent)].join();
  if (text === shown) return; // or every tick would lose the selection
  shown = text;
  // Screen readers read it out: only when it changes.
  if (find("word").textContent !== word) find("word").textContent = word;
  find("cause").textContent = cause;
  find("verdict").className = `verdict ${token && (seen.failed ? "bad" : "good")}`;
  for (const [id, nodes] of Object.entries(parts)) find(id).replaceChildren(...nodes);
}

function say(id, text, wrong) {
  find(id).textContent = text;
  find(id).className = wrong ? "wrong" : "";
}

async function ask(path, document_) {
  const options = document_ && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(document_),
  };
  const response = await fetch(path.slice(1), options); // relative: a proxy may add a prefix
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error_description);
  return answer;
}

async function fetchKeys() {
  try {
    const jwks = await ask("/.well-known/jwks.json");
    find("jwks").value = JSON.stringify(jwks, null, 1);
    say("fetched", `${jwks.keys.length} fetched`);
    find("issuer").value ||= (await ask("/.well-known/openid-configuration")).issuer;
  } catch (error) { say("fetched", `Not fetched: ${error.message}`, true); }
  show();
}

async function submit(event) {
  event.preventDefault();
  const path = event.submitter?.value ?? "/auth";
  const { username, password } = Object.fromEntries(new FormData(event.target));
  try {
    if (path === "/register") {
      const made = (await ask(path, { username })).password;
      event.target.elements.password.value = made;
      say("answer", `Registered. Your password, shown once: ${made}`);
    } else {
      find("token").value = (await ask(path, { username, password })).token;
      say("answer", path === "/auth" ? "Logged in." : "Expired, of an unpublished key.");
      changed();
    }
  } catch (error) { say("answer", error.message, true); }
}

function changed() {
  const box = find("token");
  const { token, note } = tokenIn(box.value);
  if (token !== box.value) box.value = token; // what is judged is what is seen
  say("taken", note);
  const texts = copies(token);
  for (const button of find("copy").querySelectorAll("button")) button.disabled = !texts;
  say("copied", "");
  paint(token);
  show();
}

async function copy(event) {
  const kind = event.target.closest("button")?.value;
  if (!kind) return;
  try {
    await intoClipboard(copies(find("token").value)[kind]);
    say("copied", `Copied as ${kind}.`);
  } catch { say("copied", "This browser did not let the page copy.", true); }
}

async function intoClipboard(text) {
  if (globalThis.isSecureContext) return navigator.clipboard.writeText(text);
  // A page over plain http has no clipboard object; what is selected can be copied all the same.
  const asked = document.activeElement;
  const box = element("textarea", "", text);
  document.body.append(box);
  box.select();
  const done = document.execCommand("copy");
  box.remove();
  asked.focus();
  if (!done) throw new Error("not copied");
}

// #token=... is for links: browsers send no fragment to a server.
function takeFragment() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token === null) return;
  history.replaceState(null, "", location.pathname + location.search); // or the history keeps it
  find("token").value = token;
  changed();
}

find("login").addEventListener("submit", submit);
find("fetch").addEventListener("click", fetchKeys);
find("copy").addEventListener("click", copy);
find("token").addEventListener("input", changed);
for (const id of ["jwks", "issuer", "audience", "leeway"]) {
  find(id).addEventListener("input", show);
}
addEventListener("hashchange", takeFragment);
setInterval(show, 1000); // dates come nearer
changed();
takeFragment();
fetchKeys();
