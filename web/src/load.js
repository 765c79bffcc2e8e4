// load.js - runs in the worker: brings a model into the module's memory, chunk by chunk into the
// place where it stays. Besides that place only the chunk that has just come takes memory.
import { aborted, asDibitError, DibitError, fail } from './errors.js';

/** A url as { size, chunks }: size is undefined where the server does not say it. */
async function openUrl(url, signal) {
    let response;
    try {
        response = await fetch(url, { signal });
    } catch (e) {
        if (signal.aborted) throw aborted(signal);
        throw new DibitError('download', `${url}: ${e.message}`, undefined, { cause: e });
    }
    if (!response.ok) fail('download', `${url}: the server answered ${response.status}`, { status: response.status });
    const coded = response.headers.get('content-encoding');
    const length = response.headers.get('content-length');
    return { name: url, size: length && !coded ? Number(length) : undefined,
        chunks: read(response.body, url, signal) };
}

async function* read(stream, name, signal) {
    const reader = stream.getReader();
    const stop = () => reader.cancel().catch(() => {});
    signal.addEventListener('abort', stop);
    try {
        for (;;) {
            if (signal.aborted) throw aborted(signal);
            const { done, value } = await reader.read();
            if (signal.aborted) throw aborted(signal);
            if (done) return;
            yield value;
        }
    } catch (e) {
        if (signal.aborted) throw aborted(signal);
        throw asDibitError(e, 'download');
    } finally {
        signal.removeEventListener('abort', stop);
        stop();
    }
}

/** Anything that createEngine takes as a model, as { name, size, chunks }. */
export function openSource(model, signal) {
    if (typeof model === 'string') return openUrl(model, signal);
    if (model instanceof Blob)
        return { name: model.name ?? 'blob', size: model.size, chunks: read(model.stream(), model.name ?? 'blob', signal) };
    return fail('argument', 'model must be a url, a Blob or File, or a ReadableStream');
}

/**
 * Streams the source into memory. Returns { ptr, size, peak }.
 * @param {import('./wasm.js').Wasm} wasm
 */
export async function loadImage(wasm, source, onProgress, signal) {
    const total = source.size;
    if (total === undefined) fail('download', `${source.name}: the server does not say how long it is`);
    const ptr = wasm.malloc(total);
    let loaded = 0, largest = 0;
    try {
        onProgress({ loaded, total, stage: 'download' });
        for await (const chunk of source.chunks) {
            if (signal.aborted) throw aborted(signal);
            if (chunk.length > total - loaded) fail('download', `${source.name}: more came than the ${total} bytes announced`);
            wasm.bytes.set(chunk, ptr + loaded);
            loaded += chunk.length;
            largest = Math.max(largest, chunk.length);
            onProgress({ loaded, total, stage: 'download' });
        }
        if (loaded < total)
            fail('download', `${source.name}: ended after ${loaded} of ${total} bytes`, { loaded, total });
    } catch (e) {
        wasm.x.free(ptr);
        throw e;
    }
    return { ptr, size: total, peak: wasm.memory.buffer.byteLength + largest };
}
