// matrix.mjs - docs/compatibility.json and .md: browser by feature. A cell is what a run gave (measured), what a
// probe in that run said (detected), or what public compatibility data say (reported, tests/web/reported.json).
// A browser that is missing in this run keeps the cells of the last one.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

export const LEVELS = ['No', 'Limited', 'Partial', 'Enhanced', 'Full'];

export const FEATURES = {
    detection: 'Detection of the browser and device',
    generate: 'Generation, greedy tokens as native',
    threads: 'Threads',
    'plain-host': 'Hosts without COOP and COEP',
    csp: 'Strict Content-Security-Policy',
    load: 'Loading from url, File and stream',
    cache: 'Model kept between visits',
    offline: 'Reload without a network',
    resume: 'Broken download goes on',
    tabs: 'Several tabs download once',
    refusal: 'Too large a model refused before the download',
    abort: 'Abort within 100 ms, page never frozen',
    recovery: 'Right error or recovery: worker ended, bad file, full storage',
    webgpu: 'WebGPU',
};

const NAMES = { chromium: 'Chromium', firefox: 'Firefox ESR', webkit: 'WebKitGTK' };
const MARKS = { measured: 'm', detected: 'd', reported: 'r' };

/** The lower of two cells of one feature. */
export function lower(a, b) {
    return !a || LEVELS.indexOf(b.level) < LEVELS.indexOf(a.level) ? b : a;
}

function overall(cells) {
    const levels = Object.values(cells).map(c => LEVELS.indexOf(c.level));
    if (cells.generate?.level === 'No') return 'No';
    const low = levels.filter(l => l < LEVELS.length - 1).length;
    if (!low) return 'Full';
    if (levels.every(l => l >= LEVELS.indexOf('Partial'))) return 'Enhanced';
    return levels.filter(l => l === 0).length > 2 ? 'Limited' : 'Partial';
}

const read = path => {
    try {
        return JSON.parse(readFileSync(path, 'utf8'));
    } catch {
        return null;
    }
};

/** @param {Object} results browser -> { version, cells } of this run */
export function writeMatrix(results, folder) {
    const path = join(folder, 'compatibility.json'), before = read(path)?.browsers || [];
    const reported = read(new URL('reported.json', import.meta.url).pathname);
    const measured = Object.keys(NAMES).map(key => results[key]
        ? { key, name: `${NAMES[key]} ${results[key].version}`, system: 'Linux', cells: ordered(results[key].cells) }
        : before.find(b => b.key === key)).filter(Boolean);
    const browsers = [...measured, ...reported.browsers.map(b => ({ ...b, cells: ordered(b.cells) }))];
    for (const browser of browsers) browser.overall = overall(browser.cells);
    const all = { about: 'written by make test-web; see compatibility.md', levels: LEVELS, features: FEATURES, browsers, sources: reported.sources };
    mkdirSync(folder, { recursive: true });
    writeFileSync(path, JSON.stringify(all, null, 1) + '\n');
    writeFileSync(join(folder, 'compatibility.md'), markdown(all));
}

const ordered = cells => Object.fromEntries(Object.keys(FEATURES).filter(f => cells[f]).map(f => [f, cells[f]]));

function markdown({ browsers, sources }) {
    const cell = c => c ? `${c.level} ${MARKS[c.source]}` : '–';
    const table = list => [
        `| | ${list.map(b => `${b.name}, ${b.system}`).join(' | ')} |`,
        `|---|${list.map(() => '---|').join('')}`,
        ...Object.entries(FEATURES).map(([key, name]) => `| ${name} | ${list.map(b => cell(b.cells[key])).join(' | ')} |`),
        `| **Overall** | ${list.map(b => `**${b.overall}**`).join(' | ')} |`,
    ].join('\n');
    const notes = browsers.map(b => {
        const lines = Object.entries(b.cells).filter(([, c]) => c.note).map(([f, c]) => `- ${FEATURES[f]}: ${c.note}`);
        return lines.length ? `### ${b.name}, ${b.system}\n${lines.join('\n')}` : '';
    }).filter(Boolean).join('\n\n');
    const run = browsers.filter(b => b.key), told = browsers.filter(b => !b.key);
    return `# Where dibit runs
Written by \`make test-web\`, which drives real browsers headless through the package; do not edit. The same as data:
[compatibility.json](compatibility.json). The scenarios are in tests/web/scenarios.mjs.

| level | means |
|---|---|
| Full | all of it, in the fastest form there is |
| Enhanced | all of it; a faster or roomier form exists in other browsers |
| Partial | a part is missing, or a switch of the browser or a header of the host is needed |
| Limited | only the fallback that needs nothing |
| No | not at all |

| mark | means |
|---|---|
| m | measured: the scenario ran in this browser and gave this |
| d | detected: a probe in this browser said so; nothing of ours was run with it |
| r | reported: public compatibility data say that what we need is there; dibit was not run on it |

Overall is Full where every line is, Enhanced where none is below Partial, Limited where more than two are No.

## Measured here
${table(run)}

## Reported
Real Safari, phones and the other systems were not at hand. No line here is a promise.

${table(told)}

## Notes
${notes}

## Sources of what is reported
${sources.map(s => `- ${s}`).join('\n')}
`;
}
