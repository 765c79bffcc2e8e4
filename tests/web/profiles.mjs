// profiles.mjs - devices that are not here, emulated in Chromium: user agent, touch, memory, cores and battery are set
// before the page's scripts run, and the plan that the engine then makes is compared. The rules themselves have their
// tests in tests/plan_rules.c; here it is seen that what a page can know reaches them.
import assert from 'node:assert/strict';

const GIB = 2 ** 30;
const SAFARI = 'Version/26.0 Safari/605.1.15';
const AGENTS = {
    iphone: `Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) ${SAFARI.replace('Safari', 'Mobile/15E148 Safari')}`,
    mac: `Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) ${SAFARI}`,
    pixel: 'Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/151.0.0.0 Mobile Safari/537.36',
    windows: 'Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:153.0) Gecko/20100101 Firefox/153.0',
    linux: 'Mozilla/5.0 (X11; Linux x86_64; rv:153.0) Gecko/20100101 Firefox/153.0',
};

/** name, what the browser says, options of createEngine, what the plan must say */
const PROFILES = [
    ['iPhone', { agent: 'iphone', touch: 5, memory: null, cores: 4, mobile: true }, {}, { memory: 2 * GIB, mobile: 'on', bits: '2' }],
    ['Android phone', { agent: 'pixel', touch: 5, memory: 4, cores: 8, mobile: true }, {}, { memory: 4 * GIB, mobile: 'on', bits: '2' }],
    ['Android phone of 1 GiB', { agent: 'pixel', touch: 5, memory: 1, cores: 4, mobile: true }, {}, { memory: GIB, memory_constrained: 'on', bits: '2' }],
    ['budget below 1 GiB', { agent: 'linux', memory: 8, cores: 4 }, { memory_budget: 700 * 2 ** 20 }, { memory_severe: 'on', bits: '2' }],
    ['budget below 2 GiB', { agent: 'linux', memory: 8, cores: 4 }, { memory_budget: 1500 * 2 ** 20 }, { memory_constrained: 'on', memory_severe: 'off', bits: '3' }],
    ['Mac, Safari', { agent: 'mac', touch: 0, memory: null, cores: 8 }, {}, { memory: 8 * GIB, mobile: 'off' }],
    ['iPad that says Mac', { agent: 'mac', touch: 5, memory: null, cores: 8 }, {}, { memory: 2 * GIB, mobile: 'on', bits: '2' }],
    ['Windows, Firefox', { agent: 'windows', memory: null, cores: 16 }, {}, { memory: 8 * GIB, mobile: 'off' }],
    ['Linux, Firefox', { agent: 'linux', memory: null, cores: 16 }, {}, { memory: 4 * GIB }],
    ['battery at 10 %', { agent: 'linux', memory: 8, cores: 8, battery: 0.1 }, {}, { battery_saver: 'on' }],
];

/** Runs in the page, before all else. */
function pretend({ touch = 0, memory, cores, battery, foreign }) {
    const set = (name, value) => Object.defineProperty(Navigator.prototype, name, { configurable: true, get: () => value });
    set('maxTouchPoints', touch);
    set('deviceMemory', memory ?? undefined);
    set('hardwareConcurrency', cores);
    if (foreign) set('userAgentData', undefined);
    const state = battery === undefined ? undefined : { level: battery, charging: false };
    Object.defineProperty(Navigator.prototype, 'getBattery', { configurable: true, value: state && (async () => state) });
}

export const POLICY = [{
    name: 'plans of emulated devices', browsers: ['chromium'],
    async run({ open, isolated, model }) {
        for (const [name, says, options, wanted] of PROFILES) {
            const userAgent = AGENTS[says.agent], foreign = !/Chrome/.test(userAgent);
            const page = await open(isolated, '/tests/page.html', { userAgent, isMobile: Boolean(says.mobile), hasTouch: Boolean(says.touch) },
                [pretend, { ...says, foreign }]);
            const { plan } = await page.call('generate', { model: model(isolated), n: 1, n_ctx: 256, store: 'memory', ...options });
            const get = Object.fromEntries(plan.map(line => [line.key, line.value]));
            for (const [key, value] of Object.entries(wanted)) {
                const got = typeof value === 'number' ? Number(String(get[key]).replaceAll(',', '')) : get[key];
                assert.equal(got, value, `${name}: ${key} is ${get[key]}: ${plan.find(line => line.key === key)?.reason}`);
            }
            for (const line of plan) assert.ok(line.reason, `${name}: ${line.key} has no reason`);
            await page.close();
        }
        return { text: `${PROFILES.length} devices` };
    },
}];
