/* A token taken apart and judged in the browser: what jwt_minimal.py does, and in its order.

     token -> form -> header -> key -> signature -> claims -> dates -> issuer -> audience
              the first to fail is the cause, and nothing after it is looked at

   Rules of this file
   - No library, no crypto.subtle (a page over plain http has none): SHA-256 and RSA are spelt out.
   - No page and no clock is known here: page.js has them, and passes `now`.
   - One accepted spelling of base64url, of JSON members, and of the padding around the hash.

   Left out: other algorithms than RS256, encryption. */

export class InvalidToken extends Error {
  constructor(kind, cause) { super(cause); this.kind = kind; }
}
const refusal = (kind) => (cause) => { throw new InvalidToken(kind, cause); };
const malformed = refusal("MalformedToken"), unsupported = refusal("UnsupportedToken");
const unusable = refusal("UnusableKey"), invalid = refusal("InvalidClaim");

export const MAX_TOKEN = 16 * 1024; // characters; servers accept no longer request head
const MAX_BRACKETS = 500; // no token nests that deep, and some readers of JSON break at 1000
const MIN_MODULUS = 2048; // bits, RFC 7518 §3.3
const MAX_NUMBER = 2731; // base64url characters of 16384 bits, where OpenSSL stops
const MAX_EXPONENT = 2n ** 64n; // OpenSSL's bound for large keys
const DIGEST_INFO = "3031300d060960864801650304020105000420"; // RFC 8017 §9.2 note 1, SHA-256

// ---- bytes, base64url, JSON ----

export const utf8 = (text) => new TextEncoder().encode(text);
const hex = (bytes) => Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
const number = (bytes) => BigInt("0x0" + hex(bytes));
export const has = (object, name) => Object.hasOwn(object, name);

// A quoted text may be hostile and long: escape it, so that nothing moves or hides, and cut it.
export const printable = (text) =>
  text.replace(/[^\P{C}\n]|[^\P{Z} ]/gu, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
const quote = (value) => {
  const text = printable(JSON.stringify(value) ?? "missing");
  return text.length > 100 ? text.slice(0, 97) + "..." : text;
};

export function base64url(text) {
  const right = /^[A-Za-z0-9_-]*$/.test(text) && text.length % 4 !== 1;
  const binary = right ? atob(text.replaceAll("-", "+").replaceAll("_", "/")) : "";
  // atob ignores spare bits: without this, a signed token has several spellings (RFC 4648 §3.5).
  const again = btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  if (again !== text) malformed("not base64url: padding, foreign characters or spare bits");
  return Uint8Array.from(binary, (c) => c.charCodeAt(0));
}

export function parseObject(bytes) {
  const bad = (cause) => malformed(`not acceptable JSON: ${cause}`);
  let text, value;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch { bad("not UTF-8"); }
  if ((text.match(/[[{]/g) ?? []).length > MAX_BRACKETS) bad("too many brackets");
  try { value = JSON.parse(text); } catch { bad("it cannot be read"); }
  checkSpelling(text, bad);
  const isObject = typeof value === "object" && value !== null && !Array.isArray(value);
  return isObject ? value : malformed("JSON, but not an object");
}

// RFC 7515 §4: with a member twice, two readers see two tokens. JSON.parse would keep the last.
const ITEM = /("(?:[^"\\]|\\.)*")(\s*:)?|[{}]|-?\d[^,\]}\s]*/g; // string, name, brace, number
function checkSpelling(text, bad) {
  const open = [];
  for (const [item, string, colon] of text.matchAll(ITEM)) {
    if (item === "{") open.push(new Set());
    else if (item === "}") open.pop();
    else if (!string) { if (!Number.isFinite(Number(item))) bad("a number out of range"); }
    else {
      const name = JSON.parse(string);
      if (/\p{Surrogate}/u.test(name)) bad("half a surrogate pair");
      if (colon && open.at(-1).has(name)) bad("a member occurs twice");
      if (colon) open.at(-1).add(name);
    }
  }
}

// ---- SHA-256 (FIPS 180-4 §6.2) and RSA (RFC 8017) ----

const PRIMES = [];
for (let n = 2; PRIMES.length < 64; n++) if (PRIMES.every((p) => n % p)) PRIMES.push(n);
const fraction = (x) => ((x % 1) * 2 ** 32) | 0; // the first 32 bits behind the point
const ROUND = PRIMES.map((p) => fraction(Math.cbrt(p)));
const rotate = (x, n) => (x >>> n) | (x << (32 - n));

export function sha256(bytes) {
  const padded = new Uint8Array((bytes.length + 72) & ~63); // 0x80, zeros, 8 octets of length
  padded.set(bytes);
  padded[bytes.length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setUint32(padded.length - 4, bytes.length * 8);
  const state = PRIMES.slice(0, 8).map((p) => fraction(Math.sqrt(p)));
  for (let at = 0; at < padded.length; at += 64) {
    const w = Array.from({ length: 16 }, (_, i) => view.getInt32(at + 4 * i));
    for (let i = 16; i < 64; i++) {
      const [x, y] = [w[i - 15], w[i - 2]];
      w[i] = (w[i - 16] + w[i - 7] + (rotate(x, 7) ^ rotate(x, 18) ^ (x >>> 3)) +
        (rotate(y, 17) ^ rotate(y, 19) ^ (y >>> 10))) | 0;
    }
    let [a, b, c, d, e, f, g, h] = state;
    for (let i = 0; i < 64; i++) {
      const t = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) +
        ROUND[i] + w[i];
      const u = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      [h, g, f, e, d, c, b, a] = [g, f, e, (d + t) | 0, c, b, a, (t + u) | 0];
    }
    [a, b, c, d, e, f, g, h].forEach((x, i) => { state[i] = (state[i] + x) | 0; });
  }
  return state.map((x) => (x >>> 0).toString(16).padStart(8, "0")).join("");
}

export function power(base, exponent, modulus) {
  let result = 1n;
  for (; exponent; exponent >>= 1n, base = (base * base) % modulus) {
    if (exponent & 1n) result = (result * base) % modulus;
  }
  return result;
}

// The block that was signed, in hex, as long as n; empty if the signature is out of range.
function openSignature(signature, n, e) {
  const octets = Math.ceil(n.toString(16).length / 2);
  const s = number(signature);
  if (signature.length !== octets || s >= n) return "";
  return power(s, e, n).toString(16).padStart(2 * octets, "0");
}

// EMSA-PKCS1-v1_5 (RFC 8017 §9.2): 00 01 ff...ff 00 DigestInfo hash, as long as n.
function paddedHash(hash, n) {
  const tail = "00" + DIGEST_INFO + hash;
  const octets = Math.ceil(n.toString(16).length / 2);
  return "0001" + "ff".repeat(octets - 2 - tail.length / 2) + tail;
}

// ---- the checks, in the order in which bytes are believed ----

function form(seen) {
  if (seen.token.length > MAX_TOKEN) malformed(`longer than ${MAX_TOKEN} characters`);
  const segments = seen.token.split(".");
  if (segments.length !== 3) malformed(`segments between dots: ${segments.length}, not 3`);
  const [head, payload, signature] = segments.map(base64url);
  Object.assign(seen, { header: parseObject(head), payload, signature });
}

function header({ header }) {
  if (header.alg !== "RS256") unsupported(`alg is ${quote(header.alg)}, not "RS256"`);
  // RFC 7515 §4.1.11: understood, or refused
  if (has(header, "crit")) unsupported("the header has crit, an extension");
  if (has(header, "b64") && header.b64 !== true) { // RFC 7797 §3: false changes the signing input
    unsupported(`b64 is ${quote(header.b64)}, not true`);
  }
  for (const name of ["kid", "typ"]) {
    if (has(header, name) && typeof header[name] !== "string") {
      malformed(`${name} is ${quote(header[name])}, not a string`);
    }
  }
}

function key(seen) {
  const { header, jwks } = seen;
  if (!Array.isArray(jwks?.keys)) unusable('not a JWKS: expected {"keys": [...]}');
  const keys = jwks.keys.filter((jwk) => jwk?.kty === "RSA");
  const named = keys.filter((jwk) => !has(header, "kid") || jwk.kid === header.kid);
  const found = named.filter((jwk) => !otherPurpose(jwk)); // one kid may stand for RS512, too
  if (named.length && !found.length) unusable(otherPurpose(named[0]));
  if (found.length !== 1) {
    const name = has(header, "kid") ? `kid ${quote(header.kid)}` : "no kid";
    refusal("UnknownKey")(`the token has ${name}: of ${keys.length} RSA keys, ${found.length} fit`);
  }
  Object.assign(seen, numbers(found[0]));
}

// The member by which a key says that it does not verify RS256 (RFC 7517 §4.2 to §4.4), or "".
function otherPurpose(jwk) {
  for (const [name, right] of [["use", "sig"], ["alg", "RS256"]]) {
    if (has(jwk, name) && jwk[name] !== right) {
      return `the key's ${name} is ${quote(jwk[name])}, not "${right}"`;
    }
  }
  const operations = has(jwk, "key_ops") ? jwk.key_ops : ["verify"];
  const verifies = Array.isArray(operations) && operations.includes("verify");
  return verifies ? "" : `the key's key_ops are ${quote(operations)}, without verify`;
}

function numbers(jwk) {
  const [n, e] = [natural(jwk, "n"), natural(jwk, "e")];
  const bits = n.toString(2).length;
  if (bits < MIN_MODULUS || n % 2n === 0n) unusable(`a modulus of ${bits} bits: too small or even`);
  if (e < 3n || e >= MAX_EXPONENT || e % 2n === 0n) {
    unusable(`a public exponent of ${quote(String(e))}: too small, too large or even`);
  }
  return { n, e };
}

function natural(jwk, name) {
  const text = jwk[name];
  if (typeof text !== "string" || text.length > MAX_NUMBER) {
    unusable(`the key's ${name} is missing, not a string, or too long`);
  }
  let bytes;
  try { bytes = base64url(text); } catch (error) {
    unusable(`the key's ${name} is ${error.message}`);
  }
  if (!bytes[0]) { // RFC 7518 §6.3.1.1
    unusable(`the key's ${name} is empty or starts with a zero octet`);
  }
  return number(bytes);
}

function signature(seen) {
  const { opened, needed } = openedSignature(seen);
  if (opened !== needed) { // whole, never parsed: Bleichenbacher 2006, BERserk 2014
    refusal("BadSignature")("the signature is not this key's over this header and payload");
  }
}

// The padded hash in the signature, and the one that this token needs.
export function openedSignature({ token, signature, n, e }) {
  const hash = sha256(utf8(token.slice(0, token.lastIndexOf("."))));
  return { hash, opened: openSignature(signature, n, e), needed: paddedHash(hash, n) };
}

export const isText = (value) => typeof value === "string";
const isTexts = (value) => isText(value) || (Array.isArray(value) && value.every(isText));
export const isDate = (value) => typeof value === "number";
// RFC 7519 §4.1: the registered claims, their types, and what they say.
export const REGISTERED = {
  iss: [isText, "a string", "who issued it"],
  sub: [isText, "a string", "whom it is about"],
  aud: [isTexts, "a string or a list of strings", "whom it is for"],
  exp: [isDate, "a number of seconds", "expires"],
  nbf: [isDate, "a number of seconds", "valid from"],
  iat: [isDate, "a number of seconds", "issued"],
  jti: [isText, "a string", "its serial number"],
};
const TYPES = ["jwt", "at+jwt"]; // RFC 8725 §3.11: another kind of token must not pass for these

function claims(seen) {
  const typ = has(seen.header, "typ") ? seen.header.typ : "JWT";
  if (!TYPES.includes(typ.toLowerCase().replace(/^application\//, ""))) {
    unsupported(`typ is ${quote(typ)}, another kind`);
  }
  seen.claims = parseObject(seen.payload);
  for (const [name, [fits, kind]] of Object.entries(REGISTERED)) {
    if (has(seen.claims, name) && !fits(seen.claims[name])) {
      invalid(`${name} is ${quote(seen.claims[name])}, not ${kind}`);
    }
  }
}

function dates({ claims, now, leeway }) {
  if (!has(claims, "exp")) invalid("there is no exp: the token would be valid for ever");
  // RFC 7519 §4.1.4: "on or after" is too late. NaN refuses, too.
  if (!(now - leeway < claims.exp)) refusal("ExpiredToken")(`exp is ${when(claims.exp, now)}`);
  for (const name of ["nbf", "iat"]) {
    if (has(claims, name) && !(claims[name] <= now + leeway)) {
      refusal("ImmatureToken")(`${name} is ${when(claims[name], now)}`);
    }
  }
}

function issuer({ claims, issuer }) {
  if (issuer && claims.iss !== issuer) {
    refusal("WrongIssuer")(`iss is ${quote(claims.iss)}, not ${quote(issuer)}`);
  }
}

function audience({ claims, audience }) {
  const named = [claims.aud ?? []].flat();
  if ((has(claims, "aud") || audience) && !named.includes(audience)) {
    const name = audience ? quote(audience) : "any that we are";
    refusal("WrongAudience")(`aud is ${quote(claims.aud)}, without ${name}`);
  }
}

export const CHECKS = [form, header, key, signature, claims, dates, issuer, audience];

// All that was seen of a token; and if it is refused, the check that `failed`, `kind` and `cause`.
export function inspect(token, jwks, checks) {
  const seen = { leeway: 0, ...checks, token, jwks };
  for (const check of CHECKS) {
    try { check(seen); } catch (error) {
      if (!(error instanceof InvalidToken)) throw error;
      return { ...seen, failed: check.name, kind: error.kind, cause: error.message };
    }
  }
  return seen;
}

// A date and how far away it is: 2026-09-21 14:13:20 UTC (in 59 min).
export function when(seconds, now) {
  const date = new Date(seconds * 1000);
  if (!(Math.abs(date.getUTCFullYear()) <= 9999)) return `${seconds}, beyond the calendar`;
  const distance = Math.abs(seconds - now);
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const [unit, size] = units.find(([name, size]) => distance >= 2 * size || name === "s");
  const amount = `${Math.floor(distance / size)} ${unit}`;
  const text = date.toISOString().slice(0, -5).replace("T", " ");
  return `${text} UTC (${seconds > now ? `in ${amount}` : `${amount} ago`})`;
}
