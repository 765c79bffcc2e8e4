// The smallest page around the package: loads a model when it is first needed, then writes.
import { createEngine } from 'dibit';

const MODEL = new URLSearchParams(location.search).get('model') ?? '/model.gguf';
const form = document.querySelector('form'), bar = document.querySelector('progress');
const state = document.querySelector('#state'), text = document.querySelector('#text');
let engine;

const onProgress = ({ stage, loaded, total }) => {
    if (total) bar.value = loaded / total;
    state.textContent = stage;
};

form.addEventListener('submit', async event => {
    event.preventDefault();
    form.querySelector('button').disabled = true;
    try {
        engine ??= await createEngine({ model: MODEL, onProgress });
        state.textContent = `${engine.path.module}, ${engine.path.threads} threads`;
        text.textContent = form.prompt.value;
        for await (const { token } of engine.generate(form.prompt.value, { max_new_tokens: 100 }))
            text.textContent += token;
    } catch (error) {
        state.textContent = `${error.type}: ${error.message}`;
    }
    form.querySelector('button').disabled = false;
});
