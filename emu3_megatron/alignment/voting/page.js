"use strict";

// The page of one voter. The server says which prompt comes next; a sample is known here by its
// position alone.

const { voter, token } = document.body.dataset;
const home = "/" + encodeURIComponent(voter);
const at = (id) => document.getElementById(id);

let state = null; // as the server sent it
let best = null; // position of the first pick
let busy = false; // a vote is on its way
let enlarged = null; // position of what the large view shows

async function ask(path, body) {
  const request = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Voting-Token": token },
    body: JSON.stringify(body),
  };
  let answer;
  try {
    answer = await fetch(home + path, request);
  } catch {
    return complain("The server does not answer. Start emu3 preferences vote again, then reload.");
  }
  if (answer.status === 403 && body !== undefined) return location.reload(); // it was restarted
  const said = await answer.json();
  if (!answer.ok) return complain(said.error);
  at("trouble").hidden = true;
  show(said);
}

function complain(reason) {
  at("trouble").textContent = reason;
  at("trouble").hidden = false;
  best = null;
  mark();
}

async function send(path, body) {
  if (busy) return;
  busy = true;
  try {
    await ask(path, body);
  } finally {
    busy = false;
  }
}

function show(next) {
  const old = state && state.prompt && state.prompt.number;
  state = next;
  best = null;
  at("count").textContent = `${state.done} of ${state.total}`;
  at("progress").max = state.total;
  at("progress").value = state.done;
  at("prompt").textContent = state.prompt ? state.prompt.text : "";
  if (!state.prompt || state.prompt.number !== old) lay();
  mark();
}

function lay() {
  at("large").close();
  const main = at("samples");
  main.replaceChildren();
  main.className = state.prompt ? state.prompt.kind : "text";
  main.style.gridTemplateColumns = "";
  if (!state.prompt) return main.append(finished());
  for (let i = 0; i < state.prompt.samples; i++) main.append(sample(i));
  scrollTo(0, 0);
  fit();
}

function finished() {
  const said = element("p", "finished", "Thank you; every vote is stored.");
  said.prepend(element("b", "", "All prompts are voted on."));
  return said;
}

function element(name, kind, text = "") {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  made.textContent = text;
  return made;
}

function sample(position) {
  const box = element("div", "sample");
  const button = element("button", "pick");
  button.type = "button";
  button.setAttribute("aria-label", `Sample ${position + 1}`);
  button.addEventListener("click", () => pick(position));
  button.append(content(position));
  box.append(button, element("span", "number", String(position + 1)), element("span", "mark"));
  return box;
}

function content(position) {
  const { kind, number, texts } = state.prompt;
  if (kind === "text") return element("p", "", texts[position]);
  const shown = element(kind === "clip" ? "video" : "img");
  shown.src = `${home}/media/${number}/${position}`;
  if (kind === "clip") {
    Object.assign(shown, { muted: true, loop: true, autoplay: true, playsInline: true });
    shown.addEventListener("loadedmetadata", fit);
  } else {
    shown.alt = `Sample ${position + 1}`;
    shown.addEventListener("load", fit);
  }
  return shown;
}

// As large as the window allows: all samples in sight, or two columns on a phone.
function fit() {
  const main = at("samples");
  if (!state || !state.prompt || state.prompt.kind === "text") return;
  const first = main.querySelector("img, video");
  const size = [first.naturalWidth || first.videoWidth, first.naturalHeight || first.videoHeight];
  const aspect = size[0] && size[1] ? size[0] / size[1] : 1;
  const style = getComputedStyle(main);
  const gap = parseFloat(style.columnGap);
  const across = main.clientWidth - 2 * parseFloat(style.paddingLeft);
  const down = at("help").parentElement.getBoundingClientRect().top - main.offsetTop - 16;
  const number = state.prompt.samples;
  let columns = 2, width = (across - gap) / 2;
  if (innerWidth > 640) {
    width = 0;
    for (let c = 1; c <= number; c++) {
      const rows = Math.ceil(number / c);
      const high = (Math.max(down, 200) - (rows - 1) * gap) / rows;
      const fits = Math.min((across - (c - 1) * gap) / c, high * aspect);
      if (fits > width) [columns, width] = [c, fits];
    }
  }
  main.style.gridTemplateColumns = `repeat(${columns}, ${Math.floor(width)}px)`;
}

function mark(worst = null) {
  const boxes = document.querySelectorAll(".sample");
  boxes.forEach((box, i) => {
    box.classList.toggle("best", i === best);
    box.classList.toggle("worst", i === worst);
    box.querySelector(".mark").textContent = i === best ? "best" : i === worst ? "worst" : "";
  });
  const open = Boolean(state && state.prompt);
  const step = at("step");
  step.className = !open ? "" : best === null ? "best" : "worst";
  step.textContent = !open ? "Done" : best === null ? "Pick the best" : "Now pick the worst";
  at("none").disabled = at("look").disabled = !open;
  at("undo").disabled = best === null && !(state && state.can_undo);
}

function pick(position) {
  if (busy || !state || !state.prompt || position >= state.prompt.samples) return;
  if (best === null) {
    best = position;
    return mark();
  }
  if (position === best) return; // the best is not the worst
  mark(position);
  send("/vote", { prompt: state.prompt.number, best, worst: position });
}

function noDifference() {
  if (state && state.prompt) send("/vote", { prompt: state.prompt.number, no_difference: true });
}

function undo() {
  if (busy) return;
  if (best !== null) {
    best = null;
    return mark();
  }
  if (state && state.can_undo) send("/undo", {});
}

function enlarge(position) {
  if (!state || !state.prompt) return;
  const number = state.prompt.samples;
  enlarged = (position + number) % number;
  at("enlarged").replaceChildren(content(enlarged));
  at("which").textContent = `Sample ${enlarged + 1}`;
  if (!at("large").open) at("large").showModal();
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  const large = at("large").open;
  if (at("keys").open) {
    if (key === "?") at("keys").close();
    return;
  }
  if (/^[0-9]$/.test(key)) pick(key === "0" ? 9 : Number(key) - 1);
  else if (key === "n") noDifference();
  else if (key === "u" || key === "backspace") undo();
  else if (key === "z") large ? at("large").close() : enlarge(0);
  else if (large && (key === "arrowleft" || key === "arrowright")) {
    enlarge(enlarged + (key === "arrowright" ? 1 : -1));
  } else if (key === "?") at("keys").showModal();
  else return;
  event.preventDefault();
}

addEventListener("keydown", press);
addEventListener("resize", fit);
at("none").addEventListener("click", noDifference);
at("undo").addEventListener("click", undo);
at("look").addEventListener("click", () => enlarge(0));
at("help").addEventListener("click", () => at("keys").showModal());
at("close").addEventListener("click", () => at("large").close());
at("large").addEventListener("click", (event) => {
  if (event.target === at("close")) return;
  const { left, right, top, bottom } = at("large").getBoundingClientRect();
  const { clientX: x, clientY: y } = event;
  if (x < left || x > right || y < top || y > bottom) return at("large").close();
  enlarge(enlarged + (x > (left + right) / 2 ? 1 : -1)); // as the arrow keys, for touch
});
ask("/state");
