// gpu-worker.js - the package's worker on a WebGPU that fails as its url says.
import './gpu-faults.js';
import '/dist/worker.js';
