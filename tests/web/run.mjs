// run.mjs - the browser tests: starts the servers and each browser that is here, runs the scenarios, writes the
// compatibility matrix. Ends in one line: "browsers: N passed, N failed, N skipped".
// usage: node run.mjs [--tools FOLDER] [--program FILE] [--browsers a,b] [--only TEXT] [--docs FOLDER]
import { execFileSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { serve } from '../../tools/serve.mjs';
import { launch, missing } from './browsers.mjs';
import { lower, writeMatrix } from './matrix.mjs';
import { DEMO } from './demo-scenarios.mjs';
import { POLICY } from './profiles.mjs';
import { GPU } from './gpu-scenarios.mjs';
import { SCENARIOS } from './scenarios.mjs';

const top = join(dirname(fileURLToPath(import.meta.url)), '../..');
const option = (name, otherwise) => {
    const at = process.argv.indexOf(`--${name}`);
    return at < 0 ? otherwise : process.argv[at + 1];
};
const tools = option('tools', join(top, 'build/web-tools'));
const program = option('program', join(top, 'build/dibit'));
const names = option('browsers', 'chromium,firefox,webkit').split(',');
const only = option('only', '');
const MODEL = 'models/dibit-34m.gguf', PROMPT = 'The history of the city begins';

const counts = { passed: 0, failed: 0, skipped: 0 };
function report(state, text) {
    counts[{ ok: 'passed', FAIL: 'failed', skip: 'skipped' }[state]]++;
    console.log(`${state.padEnd(4)} ${text}`);
}

/** The greedy tokens of the native program, by cache type. */
function nativeTokens(cache) {
    const args = ['run', '-m', join(top, MODEL), '-p', PROMPT, '-n', '64', '--temp', '0', '--json', '-ctk', cache, '-ctv', cache];
    const lines = execFileSync(program, args, { stdio: ['ignore', 'pipe', 'ignore'] }).toString().trim().split('\n');
    return lines.map(line => JSON.parse(line)).filter(o => 'token_id' in o).map(o => o.token_id);
}

const native = Object.fromEntries(['f16', 'q8', 'q4', 'k3', 'k2'].map(cache => [cache, nativeTokens(cache)]));
const work = join(top, 'build/web-work');
mkdirSync(work, { recursive: true });
const isolated = await serve({ isolate: true, mounts: { '/work/': work } });
const plain = await serve({ isolate: false, mounts: { '/work/': work } });
const results = {}; // browser -> { version, cells: { feature: { level, source, note } } }

const TRIES = 3;

/** A scenario that hangs is a scenario that fails. */
function inTime(work, limit = 90) {
    let timer;
    const late = new Promise((_, reject) => { timer = setTimeout(reject, 1000 * limit, new Error(`no answer in ${limit} s`)); });
    return Promise.race([work, late]).finally(() => clearTimeout(timer));
}

/** One try; true: it has ended. What other work on the machine, or a browser's bad day, brought about does not
 * come three times in a row; each try that failed is told. */
async function runScenario(scenario, context, last) {
    const name = `${context.browser.name}: ${scenario.name}`;
    const begun = Date.now();
    const skip = reason => { throw Object.assign(new Error(reason), { skip: true }); };
    const mark = cell => {
        if (scenario.feature) context.cells[scenario.feature] = lower(context.cells[scenario.feature], cell);
    };
    isolated.clear();
    plain.clear();
    try {
        const { text = '', level, note, source = 'measured' } = await inTime(scenario.run({ ...context, skip }), scenario.limit) || {};
        report('ok', `${name}${text && `: ${text}`} (${((Date.now() - begun) / 1000).toFixed(1)} s)`);
        if (level) mark({ level, source, note });
    } catch (error) {
        if (!error.skip && !last) {
            console.log(`     ${name}: ${error.message.split('\n')[0]}; once more`);
            return false;
        }
        report(error.skip ? 'skip' : 'FAIL', `${name}: ${error.message}`);
        if (!error.skip && process.env.VERBOSE) console.log(error.stack);
        mark({ level: 'No', source: 'measured', note: error.message.split('\n')[0] });
    }
    return true;
}

/** All scenarios of a list in this browser; what they say about its features. */
async function runAll(browser, scenarios) {
    const cells = {}, pages = [];
    const open = async (server, path = '/tests/page.html', ...how) => {
        const page = await browser.open(server.url + path, ...how);
        pages.push(page);
        return page;
    };
    try {
        for (const scenario of scenarios) {
            const context = { browser, cells, isolated, plain, open, native, prompt: PROMPT, program,
                model: server => `${server.url}/${MODEL}`, work, tools, top };
            for (let n = 1, ended = false; n <= TRIES && !ended; n++) {
                ended = await runScenario(scenario, context, n === TRIES);
                for (const page of pages.splice(0)) await page.close().catch(() => {});
            }
        }
        return cells;
    } finally {
        await browser.close().catch(() => {});
    }
}

/** Whether a browser that has WebGPU switched on has a device for it, too. */
async function hasAdapter(browser) {
    const page = await browser.open(isolated.url + '/tests/page.html');
    return page.evaluate('(async () => Boolean(await navigator.gpu?.requestAdapter()))()').finally(() => page.close());
}

const reasons = missing();
let ran = 0;
for (const name of names) {
    const wanted = list => list.filter(s => s.name.includes(only) && (!s.browsers || s.browsers.includes(name)));
    let reason = reasons[name];
    const start = options => (reason ? null : launch(name, { tools, ...options }).catch(e => { reason = e.message.split('\n')[0]; }));
    const browser = await start({});
    if (!browser) {
        report('skip', `${name}: ${reason}`);
        continue;
    }
    ran++;
    const cells = await runAll(browser, wanted([...SCENARIOS, ...POLICY, ...DEMO]));
    const onGpu = wanted(GPU), other = onGpu.length && await start({ gpu: true });
    if (other && !await hasAdapter(other)) {
        report('skip', `${name} with WebGPU: no adapter (in Firefox mesa-vulkan-drivers brings one)`);
        await other.close();
    } else if (other) {
        const { webgpu } = await runAll(other, onGpu);
        if (webgpu) cells.webgpu = webgpu;
    } else if (onGpu.length) {
        report('skip', `${name} with WebGPU: ${reason}`);
    }
    results[name] = { version: browser.version, cells };
}
await isolated.close();
await plain.close();
if (!ran && process.env.CI) report('FAIL', 'no browser could be started');
if (!only && ran) writeMatrix(results, option('docs', join(top, 'docs')));
console.log(`browsers: ${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped`);
process.exit(counts.failed ? 1 : 0);
