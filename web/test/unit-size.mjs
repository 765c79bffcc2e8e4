// unit-size.mjs - what a page has to fetch: 60 KB of JavaScript, 250 KB compressed with the largest module (a
// browser fetches one of them), 400 KB for each module. JavaScript as web.sh makes it, by esbuild.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { after, test } from 'node:test';
import { brotliCompressSync, constants, gzipSync } from 'node:zlib';

const modules = process.env.DIBIT_WASM ?? 'build/web', top = new URL('../..', import.meta.url).pathname;
const folder = mkdtempSync(`${tmpdir()}/dibit-`);
after(() => rmSync(folder, { recursive: true }));
const esbuild = `${top}build/npm/node_modules/.bin/esbuild`;
const list = (path, pattern) => readdirSync(path).filter(f => pattern.test(f)).map(f => `${path}/${f}`);
const sum = (files, f) => files.reduce((n, file) => n + f(file), 0);
const brotli = file => brotliCompressSync(readFileSync(file), { params: { [constants.BROTLI_PARAM_QUALITY]: 11 } }).length;
const gzip = file => gzipSync(readFileSync(file), { level: 9 }).length;

test('sizes', { skip: !existsSync(esbuild) && 'esbuild is not installed (make web does)' }, t => {
    execFileSync(esbuild, [...list(`${top}web/src`, /\.js$/), '--minify', '--format=esm', '--target=es2022',
        `--outdir=${folder}`, '--log-level=warning']);
    const js = list(folder, /\.js$/), wasm = list(modules, /^dibit-.*\.wasm$/);
    const raw = sum(js, f => statSync(f).size);
    assert.equal(wasm.length, 5);
    for (const f of wasm) assert.ok(statSync(f).size <= 400000, f);
    for (const [name, f] of [['brotli -q 11', brotli], ['gzip -9', gzip]]) {
        const bytes = sum(js, f) + Math.max(...wasm.map(f));
        t.diagnostic(`${name}: ${bytes} bytes, of them ${sum(js, f)} of JavaScript`);
        assert.ok(bytes <= 250000, `${name}: ${bytes}`);
    }
    t.diagnostic(`JavaScript: ${raw} bytes`);
    assert.ok(raw <= 60 * 1024, `JavaScript: ${raw} bytes`);
});
