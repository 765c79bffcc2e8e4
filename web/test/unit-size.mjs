// unit-size.mjs - what a page has to fetch: 60 KB of JavaScript and 14 KB for the GPU, 250 KB compressed with
// the largest module (a browser fetches one of them), 400 KB for each module; and that squeezing changes no meaning.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { after, test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { brotliCompressSync, constants, gzipSync } from 'node:zlib';

const modules = process.env.DIBIT_WASM ?? 'build/web', top = new URL('../..', import.meta.url).pathname;
const folder = mkdtempSync(`${tmpdir()}/dibit-`);
after(() => rmSync(folder, { recursive: true }));
const squeeze = (...files) => execFileSync('node', [`${top}tools/squeeze.mjs`, folder, ...files]);
const list = (path, pattern) => readdirSync(path).filter(f => pattern.test(f)).map(f => `${path}/${f}`);
const sum = (files, f) => files.reduce((n, file) => n + f(file), 0);
const brotli = file => brotliCompressSync(readFileSync(file), { params: { [constants.BROTLI_PARAM_QUALITY]: 11 } }).length;
const gzip = file => gzipSync(readFileSync(file), { level: 9 }).length;

test('sizes', t => {
    squeeze(...list(`${top}web/src`, /\.js$/));
    const js = list(folder, /\.js$/), wasm = list(modules, /^dibit-.*\.wasm$/);
    const raw = sum(js, f => statSync(f).size);
    assert.equal(wasm.length, 5);
    for (const f of wasm) assert.ok(statSync(f).size <= 400000, f);
    for (const [name, f] of [['brotli -q 11', brotli], ['gzip -9', gzip]]) {
        const bytes = sum(js, f) + Math.max(...wasm.map(f));
        t.diagnostic(`${name}: ${bytes} bytes, of them ${sum(js, f)} of JavaScript`);
        assert.ok(bytes <= 250000, `${name}: ${bytes}`);
    }
    const gpu = sum(js.filter(f => /\/gpu/.test(f)), f => statSync(f).size);
    t.diagnostic(`JavaScript: ${raw} bytes, of them ${gpu} for the GPU`);
    assert.ok(raw - gpu <= 60 * 1024 && gpu <= 14 * 1024, `JavaScript: ${raw} bytes, of them ${gpu} for the GPU`);
});

test('squeezed modules are the same modules', async () => {
    const tricky = `${folder}/tricky.mjs`;
    const { writeFileSync } = await import('node:fs');
    writeFileSync(tricky, [
        '// a comment', '/** another', ' * // one */', "export const a = 'x // y' + \"/* z */\", n = 8 / 2 / 2;",
        'export const r = /[/\\\\]  \\/\\* /.source, t = `a  ${`b  ${1 + 1} }`}  // c`;', 'let i = 1;',
        'export const s = i++ + +1 - -1, u = i - --i; // two', 'export const v = [1, 2].map(x => x / 2) / 1;',
        'export class C { #private = 1; static #q = 5; static q = `q${C.#q}`; get  p ( ) { return this.#private ; } static async *g () { yield  1 } }', ''].join('\n'));
    const plain = { ...await import(pathToFileURL(tricky)) };
    squeeze(tricky);
    const squeezed = readFileSync(tricky, 'utf8'), again = { ...await import(`${pathToFileURL(tricky)}?2`) };
    for (const k of ['a', 'n', 'r', 't', 's', 'u', 'v']) assert.deepEqual(again[k], plain[k], k);
    assert.equal(new again.C().p, 1);
    assert.ok(!/#private/.test(squeezed) && again.C.q === 'q5');
    assert.ok(!/comment|another|two/.test(squeezed) && squeezed.includes("'x // y'"));
});
