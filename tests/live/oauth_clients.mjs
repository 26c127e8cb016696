// Tokens by openid-client, oauth4webapi and simple-oauth2, as one JSON object: what each was asked
// for, and what it got; jose verifies one. oauth_node.py judges it.
import { createRemoteJWKSet, jwtVerify } from "jose";
import * as oauth from "oauth4webapi";
import * as oidc from "openid-client";
import { ClientCredentials, ResourceOwnerPassword } from "simple-oauth2";

const { ISSUER, NAME, PASSWORD } = process.env;
const found = {};

async function take(name, call) {
  try {
    found[name] = await call();
  } catch (error) {
    const challenge = error.cause?.[0]?.scheme; // of a 401, in WWW-Authenticate
    found[name] = { failed: challenge ?? error.error ?? error.data?.payload?.error ?? `${error}` };
  }
}

async function openidClient() {
  const ways = {
    basic: oidc.ClientSecretBasic(PASSWORD),
    post: oidc.ClientSecretPost(PASSWORD),
  };
  for (const algorithm of ["oidc", "oauth2"]) {
    const options = { algorithm, execute: [oidc.allowInsecureRequests] };
    for (const [way, authentication] of Object.entries(ways)) {
      await take(`openid-client ${algorithm} credentials ${way}`, async () => {
        const url = new URL(ISSUER);
        const config = await oidc.discovery(url, NAME, undefined, authentication, options);
        return oidc.clientCredentialsGrant(config);
      });
    }
    await take(`openid-client ${algorithm} password none`, async () => {
      const url = new URL(ISSUER);
      const config = await oidc.discovery(url, "app", undefined, oidc.None(), options);
      const fields = { username: NAME, password: PASSWORD };
      return oidc.genericGrantRequest(config, "password", fields);
    });
    await take(`openid-client ${algorithm} narrowed`, async () => {
      const url = new URL(ISSUER);
      const config = await oidc.discovery(url, NAME, undefined, ways.basic, options);
      return oidc.clientCredentialsGrant(config, { scope: "read", resource: "https://api.example" });
    });
    for (const [way, wrong] of Object.entries({
      basic: oidc.ClientSecretBasic("wrong"),
      post: oidc.ClientSecretPost("wrong"),
    })) {
      await take(`openid-client ${algorithm} refused ${way}`, async () => {
        const url = new URL(ISSUER);
        const config = await oidc.discovery(url, NAME, undefined, wrong, options);
        return oidc.clientCredentialsGrant(config);
      });
    }
  }
}

async function webapi() {
  const insecure = { [oauth.allowInsecureRequests]: true };
  const url = new URL(ISSUER);
  const answer = await oauth.discoveryRequest(url, { algorithm: "oauth2", ...insecure });
  const server = await oauth.processDiscoveryResponse(url, answer);
  const client = { client_id: NAME };
  for (const [way, authentication] of [
    ["basic", oauth.ClientSecretBasic(PASSWORD)],
    ["post", oauth.ClientSecretPost(PASSWORD)],
  ]) {
    await take(`oauth4webapi credentials ${way}`, async () => {
      const fields = new URLSearchParams();
      const response = await oauth.clientCredentialsGrantRequest(
        server, client, authentication, fields, insecure,
      );
      return oauth.processClientCredentialsResponse(server, client, response);
    });
  }
  await take("oauth4webapi password none", async () => {
    const app = { client_id: "app" };
    const fields = new URLSearchParams({ username: NAME, password: PASSWORD });
    const response = await oauth.genericTokenEndpointRequest(
      server, app, oauth.None(), "password", fields, insecure,
    );
    return oauth.processGenericTokenEndpointResponse(server, app, response);
  });
}

async function simple() {
  for (const [way, options] of Object.entries({
    strict: { authorizationMethod: "header", credentialsEncodingMode: "strict" },
    loose: { authorizationMethod: "header", credentialsEncodingMode: "loose" },
    post: { authorizationMethod: "body" },
    json: { authorizationMethod: "body", bodyFormat: "json" },
  })) {
    const auth = { tokenHost: ISSUER, tokenPath: new URL(ISSUER).pathname.replace(/\/$/, "") + "/auth" };
    await take(`simple-oauth2 credentials ${way}`, async () => {
      const client = new ClientCredentials({ client: { id: NAME, secret: PASSWORD }, auth, options });
      return (await client.getToken({})).token;
    });
    await take(`simple-oauth2 password ${way}`, async () => {
      const client = new ResourceOwnerPassword({ client: { id: "app", secret: "" }, auth, options });
      return (await client.getToken({ username: NAME, password: PASSWORD })).token;
    });
  }
}

async function verified() {
  const keys = createRemoteJWKSet(new URL(`${ISSUER}/.well-known/jwks.json`));
  const token = found["openid-client oauth2 credentials basic"].access_token;
  for (const [name, audience] of [["jose", "shop"], ["jose refused", "bank"]]) {
    await take(name, async () => {
      const { payload } = await jwtVerify(token, keys, { issuer: ISSUER, audience });
      return { token_type: "Bearer", access_token: token, payload };
    });
  }
}

async function accessToken() {
  const url = new URL(ISSUER);
  const insecure = { [oauth.allowInsecureRequests]: true };
  const server = await oauth.processDiscoveryResponse(
    url, await oauth.discoveryRequest(url, { algorithm: "oauth2", ...insecure }),
  );
  const token = found["openid-client oauth2 credentials basic"].access_token;
  const request = new Request(`${ISSUER}/things`, { headers: { Authorization: `Bearer ${token}` } });
  const keys = createRemoteJWKSet(new URL(`${ISSUER}/.well-known/jwks.json`));
  await take("oauth4webapi accessToken", async () =>
    oauth.validateJwtAccessToken(server, request, "shop", insecure),
  );
  await take("jose accessToken", async () => {
    const { payload } = await jwtVerify(token, keys, { audience: "shop", typ: "at+jwt" });
    return payload;
  });
}

await openidClient();
await verified();
await webapi();
await simple();
await accessToken();
process.stdout.write(JSON.stringify(found));
