// worker.mjs - the browser's Worker for node: a thread whose self, postMessage and onmessage are those
// of a dedicated worker. Started as a thread it loads the script that it was given.
import { isMainThread, parentPort, Worker as Thread, workerData } from 'node:worker_threads';

export class Worker {
    constructor(url) {
        this.thread = new Thread(new URL(import.meta.url), { workerData: { script: String(url) } });
        this.thread.on('message', data => this.onmessage?.({ data }));
        this.thread.on('error', e => this.onerror?.({ message: e.message }));
        this.thread.unref();
    }
    postMessage(data, transfer) {
        this.thread.postMessage(data, transfer);
    }
    terminate() {
        return this.thread.terminate();
    }
}

globalThis.Worker = Worker; // for threads of the engine

if (!isMainThread && workerData?.script) {
    globalThis.self = globalThis;
    globalThis.navigator ??= { hardwareConcurrency: 2 };
    self.postMessage = (data, transfer) => parentPort.postMessage(data, transfer);
    const early = [];
    let handler = data => early.push(data);
    Object.defineProperty(self, 'onmessage', { set(f) { handler = data => f({ data }); early.splice(0).forEach(handler); } });
    parentPort.on('message', data => handler(data));
    await import(workerData.script);
}
