// shaders.mjs - compiles every kernel of src/gpu in its variants with Dawn's Null backend: validation
// with positions, no GPU needed. Then naga, which Firefox has, parses each text, where the npm package
// web-naga lies beside. usage: node shaders.mjs PATH_OF_NPM_PACKAGE_webgpu
import { existsSync, readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import { dots, kernels } from './shaders-list.mjs';

const { create } = await import(pathToFileURL(process.argv[2] + '/index.js'));
const gpu = create(['backend=null']);
const device = await (await gpu.requestAdapter()).requestDevice();

let n = 0;
let bad = 0;
const say = (text) => { bad++; console.log(text); };

async function check({ name, files, texts: parts, constants: variants }, dot) {
  const texts = [dots[dot], ...parts];
  const code = texts.join('');
  const lines = texts.map((t) => t.split('\n').length - 1);
  /** file:line of a line of the whole. */
  const place = (line) => {
    let i = 0;
    while (i < lines.length - 1 && line > lines[i]) line -= lines[i++];
    return i ? `src/gpu/${files[i - 1]}.wgsl:${line}` : `idot:${line}`;
  };
  device.pushErrorScope('validation');
  const module = device.createShaderModule({ code });
  for (const m of (await module.getCompilationInfo()).messages)
    if (m.type === 'error') say(`${place(m.lineNum)}:${m.linePos}: ${m.message}`);
  if (await device.popErrorScope()) return;
  for (const constants of variants) {
    device.pushErrorScope('validation');
    device.createComputePipeline({ layout: 'auto', compute: { module, entryPoint: 'main', constants } });
    const error = await device.popErrorScope();
    if (error) say(`${name} ${JSON.stringify(constants)}: ${error.message}`);
    n++;
  }
}

for (const kernel of kernels) for (const dot of Object.keys(dots)) await check(kernel, dot);

/** Firefox's front end: parses, does not validate. Returns the number of texts it took. */
async function parseWithNaga() {
  const at = `${process.argv[2]}/../web-naga/`;
  if (!existsSync(at)) return 0;
  const naga = await import(pathToFileURL(`${at}web_naga.js`));
  await naga.default({ module_or_path: readFileSync(`${at}web_naga_bg.wasm`) });
  let parsed = 0;
  for (const { name, texts } of kernels) {
    try {
      naga.WgslFrontend.new().parse(dots.native + texts.join(''));
      parsed++;
    } catch (e) {
      say(`naga: ${name}: ${e.message ?? e}`);
    }
  }
  return parsed;
}
const parsed = await parseWithNaga();

// A kernel that is wrong must be said to be.
device.pushErrorScope('validation');
device.createShaderModule({ code: 'fn main( {' });
if (!(await device.popErrorScope())) say('a wrong text passes');
console.log(`${n} variants of ${kernels.length} kernels, ${parsed} through naga, ${bad} faults`);
process.exit(bad ? 1 : 0);
