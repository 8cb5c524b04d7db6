// A real authorization server (npm oidc-provider) and an MCP server protected by it, each on its own loopback origin.
//
// Environment: ACCESS_TOKEN_TTL (seconds), ACCESS_TOKEN_FORMAT (opaque or jwt).
// Prints one line `READY {"issuer": …, "mcp": …, "control": …}`; the control origin answers
//   GET  /__stats     what has been counted since the last reset
//   POST /__control   any of: "token": [answer, …]; "refreshGrace": seconds; "accessTokenTtl": whole seconds, at least 1;
//                     "forgetAccessTokens": true (opaque ones are refused from now on); "reset": true (count anew)
// where each `answer` is spent on one token request:
//   {"status": 503, "headers": {…}, "body": "…"}   this instead of the provider's answer; the request is not processed
//   {"lose": true}                                 the request is processed, then the connection is cut without an answer

import { createServer } from 'node:http';
import { createRemoteJWKSet, jwtVerify } from 'jose';
import Provider, { errors } from 'oidc-provider';

const SCOPES = ['mcp:read', 'mcp:write'];
const TOKEN_FORMAT = process.env.ACCESS_TOKEN_FORMAT ?? 'opaque';
const JSON_TYPE = { 'content-type': 'application/json' };

const knobs = { token: [], refreshGrace: 0, accessTokenTtl: Number(process.env.ACCESS_TOKEN_TTL ?? 3600) };
const emptyStats = () => ({ requests: {}, granted: {}, refused: {}, registered: 0, deregistered: 0, familiesRevoked: 0 });
let stats = emptyStats();
const count = (table, key) => { table[key] = (table[key] ?? 0) + 1; };

// ---- storage: oidc-provider's adapter, over one Map, with a grace period for spent refresh tokens ----

const rows = new Map();

class Adapter {
  constructor(model) { this.model = model; }

  key(id) { return `${this.model}:${id}`; }

  async upsert(id, payload) { rows.set(this.key(id), payload); }

  async find(id) {
    const row = rows.get(this.key(id));
    const inGrace = this.model === 'RefreshToken' && row?.consumed > Date.now() / 1000 - knobs.refreshGrace;
    return inGrace ? { ...row, consumed: undefined } : row;
  }

  findWhere(field, value) {
    const mine = `${this.model}:`;
    return [...rows].find(([key, row]) => key.startsWith(mine) && row[field] === value)?.[1];
  }

  async findByUid(uid) { return this.findWhere('uid', uid); }

  async findByUserCode(userCode) { return this.findWhere('userCode', userCode); }

  async consume(id) { rows.get(this.key(id)).consumed = Date.now() / 1000; }

  async destroy(id) { rows.delete(this.key(id)); }

  async revokeByGrantId(grantId) {
    for (const [key, row] of rows) if (row.grantId === grantId) rows.delete(key);
  }
}

// ---- the authorization server ----

function configuration(mcp) {
  return {
    adapter: Adapter,
    scopes: ['openid', 'offline_access', ...SCOPES],
    pkce: { required: () => true },
    rotateRefreshToken: true,
    ttl: { AccessToken: () => knobs.accessTokenTtl },
    cookies: { keys: ['a key for loopback tests only'] },
    findAccount: (ctx, sub) => ({ accountId: sub, claims: () => ({ sub }) }),
    features: {
      devInteractions: { enabled: true },
      deviceFlow: { enabled: true },
      introspection: { enabled: true },
      registration: { enabled: true },
      registrationManagement: { enabled: true, rotateRegistrationAccessToken: true },
      revocation: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (ctx, indicator) => {
          if (indicator !== mcp) throw new errors.InvalidTarget();
          return {
            scope: SCOPES.join(' '),
            audience: mcp,
            accessTokenTTL: knobs.accessTokenTtl,
            accessTokenFormat: TOKEN_FORMAT,
          };
        },
      },
    },
  };
}

function counted(provider) {
  provider.on('grant.success', (ctx) => count(stats.granted, ctx.oidc.params.grant_type));
  provider.on('grant.error', (ctx) => count(stats.refused, ctx.oidc?.params?.grant_type ?? 'unknown'));
  provider.on('grant.revoked', () => { stats.familiesRevoked += 1; });
  provider.on('registration_create.success', () => { stats.registered += 1; });
  provider.on('registration_delete.success', () => { stats.deregistered += 1; });
  return provider;
}

function authorizationServer(provider) {
  const proceed = provider.callback();
  return (req, res) => {
    const path = req.url.split('?')[0];
    count(stats.requests, `${req.method} ${path.replace(/^(\/(auth|interaction|reg))\/.+/, '$1/*')}`);
    const answer = path === '/token' && req.method === 'POST' ? knobs.token.shift() : undefined;
    if (answer?.lose) {
      res.end = () => res.socket.destroy();
    } else if (answer) {
      req.resume();
      res.writeHead(answer.status, { ...JSON_TYPE, ...answer.headers }).end(answer.body ?? '');
      return;
    }
    proceed(req, res);
  };
}

// ---- the protected MCP server ----

function tokenVerifier(provider, issuer, mcp) {
  const keys = createRemoteJWKSet(new URL(`${issuer}/jwks`));
  return async (token) => {
    if (TOKEN_FORMAT === 'jwt') {
      return jwtVerify(token, keys, { issuer, audience: mcp }).then(({ payload }) => payload, () => undefined);
    }
    const found = await provider.AccessToken.find(token);
    return found?.isValid && found.aud === mcp ? { sub: found.accountId, scope: found.scope, client_id: found.clientId } : undefined;
  };
}

const TOOLS = { whoami: 'mcp:read', echo: 'mcp:read', write: 'mcp:write' };
const text = (value) => ({ content: [{ type: 'text', text: value }] });

function call({ method, params }, claims) {
  if (method === 'initialize') {
    return {
      protocolVersion: params?.protocolVersion ?? '2025-11-25',
      capabilities: { tools: {} },
      serverInfo: { name: 'protected', version: '1' },
    };
  }
  if (method === 'tools/list') {
    return { tools: Object.keys(TOOLS).map((name) => ({ name, inputSchema: { type: 'object' } })) };
  }
  if (method === 'tools/call') {
    return text(params.name === 'whoami' ? claims.sub : JSON.stringify(params.arguments ?? {}));
  }
  return {};
}

// Who cut off its request in the middle waits for no answer; whatever else fails ends this server.
const unlessCutOff = (handle) => (req, res) => handle(req, res).catch((error) => { if (req.complete) throw error; });

async function readJson(req) {
  const chunks = [];
  for await (const chunk of req) chunks.push(chunk);
  return JSON.parse(Buffer.concat(chunks).toString() || '{}');
}

function mcpServer(verify, issuer, mcp) {
  const prm = new URL(`/.well-known/oauth-protected-resource${new URL(mcp).pathname}`, mcp).href;
  const metadata = { resource: mcp, authorization_servers: [issuer], scopes_supported: SCOPES, bearer_methods_supported: ['header'] };

  const challenge = (res, status, parameters) => {
    const all = { ...parameters, resource_metadata: prm };
    const value = Object.entries(all).map(([name, given]) => `${name}="${given}"`).join(', ');
    res.writeHead(status, { 'www-authenticate': `Bearer ${value}` }).end();
  };

  return async (req, res) => {
    count(stats.requests, `${req.method} ${req.url}`);
    if (req.url === new URL(prm).pathname) return res.writeHead(200, JSON_TYPE).end(JSON.stringify(metadata));
    if (req.url !== '/mcp') return res.writeHead(404).end();
    const message = await readJson(req);
    const token = /^Bearer (.+)$/i.exec(req.headers.authorization ?? '')?.[1];
    if (token === undefined) return challenge(res, 401, { scope: 'mcp:read' });
    const claims = await verify(token);
    if (claims === undefined) return challenge(res, 401, { error: 'invalid_token', scope: 'mcp:read' });
    if (req.method !== 'POST') return res.writeHead(405, { allow: 'POST' }).end();
    const scope = message.method === 'tools/call' ? TOOLS[message.params?.name] : 'mcp:read';
    if (!claims.scope?.split(' ').includes(scope)) return challenge(res, 403, { error: 'insufficient_scope', scope });
    if (message.id === undefined) return res.writeHead(202).end();
    const reply = { jsonrpc: '2.0', id: message.id, result: call(message, claims) };
    return res.writeHead(200, JSON_TYPE).end(JSON.stringify(reply));
  };
}

// ---- control and start ----

async function control(req, res) {
  if (req.url === '/__control' && req.method === 'POST') {
    const { reset, forgetAccessTokens, ...changes } = await readJson(req);
    if (reset) stats = emptyStats();
    if (forgetAccessTokens) for (const key of rows.keys()) if (key.startsWith('AccessToken:')) rows.delete(key);
    Object.assign(knobs, changes);
  }
  res.writeHead(200, JSON_TYPE).end(JSON.stringify(req.url === '/__stats' ? stats : knobs));
}

const listening = () => new Promise((resolve) => {
  const server = createServer();
  server.listen(0, '127.0.0.1', () => resolve([server, `http://127.0.0.1:${server.address().port}`]));
});

const [[asServer, issuer], [rsServer, resource], [controlServer, controlOrigin]] = await Promise.all([listening(), listening(), listening()]);
const mcp = `${resource}/mcp`;
const provider = counted(new Provider(issuer, configuration(mcp)));
asServer.on('request', authorizationServer(provider));
rsServer.on('request', unlessCutOff(mcpServer(tokenVerifier(provider, issuer, mcp), issuer, mcp)));
controlServer.on('request', unlessCutOff(control));
console.log(`\nREADY ${JSON.stringify({ issuer, mcp, control: controlOrigin })}`);
