// index.d.ts - what the package offers, with types.

export type ErrorType = 'unsupported' | 'download' | 'format' | 'out_of_memory' | 'context_full' |
    'device_lost' | 'aborted' | 'quota' | 'argument' | 'internal';

/** Every failure is one of these; `type` is stable, `message` is a sentence for people. */
export class DibitError extends Error {
    readonly name: 'DibitError';
    readonly type: ErrorType;
    /** Numbers that belong to it: needed and available bytes of out_of_memory; requested and available
     *  tokens of context_full; status, loaded and total of download. */
    readonly details?: Record<string, number>;
}

export interface Warning {
    type: ErrorType;
    message: string;
}

export interface Progress {
    stage: 'module' | 'waiting' | 'download' | 'cache' | 'open' | 'warning';
    /** Bytes; not there with a warning. */
    loaded?: number;
    total?: number;
    warning?: Warning;
}

export type CacheType = 'f16' | 'q8' | 'q4' | 'k3' | 'k2';

/**
 * Where models are kept between visits. Keys are "name/0", "name/1", ... for the chunks of a file, of
 * 1 MiB each but the last, and "name/manifest". A Map is a store. An error named QuotaExceededError
 * from set() says that there is no room; the load then goes on without keeping.
 */
export interface Store {
    get(key: string): Uint8Array | null | undefined | Promise<Uint8Array | null | undefined>;
    set(key: string, bytes: Uint8Array): unknown;
    delete(key: string): unknown;
}

export type Source = string | URL | Blob;

export interface EngineOptions {
    /**
     * A GGUF file: its url, a Blob or File, a stream; the first of its shards
     * (name-00001-of-0000N.gguf) or a list of all; or the url of a manifest (.json) of variants.
     */
    model: Source | ReadableStream<Uint8Array> | Source[];
    onProgress?: (progress: Progress) => void;
    signal?: AbortSignal;
    /**
     * 'wasm' (when left out); 'webgpu': the GPU, a software one too; 'auto': a GPU that is found faster.
     * Where the GPU is not there or fails WebAssembly is used: `path` and `warnings` say so.
     */
    backend?: 'auto' | 'wasm' | 'webgpu';
    /** Positions of the context. What is left out here and below, the plan chooses for the device. */
    n_ctx?: number;
    cache_type_k?: CacheType;
    cache_type_v?: CacheType;
    n_threads?: number;
    /** Bytes for weights, cache, scratch and loading together; what needs more is refused. */
    memory_budget?: number;
    /** Left out: private files (OPFS), else the Cache API, else nothing is kept. 'memory': nothing. */
    store?: 'opfs' | 'cache' | 'memory' | Store;
    /** A worker that runs worker.js, or where that file lies, for hosts that need to say it. */
    worker?: Worker;
    workerUrl?: string | URL;
    /** The folder of the .wasm files, or the url of each. */
    wasmUrl?: string | URL | Record<'simd' | 'threads' | 'relaxed1' | 'relaxed', string>;
    /** Seconds of silence after which the worker counts as lost; 30. */
    watchdog_s?: number;
}

export interface GenerateOptions {
    /** Left out: until the model ends its text, or the context is full. */
    max_new_tokens?: number;
    /** 0.8; with 0 always the likeliest token. */
    temperature?: number;
    /** 40; 0: all. */
    top_k?: number;
    /** 0.95 */
    top_p?: number;
    /** 0.05 */
    min_p?: number;
    repeat_penalty?: number;
    /** The same seed gives the same text; left out: a random one. */
    seed?: number | bigint;
    /** Texts that end the answer; they are not shown. */
    stop?: string | string[];
    signal?: AbortSignal;
}

export interface Token {
    /** Text that is ready to be shown; empty while a character or a stop string may still be open. */
    token: string;
    token_id: number;
    tokens_generated: number;
    finished: boolean;
    finish_reason: null | 'stop' | 'length';
}

export interface Message {
    role: 'system' | 'user' | 'assistant';
    content: string | { type: 'text'; text: string }[];
}

export interface ChatRequest extends Omit<GenerateOptions, 'seed' | 'stop'> {
    messages: Message[];
    model?: string;
    max_tokens?: number | null;
    max_completion_tokens?: number | null;
    seed?: number | bigint | null;
    stop?: string | string[] | null;
    stream_options?: { include_usage?: boolean };
}

export interface Usage {
    prompt_tokens: number;
    completion_tokens: number;
    total_tokens: number;
    prompt_tokens_details: { cached_tokens: number };
}

export interface ChatCompletion {
    id: string;
    object: 'chat.completion';
    created: number;
    model: string;
    choices: [{
        index: 0;
        message: { role: 'assistant'; content: string };
        logprobs: null;
        finish_reason: 'stop' | 'length';
    }];
    usage: Usage;
}

export interface ChatCompletionChunk {
    id: string;
    object: 'chat.completion.chunk';
    created: number;
    model: string;
    /** One; in the last chunk, where usage was asked for, none. */
    choices: {
        index: 0;
        delta: { role?: 'assistant'; content?: string };
        logprobs: null;
        finish_reason: null | 'stop' | 'length';
    }[];
    usage?: Usage | null;
}

export interface ChatCompletions {
    create(request: ChatRequest & { stream: true }): Promise<AsyncGenerator<ChatCompletionChunk, void, void>>;
    create(request: ChatRequest & { stream?: false }): Promise<ChatCompletion>;
}

export interface PlanLine {
    key: string;
    value: string;
    reason: string;
}

export interface Memory {
    /** Bytes of the weights as they are used, of the cache, and of everything else a session has. */
    weights: number;
    kv: number;
    scratch: number;
    /** Bytes of the module's memory, and the most that was taken at any time, chunks in flight included. */
    wasm: number;
    peak: number;
}

export interface ModelInfo {
    architecture: string;
    name: string;
    chat_template: string;
    isa: string;
    n_vocab: number;
    n_ctx_train: number;
    n_layers: number;
    n_params: number;
    weight_bytes: number;
    file_bytes: number;
}

export interface Path {
    backend: 'wasm' | 'webgpu';
    /** The file that runs: dibit-gpu, dibit-simd, dibit-threads, dibit-relaxed1 or dibit-relaxed. */
    module: string;
    isa: string;
    threads: number;
    /** Of a GPU; floor: nothing but what every one has was asked of it, since something failed. */
    adapter?: { vendor: string; architecture: string; description: string; software: boolean; floor: boolean };
    /** How near the GPU is to the CPU: mean divergence in nats, and positions with another likeliest token. */
    check?: { positions: number; kld: number; other: number };
    /** With backend 'auto': milliseconds of a token, measured and, of the CPU, estimated. */
    probe?: { gpu_ms: number; cpu_ms: number };
}

export interface Engine {
    /** Goes on with a text. What the prompt has in common with the one before is not computed again. */
    generate(prompt: string, options?: GenerateOptions): AsyncGenerator<Token, void, void>;
    readonly chat: { readonly completions: ChatCompletions };
    /** A second engine that goes on where this one is; both share the model and their common past. */
    clone(): Promise<Engine>;
    /** Tokens that the context holds, and that it has room for. */
    readonly contextUsage: number;
    readonly contextWindow: number;
    measureContextUsage(text: string): Promise<number>;
    memory(): Promise<Memory>;
    readonly info: ModelInfo;
    /** What really runs; it changes where something failed and the next best took over. */
    readonly path: Path;
    /** What was chosen for this device and model, and why. */
    readonly plan: PlanLine[];
    /** What went wrong without ending anything: no room to keep the model, a module that failed. */
    readonly warnings: Warning[];
    /** Frees it, and ends all that it does; with the last clone the worker ends. */
    destroy(): void;
}

export function createEngine(options: EngineOptions): Promise<Engine>;

/** 'available': it is in the store (or needs no download); 'unavailable': this browser cannot run it. */
export function availability(options?: Pick<EngineOptions, 'model' | 'store'>):
    Promise<'unavailable' | 'downloadable' | 'available'>;

/** What this browser and device can do, by probes; what is not known is not there. */
export function capabilities(): Promise<Record<string, string | number | boolean>>;
