// compare.mjs - decoding in Chromium beside wllama (llama.cpp in WebAssembly), in one page, all configurations
// taking turns so that what else the machine does meets all of them. Needs `make web` and what `make test-web`
// installs. usage: node compare.mjs [-r ROUNDS] [-t 1,2] NAME=ENGINE:FILE.gguf ..
//   e.g. node bench/web/compare.mjs s2=dibit:s2.gguf q4=dibit:q4.gguf Q4_K=wllama:q4k.gguf
import { basename, dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { serve } from '../../tools/serve.mjs';
import { launch } from '../../tests/web/browsers.mjs';

const top = join(dirname(fileURLToPath(import.meta.url)), '../..'), tools = join(top, 'build/web-tools');
let rounds = 5, threads = [1, 2], list = [];
for (const args = process.argv.slice(2); args.length;) {
    const a = args.shift();
    if (a === '-r') rounds = +args.shift();
    else if (a === '-t') threads = args.shift().split(',').map(Number);
    else list.push(a);
}
const mounts = { '/bench/': join(top, 'bench/web/page'), '/wllama/': join(tools, 'node_modules/@wllama/wllama/esm') };
const configurations = list.flatMap((item, i) => {
    const [, name, engine, file] = /^([^=]+)=(\w+):(.+)$/.exec(item);
    mounts[`/file${i}/`] = dirname(resolve(file));
    return threads.map(t => ({ name: `${name} ${engine}, ${t} thread${t > 1 ? 's' : ''}`, engine, threads: t, path: `/file${i}/${basename(file)}` }));
});

const server = await serve({ csp: '', mounts }); // wllama starts its worker from a blob
const browser = await launch('chromium', { tools });
const page = await browser.open(`${server.url}/bench/compare.html`);
const median = v => [...v].sort((a, b) => a - b)[v.length >> 1];
for (const c of configurations) c.runs = [];
for (let r = 0; r < rounds; r++)
    for (const { runs, name, ...c } of configurations) runs.push(await page.call('run', { ...c, url: server.url + c.path }));
console.log(`Chromium ${browser.version}, ${rounds} rounds in turn; median (least, most)`);
for (const c of configurations) {
    const speeds = c.runs.map(r => r.speed), all = [median(speeds), Math.min(...speeds), Math.max(...speeds)].map(v => v.toFixed(1));
    console.log(`${c.name.padEnd(26)} ${all[0].padStart(6)} tokens/s (${all[1]}, ${all[2]}), first after ${median(c.runs.map(r => r.first)).toFixed(0)} ms; `
        + `${c.runs[0].n} tokens; ${c.runs[0].says}`);
}
if (process.env.VERBOSE) for (const c of configurations) console.log(c.name, JSON.stringify(c.runs[0].text));
await browser.close();
await server.close();
