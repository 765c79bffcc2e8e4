// view.js - what the page shows: sizes and times in words, the plan, the report, memory. No state of its own.
export const $ = id => document.getElementById(id);

/** An element with text and a class; text is never read as HTML. */
export function element(tag, text = '', name = '') {
    const node = document.createElement(tag);
    if (text !== '') node.textContent = text;
    if (name) node.className = name;
    return node;
}

export const megabytes = n => `${(n / 1e6).toLocaleString('en', { maximumFractionDigits: n < 9.95e6 ? 1 : 0 })} MB`;

export function seconds(s) {
    if (s < 60) return `${Math.max(1, Math.round(s))} s`;
    return `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;
}

const STAGES = { module: 'Starting the engine', waiting: 'Another tab is fetching it', download: 'Downloading',
    cache: 'Reading from the cache', open: 'Opening the model' };

/** Progress in bytes and time left. `begun` is when the first byte came. */
export function showProgress({ loaded, total, stage }, begun) {
    const bar = $('bar'), name = STAGES[stage] || 'Loading';
    if (!total) {
        bar.removeAttribute('value');
        return say('progress-text', `${name} …`);
    }
    bar.value = loaded / total;
    const spent = (performance.now() - begun) / 1000;
    const left = loaded > 0 && loaded < total && spent > 0.5 ? `, ${seconds(spent * (total - loaded) / loaded)} left` : '';
    say('progress-text', `${name}: ${megabytes(loaded)} of ${megabytes(total)}${left}`);
}

export function say(id, text) {
    if ($(id).textContent !== text) $(id).textContent = text;
}

const IN_WORDS = {
    unsupported: 'This browser or this build cannot do that.',
    download: 'The model could not be downloaded.',
    format: 'The file is not a model that can be read here.',
    out_of_memory: 'There is not enough memory for this.',
    context_full: 'The text is longer than the context.',
    device_lost: 'The graphics device was lost.',
    quota: 'The browser’s storage is full.',
    argument: 'One of the settings cannot be used.',
    internal: 'Something went wrong in the engine.',
};

/** An error as one or two sentences: what happened, then what exactly. */
export function inWords(error) {
    const what = IN_WORDS[error.type], exactly = String(error.message || error);
    return what ? `${what} (${exactly})` : exactly;
}

export function showError(error) {
    $('error').hidden = !error;
    if (error) $('error').textContent = typeof error === 'string' ? error : inWords(error);
}

export function showMemory(memory) {
    const parts = { weights: memory.weights, kv: memory.kv, scratch: memory.scratch };
    const sum = Object.values(parts).reduce((a, b) => a + b, 0), whole = Math.max(sum, memory.wasm || 0);
    for (const [name, bytes] of Object.entries(parts)) {
        say(`m-${name}`, megabytes(bytes));
        $('stack').querySelector(`.${name}`).style.width = `${100 * bytes / whole}%`;
    }
    say('total', megabytes(whole));
    $('stack').setAttribute('aria-label', `Memory: weights ${megabytes(parts.weights)}, KV cache `
        + `${megabytes(parts.kv)}, scratch ${megabytes(parts.scratch)}, ${megabytes(whole)} in all`);
}

export function showContext(engine) {
    say('used', `${engine.contextUsage} / ${engine.contextWindow}`);
}

/** @param {{key: string, value: string, reason: string}[]} plan */
export function showPlan(plan, path) {
    const list = $('plan');
    list.replaceChildren();
    for (const { key, value, reason } of plan) {
        const row = element('div'), term = element('dt', String(key).replaceAll('_', ' '));
        term.append(element('span', /^\d{5,}$/.test(value) ? megabytes(Number(value)) : String(value)));
        row.append(term);
        if (reason) row.append(element('dd', reason));
        list.append(row);
    }
    if (path) say('plan-short', `${path.backend}, ${path.isa}, ${path.threads} thread${path.threads > 1 ? 's' : ''}`);
}

// Nested values get names with dots.
function flat(value, name, out) {
    if (value !== null && typeof value === 'object' && !Array.isArray(value))
        for (const [key, inner] of Object.entries(value)) flat(inner, name ? `${name}.${key}` : key, out);
    else out.push([name, value]);
    return out;
}

const plain = value => value === true ? 'yes' : value === false ? 'no' : value === null || value === undefined ? '–'
    : Array.isArray(value) ? value.join(', ') || '–' : String(value);

export function showReport(report) {
    $('report').replaceChildren(...flat(report, '', []).map(([name, value]) => {
        const row = element('div');
        row.append(element('dt', name.replaceAll('_', ' ')), element('dd', plain(value)));
        return row;
    }));
}

/** A select's options from [value, text] pairs. */
export function fill(select, pairs, chosen) {
    select.replaceChildren(...pairs.map(([value, text]) => new Option(text, value, false, value === chosen)));
}
