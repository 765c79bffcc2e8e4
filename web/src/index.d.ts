// index.d.ts - what the package offers, with types.

export type ErrorType = 'unsupported' | 'download' | 'format' | 'out_of_memory' | 'context_full' |
    'device_lost' | 'aborted' | 'quota' | 'argument' | 'internal';

/** Every failure is one of these; `type` is stable, `message` is a sentence for people. */
export class DibitError extends Error {
    readonly type: ErrorType;
    /** Numbers that belong to it, e.g. needed and available bytes of out_of_memory. */
    readonly details?: Record<string, number>;
}

export interface Progress {
    loaded: number;
    total: number;
    stage: 'module' | 'download' | 'open';
}

export type CacheType = 'f16' | 'q8' | 'q4' | 'k3' | 'k2';

export interface EngineOptions {
    /** A GGUF file. */
    model: string | URL | Blob;
    onProgress?: (progress: Progress) => void;
    signal?: AbortSignal;
    /** Positions of the context; left out: the model's own. */
    n_ctx?: number;
    cache_type_k?: CacheType;
    cache_type_v?: CacheType;
    /** A worker that runs worker.js, or where that file lies, for hosts that need to say it. */
    worker?: Worker;
    workerUrl?: string | URL;
    /** The folder of the .wasm files, or the url of each. */
    wasmUrl?: string | { simd: string; relaxed: string };
}

export interface GenerateOptions {
    max_new_tokens?: number;
    temperature?: number;
    top_p?: number;
    top_k?: number;
    min_p?: number;
    repeat_penalty?: number;
    seed?: number | bigint;
    stop?: string | string[];
    signal?: AbortSignal;
}

export interface Token {
    /** Text that is ready to be shown; may be empty while a character or a stop string is open. */
    token: string;
    token_id: number;
    tokens_generated: number;
    finished: boolean;
    finish_reason: null | 'stop' | 'length';
}

export interface Message {
    role: 'system' | 'user' | 'assistant';
    content: string;
}

export interface Engine {
    generate(prompt: string, options?: GenerateOptions): AsyncIterable<Token>;
    readonly chat: { completions: { create(body: any): Promise<any> } };
    /** A second engine that goes on where this one is; both share the model and what they have in common. */
    clone(): Promise<Engine>;
    readonly contextUsage: number;
    readonly contextWindow: number;
    measureContextUsage(text: string): Promise<number>;
    memory(): Promise<{ weights: number; kv: number; scratch: number; wasm: number; peak: number }>;
    readonly info: Record<string, string | number>;
    readonly path: { backend: 'wasm' | 'webgpu'; module: string; isa: string; threads: number };
    readonly plan: { key: string; value: string; reason: string }[];
    destroy(): void;
}

export function createEngine(options: EngineOptions): Promise<Engine>;
