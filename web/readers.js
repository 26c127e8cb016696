/* Two readers beside the verifier: of what people paste, and of what services take from claims.

     tokenIn     JSON of /auth, "Bearer ...", a curl command, lines -> the token in it
     copies      a token -> the texts that the page copies; tokenIn reads each of them back
     services    claims -> what Spring, Kubernetes, PostgREST and Hasura read in them

   Rules of this file
   - Kindness ends at the paste: `inspect` accepts one spelling, and the page shows what it judges.
   - A text with any letter that no token has is left as it is.
   - The services are described with their defaults, and the usual setting for groups.

   Left out: what the services check of a signature, of dates and of audiences. */

import { MAX_TOKEN, has, isText, parseObject, utf8 } from "./inspector.js";

export const MAX_PASTE = 4 * MAX_TOKEN; // characters; as many as maxlength in index.html
const MEMBERS = ["access_token", "token"]; // RFC 6749 §5.1, and what /auth has beside it

// ---- what is pasted ----

// Alone, as a field, or as a field between quotes in a command; its lines may be broken.
const BEARER = /(?:^|["'])(?:Authorization:\s*)?Bearer\s+([\w.-]+(?:\s+[\w.-]+)*)\s*(?:$|["'])/i;

// The token in a text, and a note for people on what was taken or cut.
export function tokenIn(text) {
  if (text.length >= MAX_PASTE) {
    const note = `Cut after ${MAX_PASTE} characters: no token is that long.`;
    return { token: text.slice(0, MAX_PASTE), note };
  }
  const trimmed = text.trim();
  if (trimmed.startsWith("{")) return memberOf(trimmed);
  const [, bearer] = BEARER.exec(trimmed) ?? [];
  const bare = bearer ?? trimmed;
  const token = /^[\s\w.-]*$/.test(bare) ? bare.replace(/\s+/g, "") : bare;
  const note = bearer ? "Taken from behind the word Bearer."
    : token !== trimmed ? "Lines and spaces were joined." : "";
  return { token, note };
}

function memberOf(text) {
  let object;
  // A terminal breaks lines inside strings, too; outside of strings line ends mean nothing.
  const joined = text.split("\n").map((line) => line.trim()).join("");
  try { object = parseObject(utf8(joined)); } catch {
    return { token: text, note: "" };
  }
  const name = MEMBERS.find((member) => isText(object[member]));
  if (!name) return { token: text, note: `JSON without ${MEMBERS.join(" or ")}.` };
  return { token: object[name].trim(), note: `Taken from the member ${name}.` };
}

// Only for what has the letters of a token: a shell or a terminal may receive the text.
export function copies(token) {
  if (!/^[\w-]+\.[\w-]*\.[\w-]*$/.test(token)) return null;
  const header = `Authorization: Bearer ${token}`;
  return { token, header, curl: `curl -H '${header}' URL` };
}

// ---- what services read: rows of a name, the lines that it reads, and a sentence ----

const isTexts = (value) => Array.isArray(value) && value.every(isText);
const texts = (value) => (isText(value) ? [value] : isTexts(value) ? value : []);

function spring(claims) {
  const name = ["scope", "scp"].find((claim) => has(claims, claim)); // the first of them alone
  const found = name && claims[name];
  const scopes = isText(found) ? found.split(" ").filter(Boolean) : texts(found);
  const lines = scopes.map((scope) => `authority SCOPE_${scope}`);
  if (isText(claims.sub)) lines.unshift(`name ${claims.sub}`);
  const says = scopes.length ? `name from sub, authorities from ${name}`
    : name ? `${name} holds no scope: no authority` : "neither scope nor scp: no authority";
  return ["Spring", lines, says];
}

function kubernetes(claims) {
  const { iss, sub, groups } = claims;
  if (!isText(iss) || !isText(sub)) return ["Kubernetes", [], "refused: it needs iss and sub"];
  const lacks = [
    has(claims, "aud") ? "" : "an aud that is its client ID",
    iss.startsWith("https:") ? "" : "an issuer with https",
  ].filter(Boolean);
  const says = texts(groups).length ? "user from iss and sub, groups with --oidc-groups-claim=groups"
    : "user from iss and sub, no groups";
  const lines = [`user ${iss}#${sub}`, ...texts(groups).map((group) => `group ${group}`)];
  const more = lacks.length ? `; it also needs ${lacks.join(" and ")}` : "";
  return ["Kubernetes", lines, says + more];
}

function postgrest({ role }) {
  if (isText(role)) return ["PostgREST", [`role ${role}`], "the database role, from role"];
  return ["PostgREST", [], "no role that is text: the anonymous role, if one is configured"];
}

const NAMESPACE = "https://hasura.io/jwt/claims"; // a name, never fetched
const DEFAULT = "x-hasura-default-role", ALLOWED = "x-hasura-allowed-roles";

function hasura(claims) {
  const found = has(claims, NAMESPACE) ? claims[NAMESPACE] : null;
  if (typeof found !== "object" || found === null) {
    return ["Hasura", [], `refused: no object named ${NAMESPACE}`];
  }
  const entries = Object.entries(found).map(([name, value]) => [name.toLowerCase(), value]);
  const variables = new Map(entries.filter(([name]) => name.startsWith("x-hasura-")));
  const [role, roles] = [variables.get(DEFAULT), variables.get(ALLOWED)];
  if (!isText(role) || !isTexts(roles)) {
    return ["Hasura", [], `refused: it needs the text ${DEFAULT} and the list ${ALLOWED}`];
  }
  if (!roles.includes(role)) return ["Hasura", [], `refused: ${ALLOWED} is without ${DEFAULT}`];
  const others = [...variables].filter(([name]) => name !== DEFAULT && name !== ALLOWED);
  const lines = others.map(([name, value]) => `${name}: ${isText(value) ? value : "not text"}`);
  lines.unshift(`role ${role} of ${roles.join(", ")}`);
  return ["Hasura", lines, `roles and session variables from ${NAMESPACE}`];
}

const SERVICES = [spring, kubernetes, postgrest, hasura];
export const services = (claims) => SERVICES.map((read) => read(claims));
