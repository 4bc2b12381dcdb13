// llama.cpp as a process that answers commands, one line of JSON each:
//   {"prompt": N, "tokens": T}  ->  {"prefill": seconds, "decode": seconds for T tokens}
// node llama_cpp.mjs MODEL.gguf THREADS CONTEXT   (node-llama-cpp is found beside the working folder)
import {createRequire} from "node:module";
import {createInterface} from "node:readline";
import {pathToFileURL} from "node:url";

const require = createRequire(process.cwd() + "/");
const {getLlama} = await import(pathToFileURL(require.resolve("node-llama-cpp")));
const [path, threads, size] = process.argv.slice(2);
const llama = await getLlama({build: "never", gpu: false, logLevel: "error"});
const model = await llama.loadModel({modelPath: path});
const context = await model.createContext(
  {contextSize: +size, threads: +threads, sequences: 1, batchSize: 512});
const sequence = context.getSequence();
console.log(JSON.stringify({ready: true}));
for await (const line of createInterface({input: process.stdin})) {
  const {prompt, tokens} = JSON.parse(line);
  await sequence.clearHistory();
  const ids = Array.from({length: prompt}, (_, i) => 100 + (i * 37) % 9000);
  const start = performance.now();
  let first = 0, count = 0;
  for await (const _ of sequence.evaluate(ids, {temperature: 0, yieldEogToken: true})) {
    if (count === 0) first = performance.now();
    if (count++ === tokens) break;
  }
  const end = performance.now();
  console.log(JSON.stringify({prefill: (first - start) / 1e3, decode: (end - first) / 1e3}));
}
