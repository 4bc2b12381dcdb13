// llama.cpp with many sequences in one context, as a process that answers lines of JSON:
//   {"prompt": N, "tokens": T}  ->  {"prefill": seconds, "decode": seconds for T tokens of each}
// node llama_cpp_many.mjs MODEL.gguf THREADS CONTEXT SEQUENCES
// Decoding is timed from the moment at which every sequence has its first token.
import {createRequire} from "node:module";
import {createInterface} from "node:readline";
import {pathToFileURL} from "node:url";

const require = createRequire(process.cwd() + "/");
const {getLlama} = await import(pathToFileURL(require.resolve("node-llama-cpp")));
const [path, threads, size, many] = process.argv.slice(2);
const llama = await getLlama({build: "never", gpu: false, logLevel: "error"});
const model = await llama.loadModel({modelPath: path});
const context = await model.createContext(
  {contextSize: +size, threads: +threads, sequences: +many, batchSize: 512});
const sequences = Array.from({length: +many}, () => context.getSequence());
console.log(JSON.stringify({ready: true}));
for await (const line of createInterface({input: process.stdin})) {
  const {prompt, tokens} = JSON.parse(line);
  const ids = Array.from({length: prompt}, (_, i) => 100 + (i * 37) % 9000);
  await Promise.all(sequences.map((s) => s.clearHistory()));
  const start = performance.now();
  const streams = sequences.map((s) => s.evaluate(ids, {temperature: 0, yieldEogToken: true}));
  await Promise.all(streams.map((s) => s.next()));
  const first = performance.now();
  await Promise.all(streams.map(async (s) => { for (let i = 0; i < tokens; i++) await s.next(); }));
  const end = performance.now();
  await Promise.all(streams.map((s) => s.return()));
  console.log(JSON.stringify({prefill: (first - start) / 1e3, decode: (end - first) / 1e3}));
}
