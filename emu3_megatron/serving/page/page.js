"use strict";

// Draws images and asks about them by the server's own API. Nothing is kept beyond this tab: the
// gallery is in memory, the key in sessionStorage.

const FACTOR = Number(document.body.dataset.factor); // pixels of a code's side
const MOST_PIXELS = Number(document.body.dataset.mostPixels); // of an image that is asked about
const MOST_BYTES = Number(document.body.dataset.mostBytes); // of a call
const PREVIEWS = 64; // partial images: each row, or as many at even distances
const KEY = "emu3-api-key";
const SENT_AS_THEY_ARE = ["image/png", "image/jpeg", "image/webp"];

const at = (id) => document.getElementById(id);

function element(name, kind, text = "") {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  made.textContent = text;
  return made;
}

// ---- Troubles, in plain words

class Trouble extends Error {}

function complain(words) {
  at("trouble").textContent = words;
  at("trouble").hidden = !words;
}

function troubleOf(status, error, wait) {
  const said = (error && error.message) || `status ${status}`;
  const code = error && error.code;
  const later = `Try again in ${wait ? `${wait} seconds` : "a moment"}.`;
  if (status === 429) return new Trouble(`The server is busy. ${later}`);
  if (code === "engine_failed") {
    return new Trouble("The model has failed. The server must be restarted.");
  }
  if (status === 503) return new Trouble(`The server takes nothing at present: ${said}. ${later}`);
  if (code === "context_length_exceeded") {
    return new Trouble(`Too much for the model: ${said}. Shorten the text or choose a smaller size.`);
  }
  if (status >= 500) return new Trouble("Something went wrong in the server. Its log says what.");
  return new Trouble(`The server does not take this: ${said}.`);
}

// ---- Calls

async function call(path, body, signal) {
  for (;;) {
    const response = await send(path, body, signal);
    if (response.status !== 401) return response.ok ? response : refuse(response);
    await response.text(); // frees the connection
    await askForKey(signal);
  }
}

async function send(path, body, signal) {
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const request = { headers, signal };
  if (body) {
    headers["Content-Type"] = "application/json";
    Object.assign(request, { method: "POST", body: JSON.stringify(body) });
  }
  try {
    return await fetch(path, request);
  } catch (error) {
    if (signal && signal.aborted) throw error;
    throw new Trouble("The server does not answer. Look whether it still runs, then try again.");
  }
}

async function refuse(response) {
  const said = await response.json().catch(() => ({}));
  throw troubleOf(response.status, said.error, response.headers.get("Retry-After"));
}

// The data of each event of a stream.
async function* events(response, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (signal.aborted) throw error;
      throw new Trouble("The connection broke off. Try again.");
    });
    if (done) return;
    const whole = (rest + value).split("\n\n");
    rest = whole.pop();
    for (const lines of whole) {
      const data = lines.split("\n").find((line) => line.startsWith("data: "));
      if (!data || data === "data: [DONE]") continue; // a comment that keeps the stream alive
      const event = JSON.parse(data.slice("data: ".length));
      if (event.error) throw troubleOf(event.error.type === "server_error" ? 500 : 400, event.error);
      yield event;
    }
  }
}

// ---- The key

let keyAsked = null; // the promise, while the dialog is open

function askForKey(signal) {
  if (signal) signal.addEventListener("abort", () => at("key-dialog").close(""), { once: true });
  keyAsked ??= openKeyDialog().finally(() => (keyAsked = null));
  return keyAsked;
}

function openKeyDialog() {
  const dialog = at("key-dialog");
  const had = sessionStorage.getItem(KEY);
  at("key-why").textContent = had ? "It does not take the key that you gave." : "";
  keep(null);
  dialog.showModal();
  return new Promise((resolve, reject) => {
    dialog.addEventListener("close", () => {
      const key = dialog.returnValue;
      dialog.returnValue = at("key").value = "";
      if (!key) return reject(new Trouble("Without its key the server takes no calls."));
      keep(key);
      resolve();
    }, { once: true });
  });
}

function keep(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
  at("forget").hidden = !key;
}

// ---- One thing at a time in each panel, which its stop button and Esc end

class Job {
  constructor(form) {
    this.form = form;
    this.start = form.querySelector(".start");
    this.stopButton = form.querySelector(".stop");
    this.stopButton.addEventListener("click", () => this.stop());
    this.control = null;
  }

  stop() {
    if (this.control) this.control.abort();
  }

  // How the work ended: "done", "stopped" or "failed".
  async run(work) {
    const { signal } = (this.control = new AbortController());
    this.show();
    complain("");
    try {
      await work(signal);
      return "done";
    } catch (error) {
      if (signal.aborted) return "stopped";
      complain(error instanceof Trouble ? error.message : "Something went wrong in this page.");
      if (!(error instanceof Trouble)) console.error(error);
      return "failed";
    } finally {
      this.control = null;
      this.show();
    }
  }

  show() {
    const runs = this.control !== null;
    this.start.setAttribute("aria-disabled", String(runs)); // it keeps the focus, unlike `disabled`
    const moves = !runs && document.activeElement === this.stopButton;
    this.stopButton.hidden = !runs;
    if (moves) this.start.focus();
  }
}

const drawing = new Job(at("drawing"));
const asking = new Job(at("asking"));

// ---- Drawing

let model = null; // as /v1/models describes it

async function describe(signal) {
  if (model) return;
  [model] = (await (await call("/v1/models", null, signal)).json()).data;
  at("model").textContent = document.title = model.id;
  at("guidance").placeholder = model.default_guidance;
  at("size").replaceChildren(...sizes(model).map(([value, text]) => new Option(text, value)));
}

// The size of training and others of about its area that fit into the context.
function sizes({ default_size: usual, max_model_len: context }) {
  const [width, height] = usual.split("x").map(Number);
  const options = [[usual, `${inWords(usual)}, as trained`]];
  const round = (side) => Math.max(1, Math.round(side / FACTOR)) * FACTOR;
  for (const aspect of [1, 4 / 3, 3 / 4, 16 / 9, 9 / 16]) {
    const [w, h] = [round(Math.sqrt(width * height * aspect)), round(Math.sqrt(width * height / aspect))];
    const fits = (w / FACTOR + 1) * (h / FACTOR) < context - 64; // the prompt needs some, too
    const size = `${w}x${h}`;
    if (fits && !options.some(([known]) => known === size)) options.push([size, inWords(size)]);
  }
  return [...options, ["other", "other…"]];
}

const inWords = (size) => size.replace("x", " × ");

function wantedNow() {
  const size = at("size").value;
  return {
    prompt: at("prompt").value,
    negative: at("negative").value,
    size: size === "other" ? `${at("width").value}x${at("height").value}` : size,
    seed: at("seed").value,
    guidance: at("guidance").value,
  };
}

async function draw(wanted) {
  if (drawing.control) return;
  const begun = performance.now();
  let last = null; // the newest preview, and which row it reaches
  const end = await drawing.run(async (signal) => {
    at("progress").removeAttribute("value");
    at("progress").hidden = false;
    caption(wanted.prompt, "Waiting for the first row…");
    say("Drawing.");
    at("picture").classList.add("old");
    at("stage").scrollIntoView({ block: "nearest" });
    await describe(signal);
    for await (const event of await drawingEvents(wanted, signal)) {
      const isFirst = last === null;
      last = shownEvent(wanted, event, last, begun);
      if (isFirst) at("stage").scrollIntoView({ block: "nearest" }); // on a phone it is below
    }
    if (!last || !last.whole) throw new Trouble("The connection broke off. Try again.");
  });
  at("progress").hidden = true;
  if (end === "done") return finish(wanted, last, (performance.now() - begun) / 1000);
  at("picture").hidden = !last;
  at("empty").hidden = Boolean(last);
  const place = last ? `at row ${last.row} of ${last.rows}` : "before the first row";
  const how = `${end === "stopped" ? "Stopped" : "Failed"} ${place}.`;
  caption(wanted.prompt, how);
  say(how);
}

async function drawingEvents(wanted, signal) {
  const body = { prompt: wanted.prompt, stream: true, partial_images: PREVIEWS };
  if (wanted.negative) body.negative_prompt = wanted.negative;
  if (wanted.size) body.size = wanted.size;
  if (wanted.seed !== "") body.seed = Number(wanted.seed);
  if (wanted.guidance !== "") body.guidance = Number(wanted.guidance);
  return events(await call("/v1/images/generations", body, signal), signal);
}

// Show a preview, or the image when it is whole.
function shownEvent(wanted, event, last, begun) {
  const [width, height] = event.size.split("x").map(Number);
  const rows = height / FACTOR;
  const previews = Math.min(PREVIEWS, rows);
  const whole = event.type.endsWith(".completed");
  const row = whole ? rows : Math.ceil((rows * (event.partial_image_index + 1)) / previews);
  const seconds = (performance.now() - begun) / 1000;
  const first = last ? last.first : { row, seconds };
  const blob = new Blob([bytesOf(event.b64_json)], { type: "image/png" });
  show(blob, width, height, wanted.prompt);
  at("progress").max = rows;
  at("progress").value = row;
  const pace = row > first.row ? (seconds - first.seconds) / (row - first.row) : 0;
  const left = pace * (rows - row) > 2 ? `, about ${Math.ceil(pace * (rows - row))} s left` : "";
  caption(wanted.prompt, `Row ${row} of ${rows}${left}`);
  const quarter = Math.floor((4 * row) / rows);
  if (last && quarter > last.quarter && !whole) say(`${25 * quarter} % drawn.`);
  return { blob, whole, row, rows, width, height, first, quarter, seed: event.seed, size: event.size };
}

const bytesOf = (b64) => Uint8Array.from(atob(b64), (letter) => letter.charCodeAt(0));

function show(blob, width, height, prompt) {
  const picture = at("picture");
  const old = picture.src;
  picture.src = URL.createObjectURL(blob);
  if (old) URL.revokeObjectURL(old);
  picture.alt = prompt;
  picture.hidden = false;
  at("empty").hidden = true;
  picture.width = width;
  picture.height = height;
  picture.className = width <= 64 ? "tiny" : "";
  picture.style.width = `min(100%, ${((70 * width) / height).toFixed(2)}vh, ${Math.max(640, width)}px)`;
}

function caption(prompt, text) {
  at("caption").replaceChildren(element("b", "", prompt), text);
}

function say(text) {
  at("said").textContent = text;
}

function finish(wanted, last, seconds) {
  const made = { ...wanted, ...last, guidance: wanted.guidance || model.default_guidance };
  caption(made.prompt, `${summary(made)} · ${seconds.toFixed(1)} s`);
  say(`The image is finished. Seed ${made.seed}.`);
  at("gallery").prepend(entry(wanted, made));
  at("visit").hidden = false;
}

const summary = ({ seed, size, guidance }) =>
  `seed ${seed} · ${inWords(size)} · guidance ${guidance}`;

function entry(wanted, made) {
  const address = URL.createObjectURL(made.blob);
  const view = element("button", "view");
  const image = element("img", made.width <= 64 ? "tiny" : "");
  view.type = "button";
  view.setAttribute("aria-label", `Show: ${made.prompt}`);
  Object.assign(image, { src: address, alt: "" });
  view.append(image);
  view.addEventListener("click", () => look(made));
  const link = element("a", "button", "Download");
  Object.assign(link, { href: address, download: `seed-${made.seed}-${made.size}.png` });
  const again = action("Another seed", () => drawAgain(wanted));
  again.title = "Again with another seed";
  const actions = element("div", "actions");
  actions.append(link, again, action("Ask about it", () => askAbout(made.blob)));
  const item = element("li", "card");
  item.append(view, element("p", "words", made.prompt), element("p", "hint", summary(made)), actions);
  return item;
}

function action(text, act) {
  const button = element("button", "", text);
  button.type = "button";
  button.addEventListener("click", act);
  return button;
}

function look(made) {
  if (drawing.control) return complain("An image is being drawn. Stop it first, or wait.");
  show(made.blob, made.width, made.height, made.prompt);
  caption(made.prompt, summary(made));
  at("stage").scrollIntoView({ block: "nearest" });
}

function drawAgain(wanted) {
  if (drawing.control) return complain("An image is being drawn. Stop it first, or wait.");
  for (const name of ["prompt", "negative", "guidance"]) at(name).value = wanted[name];
  at("negative").closest("details").open = wanted.negative !== "";
  at("seed").value = "";
  draw({ ...wanted, seed: "" });
}

// ---- Asking

let subject = null; // data: URL of the image that is asked about
let turns = []; // questions with their answers

async function choose(file) {
  if (!file) return;
  complain("");
  try {
    const { blob, note } = await fitted(file);
    const url = await new Promise((resolve) => {
      const reader = new FileReader();
      reader.addEventListener("load", () => resolve(reader.result));
      reader.readAsDataURL(blob);
    });
    startAgain();
    subject = url;
    Object.assign(at("shown"), { src: url, alt: "The image that is asked about", hidden: false });
    at("about").textContent = note;
    at("question").focus();
  } catch (error) {
    if (!(error instanceof Trouble)) throw error;
    complain(error.message);
  }
}

// The file, or a smaller one where it is larger than the server takes.
async function fitted(file) {
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Trouble("This browser cannot read the file as an image. Choose a PNG, JPEG or WebP.");
  });
  const { width, height } = bitmap;
  const most = MOST_BYTES * 0.7; // base64 makes it larger
  const pixels = width * height;
  if (SENT_AS_THEY_ARE.includes(file.type) && pixels <= MOST_PIXELS && file.size <= most) {
    return { blob: file, note: `${width} × ${height}` };
  }
  for (let scale = Math.min(1, Math.sqrt(MOST_PIXELS / pixels)); ; scale *= 0.7) {
    const canvas = element("canvas");
    canvas.width = Math.max(1, Math.floor(width * scale));
    canvas.height = Math.max(1, Math.floor(height * scale));
    const brush = canvas.getContext("2d");
    brush.fillStyle = "white"; // as the server lays transparency over white
    brush.fillRect(0, 0, canvas.width, canvas.height);
    brush.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.95));
    if (blob.size > most && canvas.width > 8) continue;
    const made = scale < 1 ? `, scaled to ${canvas.width} × ${canvas.height}` : "";
    return { blob, note: `${width} × ${height}${made}` };
  }
}

function startAgain() {
  asking.stop();
  turns = [];
  at("talk").replaceChildren();
  at("anew").hidden = true;
}

async function ask(question) {
  if (asking.control) return;
  if (!subject) {
    complain("Choose an image first.");
    return at("file").focus();
  }
  const bubbles = [element("p", "said user", question), element("p", "said model")];
  const answer = bubbles[1];
  const messages = messagesOf([...turns, { question }]);
  let reason = "";
  at("talk").append(...bubbles);
  at("anew").hidden = false;
  at("question").value = "";
  answer.setAttribute("aria-busy", "true"); // it is read out when it is whole
  const end = await asking.run(async (signal) => {
    const response = await call("/v1/chat/completions", { messages, stream: true }, signal);
    for await (const event of events(response, signal)) {
      const [choice] = event.choices;
      answer.append(choice.delta.content || "");
      reason = choice.finish_reason || reason;
    }
    if (!reason) throw new Trouble("The connection broke off. Try again.");
  });
  answer.setAttribute("aria-busy", "false");
  if (end === "done") turns.push({ question, answer: answer.textContent });
  else if (answer.isConnected && !at("question").value) at("question").value = question;
  let note = end === "done" ? "" : end;
  if (!note && reason === "length") note = "the longest answer ends here";
  else if (!note && !answer.textContent) note = "an empty answer";
  if (note) answer.append(element("small", "", `(${note})`));
}

function messagesOf(dialogue) {
  const messages = [];
  for (const { question, answer } of dialogue) {
    messages.push({ role: "user", content: question });
    if (answer !== undefined) messages.push({ role: "assistant", content: answer });
  }
  const image = { type: "image_url", image_url: { url: subject } };
  messages[0].content = [image, { type: "text", text: messages[0].content }];
  return messages;
}

function askAbout(blob) {
  select(at("ask-tab"));
  choose(blob);
}

// ---- Tabs, keys and forms

const tabs = [at("draw-tab"), at("ask-tab")];

function select(chosen) {
  for (const tab of tabs) {
    tab.setAttribute("aria-selected", String(tab === chosen));
    tab.tabIndex = tab === chosen ? 0 : -1;
    at(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
  }
}

for (const tab of tabs) {
  tab.addEventListener("click", () => select(tab));
  tab.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = tabs.find((one) => one !== tab);
    select(other);
    other.focus();
  });
}

addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !at("key-dialog").open) (at("draw").hidden ? asking : drawing).stop();
  if (event.key !== "Enter" || event.isComposing) return;
  const { form, tagName } = event.target;
  const submits = tagName === "TEXTAREA" ? !event.shiftKey : event.ctrlKey || event.metaKey;
  if (!form || !submits) return;
  event.preventDefault();
  form.requestSubmit();
});

at("drawing").addEventListener("submit", (event) => {
  event.preventDefault();
  draw(wantedNow());
});
at("asking").addEventListener("submit", (event) => {
  event.preventDefault();
  ask(at("question").value);
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  at("key-dialog").close(at("key").value.trim());
});
at("key-cancel").addEventListener("click", () => at("key-dialog").close(""));
at("forget").addEventListener("click", () => {
  keep(null);
  say("The key is forgotten.");
  at("draw-tab").focus();
});
at("size").addEventListener("change", () => {
  const other = at("size").value === "other";
  at("other").hidden = !other;
  for (const side of ["width", "height"]) {
    Object.assign(at(side), { required: other, min: FACTOR, step: FACTOR, value: other ? at(side).value : "" });
  }
});
at("anew").addEventListener("click", () => {
  startAgain();
  at("question").focus();
});
at("file").addEventListener("change", () => {
  choose(at("file").files[0]);
  at("file").value = ""; // so that the same file can be chosen again
});
for (const name of ["dragover", "dragleave", "drop"]) {
  at("drop").addEventListener(name, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") choose(event.dataTransfer.files[0]);
  });
}
addEventListener("paste", (event) => {
  const file = event.clipboardData.files[0];
  if (!file || at("ask").hidden) return;
  event.preventDefault();
  choose(file);
});

keep(sessionStorage.getItem(KEY));
describe().catch((error) => complain(error.message));
