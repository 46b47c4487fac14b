// A stock OpenID provider (npm oidc-provider) with two clients: one logs in by private_key_jwt alone, the other with its
// secret by the method that the settings name. The second exchanges tokens (RFC 8693): the provider has no such grant of
// its own, so it is registered here, and verifies the subject token by the broker's keys with the provider's own library.
// Settings come as one JSON line on standard input; it answers one line, `ready`, and serves until its input ends.
import { createServer } from "node:https";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const lines = createInterface({ input: process.stdin });
const settings = JSON.parse((await lines[Symbol.asyncIterator]().next()).value);
const home = pathToFileURL(`${settings.modules}/oidc-provider/lib/index.js`);
const { Provider, errors } = await import(home.href);
const { createLocalJWKSet, exportJWK, generateKeyPair, jwtVerify } = await import(pathToFileURL(`${settings.modules}/jose/dist/webapi/index.js`).href);
const EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange";

// Keys of its own for each start.
const own = async (alg) => {
  const { privateKey, publicKey } = await generateKeyPair(alg, { extractable: true });
  const named = { alg, use: "sig", kid: `stock-${alg}` };
  return { secret: { ...(await exportJWK(privateKey)), ...named }, open: { ...(await exportJWK(publicKey)), ...named } };
};
const keys = [await own("RS256"), await own("ES256")];
const sign = { alg: settings.alg ?? "RS256" };

const provider = new Provider(settings.issuer, {
  jwks: { keys: keys.map((key) => key.secret) },
  clients: [
    {
      client_id: "sidegate-ledger",
      token_endpoint_auth_method: "private_key_jwt",
      token_endpoint_auth_signing_alg: "ES256",
      jwks: settings.jwks,
      grant_types: ["client_credentials"],
      response_types: [],
      redirect_uris: [],
    },
    {
      client_id: "sidegate:exchange",
      client_secret: settings.secret ?? "never",
      token_endpoint_auth_method: settings.method ?? "client_secret_basic",
      grant_types: [EXCHANGE],
      response_types: [],
      redirect_uris: [],
    },
  ],
  clientAuthMethods: ["private_key_jwt", "client_secret_basic", "client_secret_post"],
  scopes: ["read", "write"],
  extraTokenClaims: (ctx) => (ctx.agent ? { agent: ctx.agent } : {}),
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    revocation: { enabled: true },
    introspection: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => settings.resource,
      useGrantedResource: () => true,
      getResourceServerInfo: (ctx, resource) => ({
        audience: resource,
        scope: "read write",
        accessTokenTTL: 240,
        accessTokenFormat: settings.format ?? "jwt",
        jwt: { sign },
      }),
    },
  },
});
// By here the provider's own code has authenticated the client.
const exchange = async (ctx) => {
  const { subject_token, subject_token_type, audience, scope } = ctx.oidc.params;
  if (subject_token_type !== "urn:ietf:params:oauth:token-type:jwt") throw new errors.InvalidRequest("subject_token_type");
  const keys = createLocalJWKSet(settings.jwks);
  const wanted = { issuer: settings.broker, audience: settings.issuer, typ: "JWT", maxTokenAge: 60, clockTolerance: 30 };
  const subject = await jwtVerify(subject_token, keys, wanted).catch((error) => {
    throw new errors.InvalidGrant(error.message);
  });
  const token = new provider.ClientCredentials({ client: ctx.oidc.client, scope });
  token.resourceServer = new provider.ResourceServer(audience, {
    audience,
    scope: "read write",
    accessTokenTTL: 240,
    accessTokenFormat: "jwt",
    jwt: { sign },
  });
  ctx.agent = subject.payload.sub;
  ctx.body = {
    access_token: await token.save(),
    issued_token_type: "urn:ietf:params:oauth:token-type:access_token",
    token_type: "Bearer",
    expires_in: token.expiration,
    scope,
  };
};
const params = ["subject_token", "subject_token_type", "requested_token_type", "audience", "scope"];
provider.registerGrantType(EXCHANGE, exchange, params);
const tell = (name) => provider.on(name, (ctx, error) => console.log(`${name}: ${error?.message} ${error?.error_detail}`));
["grant.error", "server_error"].forEach(tell);
provider.on("grant.success", () => console.log("granted"));
provider.on("client_credentials.destroyed", (token) => console.log(`revoked ${token.jti.slice(0, 8)}`));
console.log(`keys ${JSON.stringify({ keys: keys.map((key) => key.open) })}`);
lines.on("close", () => process.exit(0));
createServer({ key: settings.key, cert: settings.cert }, provider.callback()).listen(settings.port, "127.0.0.1", () =>
  console.log("ready"),
);
