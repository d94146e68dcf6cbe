// The demo: a model that jobs/export.py wrote answers in the browser, window by window.
import * as ort from "./runtime/ort.wasm.min.mjs";

const COLOURS = {
  neutral: "#a9b0b8", calm: "#6cc3b0", happy: "#f4c04a", sad: "#6d9be0",
  angry: "#e2705f", fearful: "#ae85d6", disgust: "#a3bd5c", surprised: "#f2a063",
};
const OTHER = ["#a9b0b8", "#f4c04a", "#6d9be0", "#e2705f", "#ae85d6", "#a3bd5c"];
const LEAST_S = 0.5; // as ser_ray does: a last window with less of it slides back,
const SILENT_DB = 40; // and one so much below the loudest is silent
const byId = (id) => document.getElementById(id);
let session, facts, recording;

// An ONNX file is a protocol buffer; its metadata are field 14, pairs of a key (1) and a value (2).
function readFacts(bytes) {
  const text = new TextDecoder(), found = {};
  function* fields(at, end) {
    const varint = () => {
      let value = 0, scale = 1, byte;
      do { byte = bytes[at++]; value += (byte & 127) * scale; scale *= 128; } while (byte > 127);
      return value;
    };
    while (at < end) {
      const tag = varint(), kind = tag % 8;
      if (kind === 0) varint();
      else if (kind === 1) at += 8;
      else if (kind === 5) at += 4;
      else {
        const size = varint();
        yield [Math.floor(tag / 8), at, at + size];
        at += size;
      }
    }
  }
  for (const [number, begin, end] of fields(0, bytes.length)) {
    if (number !== 14) continue;
    const pair = {};
    for (const [place, from, to] of fields(begin, end)) pair[place] = text.decode(bytes.subarray(from, to));
    found[pair[1]] = JSON.parse(pair[2]);
  }
  return found;
}

async function openModel(buffer) {
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = new URL("runtime/", import.meta.url).href;
  facts = readFacts(new Uint8Array(buffer));
  session = await ort.InferenceSession.create(buffer);
  byId("notes").replaceChildren(...facts.notes.map((note) => make("p", note, "note")));
  const score = facts.scores[0]?.uar;
  byId("about").textContent = `Tells apart ${facts.labels.join(", ")}. ` +
    (score === undefined ? "" : `Unweighted average recall ${(100 * score).toFixed(1)} % (${facts.scores[0].protocol}). `) +
    "It hears how somebody speaks, not what they feel; it must not be used to judge people, at work or in schools.";
  byId("pick").hidden = true;
  byId("drop").hidden = false;
  say("Ready.", "ready");
}

// Where windows begin and end, in samples: the last one has half a second or more.
function cut(count, size, least) {
  const spans = [];
  for (let at = 0; at + size <= count; at += size) spans.push([at, at + size]);
  const covered = spans.length ? spans.at(-1)[1] : 0;
  if (count - covered >= facts.shortest_s * facts.sample_rate || !spans.length)
    spans.push([Math.max(0, Math.min(covered, count - least)), count]);
  return spans;
}

function level(samples) {
  let sum = 0, square = 0;
  for (const value of samples) { sum += value; square += value * value; }
  return Math.sqrt(Math.max(0, square / samples.length - (sum / samples.length) ** 2));
}

async function answer(samples) {
  const feeds = {
    waveform: new ort.Tensor("float32", samples, [1, samples.length]),
    lengths: new ort.Tensor("int64", BigInt64Array.from([BigInt(samples.length)]), [1]),
  };
  return [...(await session.run(feeds)).probabilities.data];
}

async function hear(blob) {
  say("Decoding …", "busy");
  byId("result").hidden = true;
  const rate = facts.sample_rate;
  let sound;
  try { // which brings it to the rate of the context
    sound = await new OfflineAudioContext(1, 1, rate).decodeAudioData(await blob.arrayBuffer());
  } catch {
    return say("This file is no sound that the browser can decode.", "failed");
  }
  const mean = new Float32Array(sound.length);
  for (let channel = 0; channel < sound.numberOfChannels; channel++)
    sound.getChannelData(channel).forEach((value, i) => { mean[i] += value / sound.numberOfChannels; });
  if (!mean.length) return say("There is no sound in it.", "failed");
  const spans = cut(mean.length, Number(byId("seconds").value) * rate, Math.ceil(LEAST_S * rate));
  const levels = spans.map(([from, to]) => level(mean.subarray(from, to)));
  const loudest = Math.max(...levels), answers = [];
  for (const [i, [from, to]] of spans.entries()) {
    say(`Listening … ${i + 1} of ${spans.length}`, "busy");
    const silent = loudest === 0 || levels[i] < loudest * 10 ** (-SILENT_DB / 20);
    const probabilities = silent ? null : await answer(mean.slice(from, to));
    answers.push({ start: from / rate, end: to / rate, probabilities });
    if (i % 8 === 7) await new Promise((go) => setTimeout(go)); // so that the page stays alive
  }
  globalThis.answers = answers;
  show(blob, answers, mean.length / rate);
}

function show(blob, answers, seconds) {
  const player = byId("player");
  URL.revokeObjectURL(player.src);
  player.src = URL.createObjectURL(blob);
  player.ontimeupdate = () => { byId("head").style.left = `${100 * Math.min(1, player.currentTime / seconds)}%`; };
  byId("timeline").replaceChildren(...answers.map((one) => {
    const box = make("button", "", one.probabilities ? "window" : "window silent");
    box.style.left = `${100 * one.start / seconds}%`;
    box.style.width = `${100 * (one.end - one.start) / seconds}%`;
    const ranked = rank(one.probabilities ?? []);
    box.title = `${clock(one.start)} to ${clock(one.end)}: ` +
      (ranked.map(([label, p]) => `${label} ${Math.round(100 * p)} %`).join(", ") || "silent");
    box.setAttribute("aria-label", box.title);
    for (const [label, p] of ranked) {
      const part = make("span", p > 0.12 ? label : "");
      part.style.height = `${100 * p}%`;
      part.style.background = colour(label);
      box.append(part);
    }
    box.onclick = () => { player.currentTime = one.start; player.play(); detail(one.probabilities, box.title.split(": ")[0]); };
    return box;
  }), byId("head"));
  byId("end").textContent = clock(seconds);
  // The whole is the mean of log-probabilities over time, as ser_ray has it.
  const heard = answers.filter((one) => one.probabilities);
  const whole = facts.labels.map((_, c) => heard.reduce(
    (sum, one) => sum + (one.end - one.start) * Math.log(Math.max(one.probabilities[c], 1e-30)), 0));
  const time = heard.reduce((sum, one) => sum + one.end - one.start, 0);
  const weights = whole.map((sum) => Math.exp(sum / time)), total = weights.reduce((a, b) => a + b, 0);
  detail(heard.length ? weights.map((w) => w / total) : null, "The whole recording");
  byId("result").hidden = false;
  say(heard.length ? "" : "All of it is silent.", "done");
}

function detail(probabilities, title) {
  byId("title").textContent = title;
  byId("bars").replaceChildren(...rank(probabilities ?? []).map(([label, p]) => {
    const row = make("div", "", "bar"), bar = make("div", "");
    bar.style.width = `${100 * p}%`;
    bar.style.background = colour(label);
    row.append(make("span", label), bar, make("b", `${(100 * p).toFixed(1)} %`));
    return row;
  }));
}

async function record() {
  const button = byId("record");
  if (recording) return recording.stop();
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    const parts = [];
    recording = new MediaRecorder(stream);
    recording.ondataavailable = (event) => parts.push(event.data);
    recording.onstop = () => {
      stream.getTracks().forEach((track) => track.stop());
      const blob = new Blob(parts, { type: recording.mimeType });
      recording = null;
      button.textContent = "● Record";
      button.classList.remove("on");
      hear(blob);
    };
    recording.start();
    button.textContent = "■ Stop";
    button.classList.add("on");
  } catch {
    say("There is no microphone, or this page may not use it.", "failed");
  }
}

const rank = (probabilities) => probabilities.map((p, c) => [facts.labels[c], p]).sort((a, b) => b[1] - a[1]);
const colour = (label) => COLOURS[label] ?? OTHER[facts.labels.indexOf(label) % OTHER.length];
const clock = (seconds) => `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(1).padStart(4, "0")}`;

function make(tag, text, kind = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = kind;
  return element;
}

function say(text, state) {
  byId("state").textContent = text;
  document.body.dataset.state = state;
}

const drop = byId("drop");
for (const kind of ["dragover", "dragleave", "drop"])
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop" && session && event.dataTransfer.files.length) hear(event.dataTransfer.files[0]);
  });
byId("file").onchange = (event) => { if (event.target.files.length) hear(event.target.files[0]); };
byId("record").onclick = record;
byId("model").onchange = async (event) => openModel(await event.target.files[0].arrayBuffer()).catch(failed);
const failed = (error) => say(`The model cannot be opened: ${error.message}`, "failed");

const beside = await fetch("model.onnx").catch(() => null);
if (beside?.ok) await beside.arrayBuffer().then(openModel).catch(failed);
else {
  byId("pick").hidden = false;
  say("", "pick");
}
