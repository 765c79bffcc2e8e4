// unit-text.mjs - stop strings, errors, the shapes of chat completions.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { chunks, optionsOf, whole } from '../src/chat.js';
import { asDibitError, DibitError, pack, TYPES, unpack } from '../src/errors.js';
import { StopFilter } from '../src/text.js';

test('a stop string is found however its text is cut, and nothing of it is shown', () => {
    const text = 'one two, two three END four', stops = ['END', 'two t', 'zzz'];
    const want = 'one two, ';
    for (let size = 1; size <= text.length; size++) {
        const filter = new StopFilter(stops);
        let shown = '';
        for (let i = 0; i < text.length && !filter.stopped; i += size)
            shown += filter.push(text.slice(i, i + size), i + size >= text.length);
        assert.equal(shown, want, `pieces of ${size}`);
        assert.ok(filter.stopped);
    }
});

test('what only begins as a stop string is shown in the end', () => {
    const filter = new StopFilter(['<end>']);
    assert.equal(filter.push('a<en'), 'a');
    assert.equal(filter.push('dless'), '<endless');
    assert.equal(filter.push('<e'), '');
    assert.equal(filter.push('', true), '<e');
    assert.ok(!filter.stopped);
    assert.equal(new StopFilter(['']).push('text'), 'text');
    assert.equal(new StopFilter([]).push('text'), 'text');
});

test('every error has one of the types, and crosses to the page whole', () => {
    const named = (name, message = 'text') => Object.assign(new Error(message), { name });
    const types = [[named('AbortError'), 'aborted'], [named('QuotaExceededError'), 'quota'],
        [new RangeError('WebAssembly.Memory(): could not allocate memory'), 'out_of_memory'],
        [new TypeError('x'), 'internal'], ['a text', 'internal'], [undefined, 'internal']];
    for (const [e, type] of types) assert.equal(asDibitError(e).type, type);
    const back = unpack(structuredClone(pack(new DibitError('out_of_memory', 'no', { needed: 5 }))));
    assert.ok(back instanceof DibitError && back instanceof Error);
    assert.deepEqual([back.type, back.message, back.details], ['out_of_memory', 'no', { needed: 5 }]);
    assert.equal(new Set(TYPES).size, 10);
});

const tokens = async function* () {
    yield { token: 'Hel', token_id: 1, tokens_generated: 1, finished: false, finish_reason: null };
    yield { token: '', token_id: 2, tokens_generated: 2, finished: false, finish_reason: null };
    yield { token: 'lo', token_id: 3, tokens_generated: 3, finished: true, finish_reason: 'length' };
};
const counts = () => ({ prompt_tokens: 7, cached_tokens: 4 });

test('chunks have the shape that clients expect', async () => {
    const all = [];
    for await (const c of chunks(tokens(), { stream_options: { include_usage: true } }, 'm', counts)) all.push(c);
    assert.equal(new Set(all.map(c => c.id)).size, 1);
    assert.ok(all[0].id && all.every(c => c.object === 'chat.completion.chunk' && c.model === 'm' && c.created > 0));
    assert.deepEqual(all.map(c => c.choices[0]?.delta), [{ role: 'assistant', content: '' }, { content: 'Hel' },
        { content: 'lo' }, {}, undefined]);
    assert.deepEqual(all.map(c => c.choices[0]?.finish_reason), [null, null, null, 'length', undefined]);
    assert.deepEqual(all.map(c => c.usage?.total_tokens), [undefined, undefined, undefined, undefined, 10]);
    assert.deepEqual(all.at(-1).usage, { prompt_tokens: 7, completion_tokens: 3, total_tokens: 10,
        prompt_tokens_details: { cached_tokens: 4 } });
    for await (const c of chunks(tokens(), {}, 'm', counts)) assert.ok(!('usage' in c) && c.choices.length === 1);
});

test('a whole answer has it too', async () => {
    const answer = await whole(tokens(), 'm', counts);
    assert.equal(answer.object, 'chat.completion');
    assert.deepEqual(answer.choices[0].message, { role: 'assistant', content: 'Hello' });
    assert.equal(answer.choices[0].finish_reason, 'length');
    assert.equal(answer.usage.completion_tokens, 3);
});

test('a request is read as OpenAI means it, and what cannot be done is refused', () => {
    const messages = [{ role: 'user', content: [{ type: 'text', text: 'a' }, { type: 'text', text: 'b' }] }];
    const o = optionsOf({ messages, max_tokens: 5, seed: null, stop: null, temperature: 0 });
    assert.deepEqual(o.messages, [{ role: 'user', content: 'ab' }]);
    assert.deepEqual([o.max_new_tokens, o.seed, o.stop, o.temperature], [5, undefined, undefined, 0]);
    for (const more of [{ tools: [{}] }, { n: 2 }, { logprobs: true }, { response_format: { type: 'json_object' } },
        { messages: [{ role: 'user', content: [{ type: 'image_url' }] }] }, { presence_penalty: 1 }])
        assert.throws(() => optionsOf({ messages, ...more }), e => e.type === 'unsupported');
});
