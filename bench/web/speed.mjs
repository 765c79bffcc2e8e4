// speed.mjs - how fast the modules of `make wasm` run under node or in Chromium: medians of rounds in which
// all configurations take turns, so that what else the machine does meets all of them.
// usage: node speed.mjs FOLDER [-r ROUNDS] [-n TOKENS] [-m MODULE:THREADS,..] [-b TOOLS] MODEL.gguf ..
//   e.g. node bench/web/speed.mjs build/web -m relaxed1:1,relaxed:2 s2.gguf q4.gguf
//   -b: in Chromium; TOOLS is the folder whose node_modules has playwright-core (CHROMIUM: the program)
// Columns: decode and prefill in tokens/s; billions of weights a second in the matrix products of the
// layers while decoding (activations' quantization counted), and those as a share of the relaxed dot's
// rate in the same round: of dots into four sums, and of dots into one, each waiting for the one before.
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { basename, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { start } from '../../tests/wasm-host.mjs';
import { measure } from './measure.mjs';

let rounds = 7, tokens = 64, modules = 'relaxed1:1,relaxed:2', tools;
const [folder, ...args] = process.argv.slice(2), files = [];
for (let a; (a = args.shift());) {
    if (a === '-r') rounds = +args.shift();
    else if (a === '-n') tokens = +args.shift();
    else if (a === '-m') modules = args.shift();
    else if (a === '-b') tools = resolve(args.shift());
    else files.push(a);
}
const specs = files.flatMap(file => modules.split(',').map(spec => {
    const [module, threads] = spec.split(':');
    return { file, module, threads: +threads };
}));

function underNode() {
    return measure({ specs, rounds, tokens, read: readFileSync, dotModule: readFileSync(`${folder}/bench-dot.wasm`),
        start: (module, threads) => start(`${folder}/dibit-${module}.wasm`, threads) });
}

async function inChromium() {
    const top = join(fileURLToPath(import.meta.url), '../../..');
    const types = { html: 'text/html', mjs: 'text/javascript', wasm: 'application/wasm' };
    const server = createServer((request, response) => {
        const url = request.url, model = /^\/model(\d+)$/.exec(url), page = url === '/';
        const path = model ? files[model[1]] : url.startsWith('/wasm/') ? join(folder, basename(url))
            : join(top, /^\/(bench\/web|tests)\/[\w-]+\.mjs$/.test(url) ? url : 'none');
        response.setHeader('content-type', types[page ? 'html' : basename(path).split('.').pop()] || 'application/octet-stream');
        response.setHeader('cross-origin-opener-policy', 'same-origin');
        response.setHeader('cross-origin-embedder-policy', 'require-corp');
        try {
            response.end(page ? '<!doctype html>' : readFileSync(path));
        } catch {
            response.writeHead(404).end();
        }
    });
    await new Promise(ok => server.listen(0, '127.0.0.1', ok));
    const { chromium } = await import(createRequire(`${tools}/`).resolve('playwright-core')).then(m => m.default ?? m);
    const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || '/usr/bin/chromium', args: ['--no-sandbox'] });
    const page = await browser.newPage();
    await page.goto(`http://127.0.0.1:${server.address().port}/`);
    const job = { rounds, tokens, specs: specs.map(s => ({ ...s, file: `/model${files.indexOf(s.file)}` })) };
    const result = await page.evaluate(data => new Promise(done => {
        const w = new Worker('/bench/web/speed-worker.mjs', { type: 'module' });
        w.onmessage = e => done(e.data);
        w.onerror = e => done({ error: e.message });
        w.postMessage(data);
    }), job);
    const version = browser.version();
    await browser.close();
    server.close();
    if (result.error) throw new Error(result.error);
    result.runs.forEach((run, i) => { run.file = specs[i].file; });
    return { ...result, version };
}

const median = v => v.slice().sort((a, b) => a - b)[v.length >> 1];
const both = (v, digits) => `${median(v).toFixed(digits)} (${Math.max(...v).toFixed(digits)})`;
const result = await (tools ? inChromium() : underNode());
console.log(`${tools ? `Chromium ${result.version}` : `V8 ${process.versions.v8}`}, ${rounds} rounds, medians (best); ` +
    `relaxed dot: four sums ${both(result.dot, 1)}, one sum ${both(result.chain, 1)} billion a second`);
console.log('model module:threads            decode         prefill      Gweights/s     % of four    % of one');
for (const r of result.runs) {
    const col = (k, digits, width) => both(r.got.map(g => g[k]), digits).padEnd(width);
    console.log(`${basename(r.file, '.gguf')} ${r.module}:${r.threads}`.padEnd(32) + col('decode', 1, 15) +
        col('prefill', 0, 13) + col('weights', 2, 15) + col('share', 0, 13) + col('of_chain', 0, 9));
}
process.exit(0);
