// pictures.mjs - docs/images: the page at desktop and phone size, light and dark, after a text was written. Not part of
// the tests: pictures are made when the page has changed, and looked at. usage: node pictures.mjs [FOLDER]
import { mkdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { serve } from '../../tools/serve.mjs';
import { launch } from './browsers.mjs';

const top = join(dirname(fileURLToPath(import.meta.url)), '../..');
const folder = process.argv[2] || join(top, 'docs/images');
mkdirSync(folder, { recursive: true });
const server = await serve(), browser = await launch('chromium', { tools: join(top, 'build/web-tools') });
const sizes = { desktop: { width: 1180, height: 820 }, phone: { width: 360, height: 780 } };
const done = page => page.raw.waitForSelector('#status:text-matches("^(Done|Both)")', { state: 'attached', timeout: 60000 });

for (const [size, viewport] of Object.entries(sizes))
    for (const colorScheme of ['light', 'dark']) {
        const mobile = size === 'phone' ? { isMobile: true, hasTouch: true } : {};
        const page = await browser.open(`${server.url}/`, { viewport, colorScheme, ...mobile }), q = page.raw;
        await q.click('#go:enabled');
        await done(page);
        if (size === 'desktop') await q.click('#plan-panel summary');
        await q.evaluate(() => { document.activeElement.blur(); scrollTo(0, 0); });
        await q.screenshot({ path: `${folder}/page-${size}-${colorScheme}.png` });
        if (colorScheme === 'dark') {
            await q.click('#tab-compare');
            await q.fill('#prompt', 'The river flows through');
            await q.click('#go');
            await done(page);
            await q.evaluate(() => { document.activeElement.blur(); scrollTo(0, 0); });
            await q.screenshot({ path: `${folder}/page-${size}-compare.png` });
        }
        if (page.errors.length) console.log(size, colorScheme, page.errors);
        await page.close();
    }
await browser.close();
await server.close();
