// A stock OpenID provider (npm oidc-provider) with one client, which logs in by private_key_jwt alone. Its settings come
// as one JSON line on standard input; it answers one line, `ready`, and serves until its input ends.
import { createServer } from "node:https";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const lines = createInterface({ input: process.stdin });
const settings = JSON.parse((await lines[Symbol.asyncIterator]().next()).value);
const home = pathToFileURL(`${settings.modules}/oidc-provider/lib/index.js`);
const { Provider } = await import(home.href);

const provider = new Provider(settings.issuer, {
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
  ],
  clientAuthMethods: ["private_key_jwt"],
  scopes: ["read", "write"],
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => settings.resource,
      useGrantedResource: () => true,
      getResourceServerInfo: (ctx, resource) => ({
        audience: resource,
        scope: "read write",
        accessTokenTTL: 240,
        accessTokenFormat: "jwt",
        jwt: { sign: { alg: "RS256" } },
      }),
    },
  },
});
const tell = (name) => provider.on(name, (ctx, error) => console.log(`${name}: ${error?.message} ${error?.error_detail}`));
["grant.error", "server_error"].forEach(tell);
provider.on("grant.success", () => console.log("granted"));
lines.on("close", () => process.exit(0));
createServer({ key: settings.key, cert: settings.cert }, provider.callback()).listen(settings.port, "127.0.0.1", () =>
  console.log("ready"),
);
