// demo.js - the page: one engine at a time, a text to go on with, a chat, and two settings side by side.
import { availability, capabilities, createEngine } from '../dist/index.js';
import { $, element, fill, inWords, megabytes, say, showContext, showError, showMemory, showPlan,
    showProgress, showReport } from './view.js';

const MODELS = [{ url: '../models/dibit-34m.gguf', name: 'dibit-34m, 2 bits', bytes: 16668544 }];
const CACHES = [['', 'auto'], ['f16', 'f16'], ['q8', 'q8'], ['q4', 'q4'], ['k3', 'k3, 3 bits'], ['k2', 'k2, 2 bits']];
const HINTS = {
    write: 'The model goes on with whatever you begin. It was trained on English encyclopedias and books.',
    chat: 'The model has seen a few dialogues. It answers in the form of a chat, seldom with the right facts.',
    compare: 'The same beginning and the same seed, with other weights or another precision of the cache, one after the other.',
};
const NAMES = { write: ['Beginning of the text', 'Continue'], chat: ['Your message', 'Send'], compare: ['Beginning of the text', 'Run both'] };

let engine = null;   // what is loaded
let settings = '';   // how it was loaded
let mode = 'write';
let running = null;  // the AbortController of what is going on
let early = null;    // whether the load that the page began by itself went well, while it goes on
let messages = [];   // of the chat
let done = '';       // what the last work gave, in words
const files = new Map(); // the user's own files by name

// ---- settings ----

const weightsList = () => [...MODELS.map(m => [m.url, `${m.name} (${megabytes(m.bytes)})`]),
    ...[...files].map(([name, file]) => [name, `${name} (${megabytes(file.size)})`]), ['file', 'a file of your own …']];
const modelOf = value => files.get(value) || value;

function setup() {
    fill($('weights'), weightsList());
    fill($('kv-k'), CACHES);
    fill($('kv-v'), CACHES);
    fill($('n_ctx'), [['', 'auto'], ['512', '512'], ['1024', '1,024'], ['2048', '2,048'], ['4096', '4,096']]);
    const most = crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, 8) : 1;
    const counts = Array.from({ length: most }, (_, i) => [String(i + 1), String(i + 1)]);
    fill($('threads'), [['', 'auto'], ...counts]);
    const columns = [['A', 'f16'], ['B', 'k3']].map(([name, cache]) => column(name, cache));
    $('columns').replaceChildren(...columns.map(c => c.root));
    return columns;
}

function wanted() {
    return {
        model: $('weights').value,
        cache_type_k: $('kv-k').value || undefined, cache_type_v: $('kv-v').value || undefined,
        n_ctx: +$('n_ctx').value || undefined, n_threads: +$('threads').value || undefined,
    };
}

const sampling = () => Object.fromEntries(['temperature', 'top_p', 'max_new_tokens', 'seed'].map(k => [k, +$(k).value]));

// One side of the comparison: its own weights and cache types.
function column(name, cache) {
    const root = element('section', '', 'column'), fields = element('div', '', 'fields');
    const heading = element('h3', name), selects = {};
    root.setAttribute('aria-label', `Side ${name}`);
    for (const [key, text, pairs] of [['model', 'Weights', weightsList()], ['k', 'Keys', CACHES], ['v', 'Values', CACHES]]) {
        const label = element('label', text), select = element('select');
        if (key === 'model') label.className = 'wide';
        fill(select, pairs, key === 'model' ? undefined : cache);
        label.append(select);
        fields.append(label);
        selects[key] = select;
    }
    fields.prepend(heading);
    const text = element('div', '', 'text'), figures = element('p', '', 'hint num figures');
    text.tabIndex = 0;
    text.setAttribute('role', 'log');
    text.setAttribute('aria-label', `Text of side ${name}`);
    text.append(element('p', 'Its text will appear here.', 'empty'));
    root.append(fields, text, figures);
    return { name, root, selects, text, figures };
}

const columns = setup();

// A choice of "a file of your own" opens the file dialog and then takes its place in every list.
function ownFile(select) {
    if (select.value !== 'file') return;
    const input = $('file');
    select.selectedIndex = 0;
    input.onchange = () => {
        const file = input.files[0];
        if (!file) return;
        files.set(file.name, file);
        for (const s of [$('weights'), ...columns.map(c => c.selects.model)]) fill(s, weightsList(), s.value);
        select.value = file.name;
        showLoadState();
        input.value = '';
    };
    input.click();
}

// ---- loading ----

async function open(options, signal) {
    let begun = 0, from = 0;
    return createEngine({
        ...options, model: modelOf(options.model), signal,
        onProgress(p) {
            if (p.stage === 'warning') return console.warn(p.warning.message);
            if (!begun || p.loaded < from) begun = performance.now();
            from = p.loaded;
            showProgress(p, begun);
        },
    });
}

/** The engine of the chosen settings, loaded if it is not there yet. */
async function ensure(signal) {
    const options = wanted(), key = JSON.stringify(options);
    if (engine && settings === key) return engine;
    drop();
    const begun = performance.now();
    engine = await open(options, signal);
    settings = key;
    engine.loadedIn = performance.now() - begun;
    showPlan(engine.plan || [], engine.path);
    showContext(engine);
    showMemory(await engine.memory());
    showLoadState();
    return engine;
}

function drop() {
    engine?.destroy();
    engine = null;
    settings = '';
    showLoadState();
}

function showLoadState() {
    const there = engine && settings === JSON.stringify(wanted());
    $('load').disabled = Boolean(there || running);
    $('bar').value = there ? 1 : 0;
    say('load', engine && !there ? 'Load with these settings' : there ? 'Loaded' : 'Load');
    if (there) {
        const { n_params, n_layers } = engine.info;
        say('progress-text', done || `Ready: ${(n_params / 1e6).toFixed(1)} million weights in ${n_layers} layers, `
            + `loaded in ${(engine.loadedIn / 1000).toFixed(1)} s.`);
    } else if (!running) say('progress-text', done || 'Not loaded yet; it loads by itself when you begin.');
}

// ---- work ----

/** Runs one thing at a time, with the stop button, and shows in words what goes wrong. */
async function run(work) {
    if (running) return;
    const control = running = new AbortController();
    showError(null);
    done = '';
    busy(true);
    try {
        await work(control.signal);
    } catch (error) {
        if (error.type === 'aborted' && control.signal.aborted) say('status', 'Stopped.');
        else fail(error);
    } finally {
        running = null;
        busy(false);
        showLoadState();
    }
}

function fail(error) {
    console.error(error);
    showError(error);
    say('status', inWords(error));
    if (error.type === 'internal' || error.type === 'device_lost') drop(); // the next attempt starts afresh
}

function busy(on) {
    $('go').disabled = on;
    $('stop').disabled = !on;
    $('load').hidden = on;
    $('cancel').hidden = !on;
    for (const select of document.querySelectorAll('select')) select.disabled = on;
    $('work').setAttribute('aria-busy', String(on));
    $('output').setAttribute('aria-busy', String(on)); // read out when it is finished, not word by word
}

const atBottom = node => node.scrollHeight - node.scrollTop - node.clientHeight < 40;

/** Shows pieces as they come, at most once a frame, with live figures. Returns what was measured. */
async function stream(pieces, node, box, live) {
    const begun = performance.now();
    let text = '', n = 0, first = 0, frame = 0;
    const paint = () => {
        frame = 0;
        const follow = atBottom(box);
        node.data = text;
        if (follow) box.scrollTop = box.scrollHeight;
        live(n, first);
    };
    try {
        for await (const piece of pieces) {
            if (!n++) {
                first = performance.now();
                performance.mark('dibit-first-token');
                say('first', `${Math.round(first - begun)} ms`);
            }
            text += piece;
            frame ||= requestAnimationFrame(paint);
        }
    } finally {
        cancelAnimationFrame(frame);
        paint();
    }
    const spent = performance.now() - first;
    return { n, text, speed: n > 1 ? 1000 * (n - 1) / spent : 0, first: first - begun };
}

const speedOf = (n, first) => n > 1 ? (1000 * (n - 1) / (performance.now() - first)).toFixed(0) : '–';

function live(n, first) {
    say('speed', speedOf(n, first));
    say('progress-text', `${n} tokens, ${speedOf(n, first)} a second`);
    if (engine) showContext(engine);
}

async function finish(result) {
    say('speed', result.speed ? result.speed.toFixed(0) : '–');
    if (engine) {
        showContext(engine);
        showMemory(await engine.memory());
    }
    done = `Done: ${result.n} tokens, ${result.speed.toFixed(0)} a second.`;
    say('status', done);
}

async function* texts(tokens) {
    for await (const t of tokens) yield t.token;
}

async function* deltas(chunks) {
    for await (const c of chunks) if (c.choices[0]?.delta?.content) yield c.choices[0].delta.content;
}

function place(...nodes) {
    const output = $('output');
    output.querySelector('.empty')?.remove();
    output.append(...nodes);
    output.scrollTop = output.scrollHeight;
}

async function write(prompt, signal) {
    const e = await ensure(signal), paragraph = element('p'), node = new Text();
    paragraph.append(element('span', prompt, 'given'), node);
    place(paragraph);
    await finish(await stream(texts(e.generate(prompt, { ...sampling(), signal })), node, $('output'), live));
}

async function chat(prompt, signal) {
    const e = await ensure(signal), answer = element('p', '', 'turn model'), node = new Text();
    answer.append(node);
    place(element('p', prompt, 'turn user'), answer);
    $('prompt').value = '';
    const { max_new_tokens: max_tokens, ...rest } = sampling();
    const asked = [...messages, { role: 'user', content: prompt }];
    const body = { messages: asked, stream: true, max_tokens, ...rest, signal };
    try {
        const result = await stream(deltas(await e.chat.completions.create(body)), node, $('output'), live);
        messages = [...asked, { role: 'assistant', content: result.text }];
        await finish(result);
    } catch (error) {
        // what was said stays in the conversation, as it stays on the page
        if (node.data) messages = [...asked, { role: 'assistant', content: node.data }];
        throw error;
    }
}

async function compare(prompt, signal) {
    drop(); // one model in memory at a time
    for (const c of columns) {
        const { model, k, v } = c.selects;
        const options = { ...wanted(), model: model.value, cache_type_k: k.value || undefined, cache_type_v: v.value || undefined };
        const node = new Text(), paragraph = element('p');
        paragraph.append(element('span', prompt, 'given'), node);
        c.text.replaceChildren(paragraph);
        say('status', `Side ${c.name}`);
        const side = await open(options, signal);
        try {
            const show = (n, first) => say('speed', speedOf(n, first));
            const result = await stream(texts(side.generate(prompt, { ...sampling(), signal })), node, c.text, show);
            const memory = await side.memory();
            c.figures.textContent = `${result.speed.toFixed(0)} tokens/s, first after ${Math.round(result.first)} ms; `
                + `weights ${megabytes(memory.weights)}, KV cache ${megabytes(memory.kv)} for ${side.contextWindow} positions`;
            showMemory(memory);
            showContext(side);
        } finally {
            side.destroy();
        }
    }
    done = 'Both sides are done.';
    say('status', done);
}

// ---- events ----

function choose(next) {
    mode = next;
    for (const tab of document.querySelectorAll('[role=tab]')) {
        const on = tab.id === `tab-${mode}`;
        tab.setAttribute('aria-selected', String(on));
        tab.tabIndex = on ? 0 : -1;
    }
    $('work').setAttribute('aria-labelledby', `tab-${mode}`);
    $('output').hidden = mode === 'compare';
    $('columns').hidden = mode !== 'compare';
    say('hint', HINTS[mode]);
    say('prompt-label', NAMES[mode][0]);
    say('go', NAMES[mode][1]);
}

function clear() {
    messages = [];
    $('output').replaceChildren(element('p', 'The text will appear here.', 'empty'));
    for (const c of columns) {
        c.text.replaceChildren(element('p', 'Its text will appear here.', 'empty'));
        c.figures.textContent = '';
    }
    showError(null);
    $('prompt').focus();
}

async function submit() {
    if (early && !await early) return; // who is quicker than the load is not forgotten
    const prompt = $('prompt').value;
    if (!prompt.trim()) return showError('Please write something to begin with.');
    run(signal => ({ write, chat, compare })[mode](prompt, signal));
}

const tabs = [...document.querySelectorAll('[role=tab]')];
tabs.forEach((tab, i) => {
    tab.onclick = () => { if (!running) { if (mode !== tab.id.slice(4)) { choose(tab.id.slice(4)); clear(); } } };
    tab.onkeydown = event => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        const next = tabs[(i + step + tabs.length) % tabs.length];
        next.click();
        next.focus();
    };
});
$('form').onsubmit = event => {
    event.preventDefault();
    submit();
};
$('prompt').onkeydown = event => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey || (mode === 'chat' && !event.shiftKey))) {
        event.preventDefault();
        submit();
    }
};
document.addEventListener('keydown', event => { if (event.key === 'Escape') running?.abort(); });
$('stop').onclick = $('cancel').onclick = () => running?.abort();
$('clear').onclick = () => { if (!running) clear(); };
$('load').onclick = () => run(async signal => {
    await ensure(signal);
    say('status', 'The model is loaded.');
});
for (const id of ['weights', 'kv-k', 'kv-v', 'n_ctx', 'threads']) $(id).addEventListener('change', showLoadState);
document.addEventListener('change', event => {
    if (event.target.tagName === 'SELECT') ownFile(event.target);
});

// ---- colours and report ----

const dark = () => document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;

function nameTheme() {
    say('theme', dark() ? 'Light' : 'Dark');
    $('theme').setAttribute('aria-label', `Switch to ${dark() ? 'light' : 'dark'} colours`);
}

$('theme').onclick = () => {
    const theme = document.documentElement.dataset.theme = dark() ? 'light' : 'dark';
    try {
        localStorage.setItem('dibit.theme', theme);
    } catch { /* then it lasts for this visit */ }
    nameTheme();
};

async function report() {
    const found = await capabilities();
    showReport(found);
    $('copy').onclick = async () => {
        try {
            await navigator.clipboard.writeText(JSON.stringify(found, null, 2));
            say('copied', 'Copied.');
        } catch {
            getSelection().selectAllChildren($('report'));
            say('copied', 'The browser does not let the page copy; the report is selected.');
        }
    };
}

nameTheme();
choose(mode);
showLoadState();
$('go').disabled = false;
document.documentElement.dataset.ready = '';
report().catch(error => say('report-short', inWords(error)));
// What lies in the cache already needs no download: it is loaded at once.
async function preload() {
    const state = await availability({ model: MODELS[0].url });
    if (state !== 'available' || running || engine) return;
    early = run(signal => ensure(signal)).then(() => Boolean(engine));
    await early;
    early = null;
}
preload().catch(() => {}); // then the model is loaded when it is asked for
