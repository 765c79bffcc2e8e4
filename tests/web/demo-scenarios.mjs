// demo-scenarios.mjs - the page of web/demo in every browser: it writes, chats, stops, compares and says in words
// what went wrong; in Chromium also its layout, its labels, its contrast and the time to the first token.
import assert from 'node:assert/strict';

const click = id => `document.getElementById('${id}').click()`;
const text = id => `document.getElementById('${id}').textContent`;
const pause = ms => new Promise(resolve => setTimeout(resolve, ms));

async function until(page, expression, what, limit = 45) {
    for (const end = Date.now() + 1000 * limit; ; await pause(50)) {
        const value = await page.evaluate(expression);
        if (value) return value;
        assert.ok(Date.now() < end, `${what} did not come; the page says "${await page.evaluate(text('status'))}"`);
    }
}

const ready = page => until(page, "document.documentElement.hasAttribute('data-ready') && !document.getElementById('go').disabled", 'the page');
const value = (id, v) => `(e => { e.value = '${v}'; e.dispatchEvent(new Event('change', { bubbles: true })); })(document.getElementById('${id}'))`;

/** What a person with a keyboard or a screen reader needs; runs in the page. */
function audit() {
    const shown = e => e.getClientRects().length > 0;
    const wrong = [];
    for (const e of document.querySelectorAll('input, select, textarea, button, progress, [role=log]')) {
        if (!shown(e)) continue;
        const named = e.labels?.length || e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.textContent.trim();
        if (!named) wrong.push(`no name: ${e.outerHTML.slice(0, 60)}`);
    }
    const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
    if (new Set(ids).size !== ids.length) wrong.push('an id twice');
    for (const a of ['aria-controls', 'aria-labelledby'])
        for (const e of document.querySelectorAll(`[${a}]`))
            if (!document.getElementById(e.getAttribute(a))) wrong.push(`${a} of nothing`);
    const rgb = c => c.match(/[\d.]+/g).map(Number);
    const light = c => {
        const [r, g, b] = c.map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = e => {
        for (; e; e = e.parentElement) {
            const c = rgb(getComputedStyle(e).backgroundColor);
            if (c.length < 4 || c[3] > 0) return c;
        }
        return [255, 255, 255];
    };
    let least = 21;
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let n; (n = walk.nextNode());) {
        const e = n.parentElement;
        if (!n.data.trim() || !shown(e) || e.closest('.skip, option')) continue;
        const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        least = Math.min(least, ratio);
        if (ratio < 4.5) wrong.push(`contrast ${ratio.toFixed(2)}: ${n.data.trim().slice(0, 30)}`);
    }
    return { wrong, least, overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth };
}

export const DEMO = [
    {
        name: 'the page writes, stops, chats and compares',
        async run({ open, isolated }) {
            const page = await open(isolated, '/');
            await ready(page);
            await page.evaluate(value('temperature', 0));
            await page.evaluate(value('max_new_tokens', 24));
            await page.evaluate(click('go'));
            await until(page, `${text('status')}.startsWith('Done')`, 'the text');
            const written = await page.evaluate(text('output'));
            assert.match(written, /The history of the city begins with the death/);
            assert.match(await page.evaluate(text('used')), /^\d+ \/ \d+$/);
            assert.match(await page.evaluate(text('m-kv')), /MB$/);
            assert.ok(Number(await page.evaluate(text('speed'))) > 0);
            // long enough to be stopped
            await page.evaluate(value('max_new_tokens', 2000));
            await page.evaluate(click('go'));
            await until(page, `Number(${text('speed')}) > 0 && !document.getElementById('stop').disabled`, 'the second text');
            await page.evaluate(click('stop'));
            await until(page, `${text('status')} === 'Stopped.'`, 'the stop');
            await page.evaluate(value('max_new_tokens', 12));
            await page.evaluate(click('tab-chat'));
            await page.evaluate(value('prompt', 'Hello, who are you?'));
            await page.evaluate(click('go'));
            await until(page, `${text('status')}.startsWith('Done')`, 'the answer');
            assert.ok((await page.evaluate("document.querySelector('.turn.model').textContent")).length > 0);
            await page.evaluate(click('tab-compare'));
            await page.evaluate(value('prompt', 'The river'));
            await page.evaluate(click('go'));
            await until(page, `${text('status')} === 'Both sides are done.'`, 'the comparison');
            const sides = await page.evaluate("[...document.querySelectorAll('.figures')].map(e => e.textContent)");
            for (const side of sides) assert.match(side, /tokens\/s/);
            assert.notEqual(sides[0].replace(/.*KV/, ''), sides[1].replace(/.*KV/, ''), 'both caches have one size');
            assert.deepEqual(page.errors, []);
            return {};
        },
    },
    {
        name: 'the page says what is wrong',
        async run({ open, plain }) {
            plain.rule('/models/', { status: 503 });
            const page = await open(plain, '/');
            await ready(page);
            await page.evaluate(click('go'));
            const said = await until(page, "!document.getElementById('error').hidden && document.getElementById('error').textContent", 'the error');
            assert.match(said, /could not be downloaded/);
            plain.clear();
            await page.evaluate(value('max_new_tokens', 8));
            await page.evaluate(click('go'));
            await until(page, `${text('status')}.startsWith('Done')`, 'the text after the error');
            assert.equal(await page.evaluate("document.getElementById('error').hidden"), true);
            return { text: JSON.stringify(said.slice(0, 60)) };
        },
    },
    {
        name: 'the page at every width and in both colours', browsers: ['chromium'],
        async run({ open, isolated }) {
            let least = 21;
            for (const width of [360, 768, 1280])
                for (const colorScheme of ['light', 'dark']) {
                    const page = await open(isolated, '/', { viewport: { width, height: 800 }, colorScheme });
                    await ready(page);
                    await page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })");
                    for (const tab of ['tab-write', 'tab-chat', 'tab-compare']) {
                        await page.evaluate(click(tab));
                        const found = await page.raw.evaluate(audit);
                        assert.deepEqual(found.wrong, [], `${width} px, ${colorScheme}, ${tab}`);
                        assert.ok(found.overflow <= 0, `${width} px, ${tab}: ${found.overflow} px too wide`);
                        least = Math.min(least, found.least);
                    }
                    await page.close();
                }
            return { text: `least contrast ${least.toFixed(2)}` };
        },
    },
    {
        name: 'the page by keyboard', browsers: ['chromium'],
        async run({ open, isolated }) {
            const page = await open(isolated, '/'), keys = page.raw.keyboard;
            await ready(page);
            await page.raw.bringToFront(); // keys go to the window in front
            await keys.press('Tab'); // the skip link
            await keys.press('Enter');
            assert.equal(await page.evaluate('document.activeElement.id'), 'prompt');
            await keys.press('Control+A');
            await keys.type('The sea');
            await keys.press('Control+Enter');
            // a text may end at once, the model's own choice
            await until(page, `Number(${text('speed')}) > 0 || /^(Stopped|Done)/.test(${text('status')})`, 'the text');
            await keys.press('Escape');
            await until(page, `/^(Stopped|Done)/.test(${text('status')})`, 'the end');
            // nothing moved while the text came
            const moved = await page.evaluate(`Promise.race([new Promise(done => setTimeout(done, 500, 0)), new Promise(done =>
                new PerformanceObserver(list => done(list.getEntries().reduce((sum, e) => sum + e.value, 0)))
                    .observe({ type: 'layout-shift', buffered: true }))])`);
            assert.ok(moved < 0.02, `the layout shifted by ${moved}`);
            await page.evaluate("document.getElementById('tab-write').focus()");
            await keys.press('ArrowRight');
            assert.equal(await page.evaluate('document.activeElement.id'), 'tab-chat');
            assert.equal(await page.evaluate("document.getElementById('tab-chat').getAttribute('aria-selected')"), 'true');
            const focus = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle");
            assert.equal(focus, 'solid', 'the focus cannot be seen');
            return {};
        },
    },
    {
        name: 'the page is told to begin while it loads by itself', browsers: ['chromium'],
        async run({ open, isolated }) {
            const page = await open(isolated, '/'), keys = page.raw.keyboard;
            await ready(page);
            await page.evaluate(`document.getElementById('load').click()`);
            await until(page, `${text('load')} === 'Loaded'`, 'the model');
            // the model is in the cache now; the engine comes slowly, and anew
            isolated.rule('/dist/dibit-', { slow: 200000, etag: 'other' });
            await page.raw.reload();
            await until(page, "!document.getElementById('cancel').hidden", 'the load');
            await page.raw.bringToFront();
            await page.evaluate("document.getElementById('prompt').focus()");
            await keys.press('Control+Enter');
            await keys.press('Control+Enter'); // twice is once
            await until(page, `${text('status')}.startsWith('Done')`, 'the text');
            assert.equal(await page.evaluate("document.querySelectorAll('#output p').length"), 1);
            return {};
        },
    },
    {
        name: 'first token from a warm cache', browsers: ['chromium'],
        async run({ open, isolated }) {
            const times = [];
            for (let i = 0; i < 4; i++) {
                const page = await open(isolated, '/');
                await ready(page);
                await page.evaluate(click('go'));
                times.push(await until(page, "performance.getEntriesByName('dibit-first-token')[0]?.startTime", 'the first token'));
                await page.evaluate(click('stop'));
                await page.close();
            }
            const warm = times.slice(1).sort((a, b) => a - b)[1];
            assert.ok(warm <= 3000, `${warm.toFixed(0)} ms`);
            return { text: `page open to token, median of 3: ${warm.toFixed(0)} ms` };
        },
    },
];
