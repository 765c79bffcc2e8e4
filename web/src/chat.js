// chat.js - runs in the page: the shapes of OpenAI's chat completions, made from the engine's tokens.
import { fail } from './errors.js';

const head = (object, model) => ({
    id: `chatcmpl-${crypto.randomUUID?.() ?? Math.random().toString(36).slice(2)}`,
    object, created: Math.floor(Date.now() / 1000), model,
});

const usageOf = (started, n) => ({
    prompt_tokens: started.prompt_tokens, completion_tokens: n,
    total_tokens: started.prompt_tokens + n,
    prompt_tokens_details: { cached_tokens: started.cached_tokens },
});

const textOf = content => (Array.isArray(content)
    ? content.map(part => (part.type === 'text' ? part.text : fail('unsupported', `content of type ${part.type}`))).join('')
    : String(content ?? ''));

// Asked for and not done would be worse than an error.
function refuse(body) {
    const no = name => fail('unsupported', `${name} is not supported`);
    if (body.tools?.length) no('tools');
    if (body.n > 1) no('n above 1');
    if (body.logprobs) no('logprobs');
    if (body.response_format && body.response_format.type !== 'text') no(`response_format ${body.response_format.type}`);
    if (body.frequency_penalty || body.presence_penalty) no('frequency_penalty or presence_penalty');
}

/** The options of generate() in a request's body. */
export function optionsOf(body) {
    refuse(body);
    const { temperature, top_p, top_k, min_p, repeat_penalty, seed, stop, signal } = body;
    return { temperature, top_p, top_k, min_p, repeat_penalty, seed: seed ?? undefined, stop: stop ?? undefined, signal,
        max_new_tokens: body.max_completion_tokens ?? body.max_tokens ?? body.max_new_tokens ?? undefined,
        messages: body.messages.map(m => ({ role: m.role, content: textOf(m.content) })) };
}

/** @param {AsyncIterable} tokens of the engine @param {() => object} started the prompt's counts */
export async function* chunks(tokens, body, model, started) {
    const common = head('chat.completion.chunk', model), include = body.stream_options?.include_usage;
    const chunk = (delta, finish_reason = null) => ({ ...common,
        choices: [{ index: 0, delta, logprobs: null, finish_reason }], ...(include && { usage: null }) });
    let count = 0, first = true;
    for await (const t of tokens) {
        if (first) yield chunk({ role: 'assistant', content: '' });
        first = false;
        count = t.tokens_generated;
        if (t.token) yield chunk({ content: t.token });
        if (t.finished) yield chunk({}, t.finish_reason);
    }
    if (include) yield { ...common, choices: [], usage: usageOf(started(), count) };
}

export async function whole(tokens, model, started) {
    const common = head('chat.completion', model);
    let content = '', count = 0, finish_reason = null;
    for await (const t of tokens) {
        content += t.token;
        count = t.tokens_generated;
        finish_reason = t.finish_reason;
    }
    return { ...common, choices: [{ index: 0, message: { role: 'assistant', content }, logprobs: null, finish_reason }],
        usage: usageOf(started(), count) };
}
