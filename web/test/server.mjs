// server.mjs - a small server for tests: a table of paths to bytes, and what shall go wrong with them.
import { createServer } from 'node:http';

/** @param {Record<string, { body: Uint8Array, type?: string, ...}>} files looked at on each request */
export async function serve(files) {
    const log = [];
    const server = createServer((request, response) => {
        const file = files[new URL(request.url, 'http://x').pathname];
        log.push({ url: request.url, range: request.headers.range, status: file ? 200 : 404 });
        if (!file) return response.writeHead(404).end('no such file');
        response.writeHead(200, { 'content-length': file.body.length, 'content-type': file.type ?? 'application/octet-stream' });
        if (file.cut === undefined) return response.end(file.body);
        response.write(file.body.subarray(0, file.cut), () => response.destroy());
    });
    await new Promise(resolve => server.listen(0, '127.0.0.1', resolve));
    server.unref();
    return { url: `http://127.0.0.1:${server.address().port}`, log, close: () => server.close() };
}
