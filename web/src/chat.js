// chat.js - runs in the page: the shapes of OpenAI's chat completions, made from the engine's tokens.

const head = (object, model) => ({
    id: `chatcmpl-${crypto.randomUUID?.() ?? Math.random().toString(36).slice(2)}`,
    object, created: Math.floor(Date.now() / 1000), model,
});

const usageOf = (started, n) => ({
    prompt_tokens: started.prompt_tokens, completion_tokens: n,
    total_tokens: started.prompt_tokens + n,
    prompt_tokens_details: { cached_tokens: started.cached_tokens },
});

/** The options of generate() in a request's body. */
export const optionsOf = body => ({
    ...body, messages: undefined, stream: undefined, stream_options: undefined,
    max_new_tokens: body.max_completion_tokens ?? body.max_tokens ?? body.max_new_tokens,
});

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
