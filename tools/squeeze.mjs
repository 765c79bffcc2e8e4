// squeeze.mjs - copies ES modules without comments, and without blanks and line ends that mean nothing;
// private names (#name) become short, all others stay as they are. It knows strings, templates and regular
// expressions, and nothing else of the language.
// usage: squeeze.mjs TO FROM...
import { readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';

// What can stand before a regular expression; after anything else a slash divides.
const BEFORE_REGEX = /(?:^|[(,=:[!&|?{};+\-*%<>~^]|\b(?:return|typeof|case|in|of|do|else|await|yield))\s*$/;
const TOKEN = /\/\/[^\n]*|\/\*[^]*?\*\/|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"/y;
const REGEX = /\/(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\[\n])+\/[a-z]*/y;

/** The end of the template that begins at i; what is between ${ and } is code and may hold others. */
function templateEnd(s, i) {
    for (i++; s[i] !== '`'; i++) {
        if (s[i] === '\\') i++;
        else if (s.startsWith('${', i)) {
            for (let depth = 1, k = i + 2; ; k++) {
                if (s[k] === '`') k = templateEnd(s, k) - 1;
                else if (s[k] === "'" || s[k] === '"') { TOKEN.lastIndex = k; k += TOKEN.exec(s)[0].length - 1; }
                else if (s[k] === '{') depth++;
                else if (s[k] === '}' && --depth === 0) { i = k; break; }
            }
        }
    }
    return i + 1;
}

/** Code and the texts in it, apart: [{ code }, { text }, ...]; comments are gone. */
function parts(s) {
    const out = [];
    let code = '';
    const put = text => { out.push({ code }, { text }); code = ''; };
    for (let i = 0; i < s.length;) {
        const match = pattern => { pattern.lastIndex = i; return pattern.exec(s)?.[0]; };
        const token = match(TOKEN), regex = s[i] === '/' && !token && BEFORE_REGEX.test(code || (out.length ? 'x' : '')) && match(REGEX);
        if (token?.startsWith('/')) code += token.includes('\n') ? '\n' : ' ';
        else if (token || regex) put(token || regex);
        else if (s[i] === '`') put(s.slice(i, templateEnd(s, i)));
        else code += s[i];
        i += token?.length ?? (regex ? regex.length : s[i] === '`' ? templateEnd(s, i) - i : 1);
    }
    out.push({ code });
    return out;
}

const squeezeCode = code => code.replace(/[ \t]+/g, ' ').replace(/ ?\n[\s]*/g, '\n')
    .replace(/ ?([{}()[\],;:=<>&|?*%!~^]) ?/g, '$1').replace(/ ([+-]) (?![+-])/g, '$1')
    .replace(/([{([,;:?=&|])\n/g, '$1'); // a statement never ends there

/** Gives private names, in code and in templates, short ones: within a file one name always the same. */
function shortener() {
    const short = new Map();
    const give = name => {
        if (!short.has(name)) short.set(name, `#${String.fromCharCode(97 + short.size % 26)}${Math.floor(short.size / 26) || ''}`);
        return short.get(name);
    };
    return { code: s => s.replace(/#[a-z]\w*/gi, give), text: s => (s[0] === '`' ? s.replace(/(?<=\.)#[a-z]\w*/gi, give) : s) };
}

export function squeeze(source) {
    const names = shortener();
    return parts(source).map(p => (p.text === undefined ? names.code(squeezeCode(p.code)) : names.text(p.text)))
        .join('').replace(/^\n+/, '').trimEnd() + '\n';
}

const [to, ...files] = process.argv.slice(2);
for (const file of files) writeFileSync(join(to, basename(file)), squeeze(readFileSync(file, 'utf8')));
