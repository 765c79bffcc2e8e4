// errors.js - the one class of error, its types, and how errors cross from the worker to the page.
// Every failure that a caller sees is a DibitError: whatever else is thrown becomes one here.

/** What can go wrong, as `error.type`; the strings never change. */
export const TYPES = ['unsupported', 'download', 'format', 'out_of_memory', 'context_full',
    'device_lost', 'aborted', 'quota', 'argument', 'internal'];

// The codes of dibit.h.
const OF_CODE = {
    '-1': 'argument', '-2': 'out_of_memory', '-3': 'download', '-4': 'format', '-5': 'unsupported',
    '-6': 'context_full', '-7': 'format', '-8': 'aborted', '-9': 'format',
    '-10': 'device_lost',
};

export class DibitError extends Error {
    /**
     * @param {string} type one of TYPES
     * @param {string} message one sentence
     * @param {object} [details] numbers that a program may want: needed, available, requested ...
     */
    constructor(type, message, details, options) {
        super(message, options);
        this.name = 'DibitError';
        this.type = type;
        if (details) this.details = details;
    }
}

export const fail = (type, message, details) => {
    throw new DibitError(type, message, details);
};

/** The error of a call of the engine that returned `code`. */
export const engineError = (code, message) => new DibitError(OF_CODE[code] ?? 'internal', message);

/** Any error as a DibitError; `type` is for those that do not say what they are. */
export function asDibitError(e, type = 'internal') {
    if (e instanceof DibitError) return e;
    const name = e?.name, message = String(e?.message ?? e);
    if (name === 'AbortError') type = 'aborted';
    else if (name === 'QuotaExceededError') type = 'quota';
    else if (name === 'RuntimeError' && /memory/i.test(message) && /grow|alloc/i.test(message))
        type = 'out_of_memory';
    else if (name === 'RangeError' && /memory|buffer|alloc/i.test(message)) type = 'out_of_memory';
    return new DibitError(type, message, undefined, { cause: e });
}

/** What an aborted signal rejects with. */
export const aborted = signal =>
    new DibitError('aborted', 'aborted', undefined, signal && { cause: signal.reason });

/** Errors as plain objects, which every browser can send, and back. */
export const pack = e => ({ type: e.type, message: e.message, details: e.details });
export const unpack = o => new DibitError(o.type, o.message, o.details);
