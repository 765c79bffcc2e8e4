// serve.mjs - a static server for the page and its tests, with node's own http alone, on 127.0.0.1 only.
// It keeps the rules that a real host should keep: right types, ETag, Range with If-Range, COOP/COEP and a
// strict CSP; and on request it misbehaves like one (a cut connection, a short file, an error, no network).
// usage: node serve.mjs [--port N] [--no-isolation] [--credentialless]
import { createServer } from 'node:http';
import { createReadStream, statSync } from 'node:fs';
import { dirname, extname, join, normalize, sep } from 'node:path';
import { fileURLToPath } from 'node:url';

const top = join(dirname(fileURLToPath(import.meta.url)), '..');
const TYPES = {
    '.html': 'text/html; charset=utf-8', '.js': 'text/javascript; charset=utf-8',
    '.mjs': 'text/javascript; charset=utf-8', '.css': 'text/css; charset=utf-8',
    '.json': 'application/json', '.wasm': 'application/wasm', '.png': 'image/png',
    '.svg': 'image/svg+xml', '.gguf': 'application/octet-stream', '.kvcal': 'application/octet-stream',
};
const CSP = "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; object-src 'none'; base-uri 'none'";

/** The folders that are served; the first prefix that fits counts. */
const MOUNTS = { '/models/': 'models', '/demo/': 'web/demo', '/dist/': 'web/dist', '/tests/': 'tests/web' };

/**
 * What a server can be told to do wrong: by query (`?cut=100000`), or by `server.rule()` for whole folders
 * and for a number of times.
 *   cut     bytes of the body after which the connection is broken
 *   short   the file ends after so many bytes, and the headers say so
 *   slow    bytes a second
 *   status  an error in place of the file
 *   type    another Content-Type
 *   etag    another ETag
 *   norange ranges are ignored: always the whole file
 *   drop    the connection is closed without an answer: no network
 */
const FAULTS = ['cut', 'short', 'slow', 'status', 'type', 'etag', 'norange', 'drop'];

/**
 * Starts a server.
 * @param {{port?: number, isolate?: boolean|'credentialless', csp?: string, mounts?: Object}} options
 * @returns {Promise<{url: string, log: Object[], rule: Function, clear: Function, close: Function}>}
 *   log: one entry a request `{path, query, range, status, sent}`; rule(prefix, faults, times) puts faults on
 *   the next `times` requests under prefix; clear() takes them all back.
 */
export async function serve({ port = 0, isolate = true, csp = CSP, mounts = {} } = {}) {
    const folders = { ...mounts, ...MOUNTS }, log = [];
    let rules = [];
    const server = createServer((request, response) => {
        const entry = { path: '', query: '', range: request.headers.range, status: 0, sent: 0 };
        log.push(entry);
        response.on('close', () => { entry.status ||= response.statusCode; });
        try {
            answer(request, response, entry);
        } catch (error) {
            finish(response, 500, String(error.message));
        }
    });

    function answer(request, response, entry) {
        const url = new URL(request.url, 'http://127.0.0.1');
        entry.path = url.pathname;
        entry.query = url.search;
        const faults = takeFaults(url);
        if (faults.drop) return request.socket.destroy();
        for (const [name, value] of Object.entries(headers(isolate, csp))) response.setHeader(name, value);
        if (!/^(127\.0\.0\.1|localhost)(:\d+)?$/.test(request.headers.host || ''))
            return finish(response, 403, 'this host name is not served');
        if (request.method !== 'GET' && request.method !== 'HEAD') return finish(response, 405, 'GET and HEAD only');
        if (faults.status) return finish(response, +faults.status, `status ${faults.status}, as asked for`);
        if (url.pathname === '/') {
            response.setHeader('Location', '/demo/');
            return finish(response, 302, '');
        }
        const file = locate(folders, decodeURIComponent(url.pathname));
        if (!file) return finish(response, 404, `${url.pathname} is not here`);
        send(request, response, file, faults, entry);
    }

    function takeFaults(url) {
        const faults = {};
        for (const name of FAULTS) if (url.searchParams.has(name)) faults[name] = url.searchParams.get(name);
        const rule = rules.find(r => url.pathname.startsWith(r.prefix) && r.times > 0);
        if (!rule) return faults;
        rule.times--;
        return { ...faults, ...rule.faults };
    }

    await new Promise((resolve, reject) => {
        server.once('error', reject);
        server.listen(port, '127.0.0.1', resolve);
    });
    return {
        url: `http://127.0.0.1:${server.address().port}`,
        log,
        rule: (prefix, faults, times = Infinity) => rules.push({ prefix, faults, times }),
        clear: () => { rules = []; },
        close: () => new Promise(resolve => {
            server.close(resolve);
            server.closeAllConnections();
        }),
    };
}

function headers(isolate, csp) {
    const out = { 'X-Content-Type-Options': 'nosniff', 'Referrer-Policy': 'no-referrer' };
    if (csp) out['Content-Security-Policy'] = csp;
    if (isolate) {
        out['Cross-Origin-Opener-Policy'] = 'same-origin';
        out['Cross-Origin-Embedder-Policy'] = isolate === 'credentialless' ? 'credentialless' : 'require-corp';
        out['Cross-Origin-Resource-Policy'] = 'same-origin';
    }
    return out;
}

// The file that a path names, or null: nothing above a mounted folder can be reached.
function locate(folders, path) {
    const prefix = Object.keys(folders).find(p => path.startsWith(p));
    if (!prefix || path.includes('\0')) return null;
    const folder = join(folders[prefix].startsWith(sep) ? '' : top, folders[prefix]);
    let file = normalize(join(folder, path.slice(prefix.length)));
    if (file !== folder && !file.startsWith(folder + sep)) return null;
    if (path.endsWith('/')) file = join(file, 'index.html');
    try {
        const stat = statSync(file);
        return stat.isFile() ? { file, size: stat.size, etag: `"${stat.size}-${Math.floor(stat.mtimeMs)}"` } : null;
    } catch {
        return null;
    }
}

function send(request, response, { file, size, etag }, faults, entry) {
    if (faults.short) size = Math.min(size, +faults.short);
    if (faults.etag) etag = `"${faults.etag}"`;
    response.setHeader('Content-Type', faults.type || TYPES[extname(file)] || 'application/octet-stream');
    response.setHeader('ETag', etag);
    response.setHeader('Cache-Control', 'no-cache');
    if (!faults.norange) response.setHeader('Accept-Ranges', 'bytes');
    if (request.headers['if-none-match'] === etag) return finish(response, 304);
    const range = faults.norange ? null : parseRange(request, size, etag);
    if (range === false) {
        response.setHeader('Content-Range', `bytes */${size}`);
        return finish(response, 416, 'no such range');
    }
    const [from, to] = range || [0, size - 1];
    if (range) response.setHeader('Content-Range', `bytes ${from}-${to}/${size}`);
    response.setHeader('Content-Length', to - from + 1);
    response.statusCode = range ? 206 : 200;
    if (request.method === 'HEAD' || size === 0) return response.end();
    pump(response, createReadStream(file, { start: from, end: to }), faults, entry);
}

// [first, last] byte; null where the whole file is asked for; false where the range lies outside.
function parseRange(request, size, etag) {
    const match = /^bytes=(\d*)-(\d*)$/.exec(request.headers.range || '');
    const condition = request.headers['if-range'];
    if (!match || (!match[1] && !match[2]) || (condition && condition !== etag)) return null;
    const from = match[1] ? +match[1] : Math.max(0, size - +match[2]);
    const to = match[1] && match[2] ? Math.min(+match[2], size - 1) : size - 1;
    return from > to ? false : [from, to];
}

async function pump(response, stream, faults, entry) {
    const cut = faults.cut === undefined ? Infinity : +faults.cut, rate = +faults.slow || 0;
    let wake = () => {};
    response.on('close', () => {
        stream.destroy();
        wake();
    });
    try {
        for await (let chunk of stream) {
            if (entry.sent + chunk.length > cut) chunk = chunk.subarray(0, cut - entry.sent);
            entry.sent += chunk.length;
            const room = response.write(chunk);
            if (entry.sent >= cut) {
                // what was written must leave before the connection breaks
                await new Promise(resolve => setTimeout(resolve, 50));
                return response.destroy();
            }
            if (rate) await new Promise(resolve => setTimeout(resolve, 1000 * chunk.length / rate));
            if (!room && response.writableNeedDrain && !response.destroyed)
                await new Promise(resolve => {
                    wake = resolve;
                    response.once('drain', resolve);
                });
        }
        response.end();
    } catch {
        response.destroy();
    }
}

function finish(response, status, text = '') {
    response.statusCode = status;
    if (text) response.setHeader('Content-Type', 'text/plain; charset=utf-8');
    response.end(text && text + '\n');
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
    const args = process.argv.slice(2), at = args.indexOf('--port');
    const isolate = args.includes('--credentialless') ? 'credentialless' : !args.includes('--no-isolation');
    const server = await serve({ port: at < 0 ? 8080 : +args[at + 1], isolate }).catch(error => {
        console.error(`serve: ${error.message}`);
        process.exit(1);
    });
    console.log(`${server.url}/  (Ctrl-C stops it)`);
}
