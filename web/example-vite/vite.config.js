// With these headers a page may use threads; without them all works with one.
const headers = {
    'Cross-Origin-Opener-Policy': 'same-origin',
    'Cross-Origin-Embedder-Policy': 'require-corp',
};

export default {
    base: './',
    worker: { format: 'es' }, // the package's workers are modules
    optimizeDeps: { exclude: ['dibit'] }, // its files find each other by their urls
    server: { headers },
    preview: { headers },
};
