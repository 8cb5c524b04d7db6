// The official TypeScript SDK's authorization server and MCP server, each on its own loopback origin.
//
// Environment: PROVIDER is `demo`, the SDK's own in-memory provider as it is (no renewal, no revocation), or `renewing`,
// the same with what most who start from it add. TLS_PEM: a file with key and certificate; then both speak https.
// Prints one line `READY {"issuer": …, "mcp": …}`.

import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import { DemoInMemoryAuthProvider } from '@modelcontextprotocol/sdk/examples/server/demoInMemoryOAuthProvider.js';
import { InvalidTokenError } from '@modelcontextprotocol/sdk/server/auth/errors.js';
import { requireBearerAuth } from '@modelcontextprotocol/sdk/server/auth/middleware/bearerAuth.js';
import { createOAuthMetadata, getOAuthProtectedResourceMetadataUrl, mcpAuthMetadataRouter, mcpAuthRouter } from '@modelcontextprotocol/sdk/server/auth/router.js';
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js';
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js';
import express from 'express';

const SCOPES = ['mcp:tools'];
const pem = process.env.TLS_PEM && readFileSync(process.env.TLS_PEM);

// ---- the authorization server ----

class RenewingProvider extends DemoInMemoryAuthProvider {
  families = new Map(); // refresh token => { spent, grant: { access, resource, scopes } }

  async exchangeAuthorizationCode(client, code) {
    const { access_token: access, ...answer } = await super.exchangeAuthorizationCode(client, code);
    const { resource, scopes } = this.tokens.get(access);
    return { ...answer, access_token: access, refresh_token: this.refreshToken({ access, resource, scopes }) };
  }

  refreshToken(grant) {
    const token = randomUUID();
    this.families.set(token, { spent: false, grant });
    return token;
  }

  async exchangeRefreshToken(client, refreshToken) {
    const found = this.families.get(refreshToken);
    if (!found || found.spent) throw new Error('Invalid refresh token'); // as the demo does for codes: the SDK makes it 500
    found.spent = true;
    const row = this.tokens.get(found.grant.access);
    this.tokens.delete(found.grant.access);
    found.grant.access = randomUUID();
    this.tokens.set(found.grant.access, { ...row, token: found.grant.access });
    return { access_token: found.grant.access, token_type: 'bearer', expires_in: 3600, refresh_token: this.refreshToken(found.grant) };
  }

  async revokeToken(client, { token }) {
    this.tokens.delete(this.families.get(token)?.grant.access ?? token);
    this.families.delete(token);
  }

  async verifyAccessToken(token) {
    return super.verifyAccessToken(token).catch((error) => { throw new InvalidTokenError(error.message); });
  }
}

// ---- the protected MCP server ----

async function answer(req, res) {
  const server = new McpServer({ name: 'protected', version: '1' });
  server.registerTool('whoami', {}, ({ authInfo }) => ({ content: [{ type: 'text', text: `client ${authInfo.clientId}` }] }));
  const transport = new StreamableHTTPServerTransport({ sessionIdGenerator: undefined, enableJsonResponse: true });
  res.on('close', () => server.close());
  await server.connect(transport);
  await transport.handleRequest(req, res, req.body);
}

// ---- start ----

const listening = () => new Promise((resolve) => {
  const app = express();
  const server = pem ? createTlsServer({ key: pem, cert: pem }, app) : createServer(app);
  server.listen(0, '127.0.0.1', () => resolve([app, new URL(`${pem ? 'https' : 'http'}://127.0.0.1:${server.address().port}`)]));
});

const [[asApp, issuerUrl], [rsApp, resourceOrigin]] = await Promise.all([listening(), listening()]);
const mcp = new URL('/mcp', resourceOrigin);
const Provider = process.env.PROVIDER === 'renewing' ? RenewingProvider : DemoInMemoryAuthProvider;
const provider = new Provider((resource) => resource?.href === mcp.href);
const options = { provider, issuerUrl, scopesSupported: SCOPES };
asApp.use(mcpAuthRouter(options));
rsApp.use(mcpAuthMetadataRouter({ oauthMetadata: createOAuthMetadata(options), resourceServerUrl: mcp, scopesSupported: SCOPES }));
rsApp.use('/mcp', requireBearerAuth({
  verifier: provider,
  requiredScopes: SCOPES,
  resourceMetadataUrl: getOAuthProtectedResourceMetadataUrl(mcp),
  expectedResource: mcp,
}));
rsApp.post('/mcp', express.json(), answer);
console.log(`\nREADY ${JSON.stringify({ issuer: issuerUrl.href, mcp: mcp.href })}`);
