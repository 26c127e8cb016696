// The whole of POST /register, POST /auth and the key set as a Node programmer writes it, for bench/auth.py:
// node:http, node:crypto on its pool of threads, @node-rs/argon2, libsql. Logins share a commit.
//
//     node auth.mjs PORT DATABASE [forget]
//
// With `forget`, each login costs Argon2id; else a password that was verified is remembered.

import { createHmac, generateKeyPairSync, randomBytes, randomUUID, sign } from "node:crypto";
import { createServer } from "node:http";
import { promisify } from "node:util";
import { hash, verify } from "@node-rs/argon2";
import Database from "libsql";

const [port, file, forget] = process.argv.slice(2);
const database = new Database(file);
database.pragma("journal_mode=WAL");
database.pragma("synchronous=FULL");
database.exec(`
  CREATE TABLE users(id INTEGER PRIMARY KEY, username TEXT UNIQUE, password_hash TEXT,
    last_login TEXT);
  CREATE TABLE auth_logs(id INTEGER PRIMARY KEY, request_ip TEXT, request_timestamp TEXT,
    user_id INTEGER);`);
const insertUser = database.prepare("INSERT INTO users (username, password_hash) VALUES (?, ?)");
const findUser = database.prepare("SELECT id, password_hash FROM users WHERE username = ?");
const findHash = database.prepare("SELECT password_hash FROM users WHERE id = ?");
const touchUser = database.prepare("UPDATE users SET last_login = ? WHERE id = ?");
const insertAttempt = database.prepare(
  "INSERT INTO auth_logs (request_ip, request_timestamp, user_id) VALUES (?, ?, ?)",
);
const { privateKey, publicKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
const jwk = { ...publicKey.export({ format: "jwk" }), use: "sig", alg: "RS256", kid: "1" };
const secret = randomBytes(32);
const cost = { memoryCost: 19456, timeCost: 2, parallelism: 1 };
const verified = new Map(); // name -> the account, with an HMAC of its password
const signed = promisify(sign);
const remembered = (password) => createHmac("sha256", secret).update(password).digest("hex");
const segment = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
const header = segment({ alg: "RS256", typ: "JWT", kid: "1" });

async function find({ username, password }) {
  const digest = remembered(password);
  const known = forget ? undefined : verified.get(username);
  if (known) return known.digest === digest ? known : undefined;
  const user = findUser.get(username);
  if (!user || !(await verify(user.password_hash, password))) return undefined;
  const account = { id: user.id, hash: user.password_hash, digest };
  verified.set(username, account);
  return account;
}

let waiting = [];
const commit = database.transaction((rows) => {
  for (const { address, time, account } of rows) {
    // A password that was changed meanwhile is worth no token.
    if (findHash.get(account.id)?.password_hash !== account.hash) throw new Error("superseded");
    insertAttempt.run(address, time, account.id);
    touchUser.run(time, account.id);
  }
});

// One commit for all attempts that wait.
function record(row) {
  return new Promise((resolve, reject) => {
    if (!waiting.length) setImmediate(write);
    waiting.push({ ...row, resolve, reject });
  });
}

function write() {
  const rows = waiting;
  waiting = [];
  try {
    commit(rows);
    for (const row of rows) row.resolve();
  } catch (error) {
    for (const row of rows) row.reject(error);
  }
}

async function register({ username }) {
  const password = randomUUID();
  insertUser.run(username, await hash(password, cost));
  return [201, { password }];
}

async function auth(given, request) {
  const account = await find(given);
  if (!account) return [401, { error: "invalid_grant" }];
  const now = Math.floor(Date.now() / 1000);
  const input = `${header}.${segment({
    iss: `http://${request.headers.host}`, sub: given.username, iat: now, nbf: now,
    exp: now + 3600, jti: randomUUID(),
  })}`;
  const signature = await signed("sha256", Buffer.from(input), privateKey);
  const time = new Date().toISOString().replace("T", " ").slice(0, 23);
  await record({ address: request.socket.remoteAddress, time, account });
  return [200, { token: `${input}.${signature.toString("base64url")}`, expires_in: 3600 }];
}

const routes = {
  "/register": register, "/auth": auth, "/.well-known/jwks.json": () => [200, { keys: [jwk] }],
};
createServer(async (request, response) => {
  let status = 404, document = { error: "not_found" };
  try {
    const parts = [];
    for await (const part of request) parts.push(part);
    const endpoint = routes[request.url];
    if (endpoint) [status, document] = await endpoint(JSON.parse(Buffer.concat(parts).toString() || "{}"), request);
  } catch (error) {
    [status, document] = [500, { error: String(error) }];
  }
  const body = JSON.stringify(document);
  response.writeHead(status, {
    "Content-Type": "application/json", "Content-Length": Buffer.byteLength(body),
    "Cache-Control": "no-store",
  });
  response.end(body);
}).listen(Number(port), "127.0.0.1");
