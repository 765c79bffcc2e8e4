// browsers.mjs - one small interface over three real browsers: launch(), open(), call(), close().
// Chromium through playwright-core, Firefox through puppeteer-core (WebDriver BiDi), WebKitGTK through plain
// WebDriver. A page offers `window.tests`, functions that take and return what JSON can carry.
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { createServer } from 'node:net';

const first = paths => paths.find(existsSync);
const CHROMIUM = first([process.env.CHROMIUM || '', '/usr/bin/chromium', '/usr/bin/chromium-browser',
    '/usr/bin/google-chrome']);
const FIREFOX = first([process.env.FIREFOX || '', '/usr/bin/firefox-esr', '/usr/bin/firefox']);
const WEBKIT = first(['/usr/bin/WebKitWebDriver']);
const MINIBROWSER = first(['x86_64', 'aarch64'].map(m => `/usr/lib/${m}-linux-gnu/webkit2gtk-4.1/MiniBrowser`));

/** Which browsers can be started here: name to null, or to the reason why not. */
export function missing() {
    return {
        chromium: CHROMIUM ? null : 'chromium is not installed',
        firefox: FIREFOX ? null : 'firefox-esr is not installed',
        webkit: !WEBKIT || !MINIBROWSER ? 'webkit2gtk-driver is not installed'
            : process.env.DISPLAY || first(['/usr/bin/xvfb-run']) ? null : 'no display, and xvfb is not installed',
    };
}

/**
 * Starts a browser.
 * @param {'chromium'|'firefox'|'webkit'} name
 * @param {{tools: string, gpu?: boolean}} options tools: the folder whose node_modules holds the drivers;
 *   gpu: WebGPU on a software adapter, where the browser has one
 * @returns {Promise<{name: string, version: string, open: Function, close: Function}>}
 */
export const launch = (name, options) => ({ chromium, firefox, webkit })[name](options);

const load = async (tools, name) => {
    const module = await import(createRequire(`${tools}/`).resolve(name));
    return module.default ?? module;
};

// ---- Chromium ----

async function chromium({ tools, gpu, flags = [] }) {
    const playwright = await load(tools, 'playwright-core');
    // memory is measured at once when a page asks for it, not after a while
    const args = ['--no-sandbox', '--enable-blink-features=ForceEagerMeasureMemory', ...flags, ...(gpu ? ['--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader'] : [])];
    const browser = await playwright.chromium.launch({ executablePath: CHROMIUM, headless: true, args });
    const shared = await browser.newContext();
    return {
        name: 'chromium', version: browser.version(),
        /** A tab; with `emulate` (userAgent, viewport, colorScheme, ...) in a profile of its own; `first`: a function
         *  and its argument that run before the page's scripts. */
        async open(url, emulate, first) {
            const context = emulate ? await browser.newContext(emulate) : shared;
            const page = await context.newPage();
            if (first) await page.addInitScript(...first);
            const errors = listen(page);
            await page.goto(url, { timeout: 60000 });
            return {
                errors, raw: page, context,
                call: (test, arg) => page.evaluate(([t, a]) => window.tests[t](a), [test, arg]),
                evaluate: expression => page.evaluate(expression),
                close: () => emulate ? context.close() : page.close(),
            };
        },
        close: () => browser.close(),
    };
}

function listen(page) {
    const errors = [];
    page.on('pageerror', error => errors.push(String(error.message ?? error)));
    page.on('console', line => { if (line.type() === 'error') errors.push(line.text()); });
    return errors;
}

// ---- Firefox ----

async function firefox({ tools, gpu }) {
    const puppeteer = await load(tools, 'puppeteer-core');
    const browser = await puppeteer.launch({
        browser: 'firefox', executablePath: FIREFOX, headless: true, protocol: 'webDriverBiDi',
        protocolTimeout: 300000,
        extraPrefsFirefox: gpu ? { 'dom.webgpu.enabled': true, 'gfx.webgpu.ignore-blocklist': true } : {},
    });
    return {
        name: 'firefox', version: (await browser.version()).replace(/^firefox\//i, ''),
        async open(url) {
            const page = await browser.newPage();
            const errors = listen(page);
            await page.goto(url, { timeout: 60000 });
            return {
                errors, raw: page,
                call: (test, arg) => page.evaluate((t, a) => window.tests[t](a), test, arg ?? null),
                evaluate: expression => page.evaluate(expression),
                close: () => page.close(),
            };
        },
        close: () => browser.close(),
    };
}

// ---- WebKitGTK ----

async function webkit() {
    const port = await freePort();
    const command = process.env.DISPLAY ? [WEBKIT] : ['xvfb-run', '-a', WEBKIT];
    const driver = spawn(command[0], [...command.slice(1), `--port=${port}`], {
        detached: true, stdio: 'ignore',
        // WebKitGTK has shared memory between threads behind this switch alone
        env: { ...process.env, JSC_useSharedArrayBuffer: '1', WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS: '1' },
    });
    const stop = () => { try { process.kill(-driver.pid); } catch { /* gone already */ } };
    process.once('exit', stop);
    const ask = async (method, path, body) => {
        const reply = await fetch(`http://127.0.0.1:${port}${path}`, {
            method, headers: { 'content-type': 'application/json' }, body: body && JSON.stringify(body),
        });
        const { value } = await reply.json();
        if (!reply.ok) throw new Error(`${value.error}: ${value.message}`);
        return value;
    };
    await until(() => ask('GET', '/status'), 20000);
    const session = await ask('POST', '/session', { capabilities: { alwaysMatch: {
        'webkitgtk:browserOptions': { binary: MINIBROWSER, args: ['--automation'] } } } });
    const at = `/session/${session.sessionId}`;
    await ask('POST', `${at}/timeouts`, { script: 300000, pageLoad: 60000 });
    let turn = Promise.resolve(); // a session has one current window
    const alone = work => (turn = turn.catch(() => {}).then(work));
    // the driver does not always wait until the page's modules have run
    const script = 'const done = arguments[2], test = arguments[0], arg = JSON.parse(arguments[1]);'
        + '(function go(n) { if (!window.tests && n) return setTimeout(go, 50, n - 1); window.tests[test](arg).then('
        + 'v => done(JSON.stringify({ value: v })), e => done(JSON.stringify({ error: String(e && e.message || e) })))})(200)';
    let current = await ask('GET', `${at}/window`), free = current;
    return {
        name: 'webkit', version: session.capabilities.browserVersion,
        open: url => alone(async () => {
            const handle = free || (await ask('POST', `${at}/window/new`, { type: 'tab' })).handle;
            free = null;
            const enter = async () => {
                if (current !== handle) await ask('POST', `${at}/window`, { handle });
                current = handle;
            };
            await enter();
            await ask('POST', `${at}/url`, { url });
            return {
                errors: [],
                call: (test, arg) => alone(async () => {
                    await enter();
                    const args = [test, JSON.stringify(arg ?? null)];
                    const result = JSON.parse(await ask('POST', `${at}/execute/async`, { script, args }));
                    if (result.error) throw new Error(result.error);
                    return result.value;
                }),
                evaluate: expression => alone(async () => {
                    await enter();
                    const text = `const done = arguments[0]; Promise.resolve(${expression}).then(done, e => done(String(e)))`;
                    return ask('POST', `${at}/execute/async`, { script: text, args: [] });
                }),
                close: () => alone(async () => {
                    await enter();
                    await ask('POST', `${at}/url`, { url: 'about:blank' });
                    free = handle;
                }),
            };
        }),
        async close() {
            await Promise.race([ask('DELETE', at).catch(() => {}), new Promise(r => setTimeout(r, 5000))]);
            stop();
        },
    };
}

async function freePort() {
    const server = createServer();
    await new Promise(resolve => server.listen(0, '127.0.0.1', resolve));
    const { port } = server.address();
    await new Promise(resolve => server.close(resolve));
    return port;
}

async function until(work, limit) {
    for (const end = Date.now() + limit; ; await new Promise(r => setTimeout(r, 100))) {
        try {
            return await work();
        } catch (error) {
            if (Date.now() > end) throw error;
        }
    }
}
