// SPDX-License-Identifier: Apache-2.0
// The chat page. All text of a model or a user enters the page as textContent; nothing is stored.

const element = (id) => document.getElementById(id);
const [chat, prompt, send, stop, told] = ["chat", "prompt", "send", "stop", "told"].map(element);
const POLL_MS = 3000;

let model = null;
let history = [];
let running = null; // The AbortController of the answer that is being written.

class Refusal extends Error {
  constructor(status, error) {
    super(error?.message ?? `the server answered ${status}`);
    this.code = error?.code ?? String(status);
  }
}

function headers() {
  const key = element("key").value.trim();
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

// --- the state of the server ---

function showState(kind, text) {
  const state = element("state");
  if (state.textContent === text) return;
  state.dataset.state = kind;
  state.textContent = text;
}

function askForKey() {
  showState("wait", "needs a key");
  if (model === null && !element("settings").open && !element("key").value) {
    element("settings").open = true;
    element("key").focus();
  }
}

async function checkState() {
  try {
    const answer = await fetch("/readyz", { headers: headers() });
    if (answer.status === 401) return askForKey();
    const { status, reason } = await answer.json();
    const kind = answer.ok ? (status === "ready" ? "good" : "wait") : "bad";
    showState(kind, reason ? `${status}: ${reason}` : status);
    if (model === null) await nameModel();
  } catch {
    showState("bad", "no answer from the server");
  }
}

async function nameModel() {
  const answer = await fetch("/v1/models", { headers: headers() });
  if (!answer.ok) return;
  model = (await answer.json()).data[0].id;
  element("model").textContent = model;
  document.title = `${model} · orin-run`;
}

async function watchState() {
  if (!document.hidden) await checkState();
  setTimeout(watchState, POLL_MS);
}

// --- the conversation ---

function addTurn(role, text = "") {
  const item = document.createElement("li");
  item.className = role;
  for (const [kind, content] of [["who", role === "user" ? "You" : "Model"], ["text", text], ["figures", ""]]) {
    const part = document.createElement("div");
    part.className = kind;
    part.textContent = content;
    item.append(part);
  }
  const [, body, figures] = item.children;
  element("empty").hidden = true;
  chat.append(item);
  chat.scrollTop = chat.scrollHeight;
  return { item, body, figures };
}

// What the server sends as text/event-stream: the data of each event, as soon as it is whole.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}

function request() {
  const system = element("system").value.trim();
  const start = system ? [{ role: "system", content: system }] : [];
  return {
    model,
    messages: [...start, ...history],
    temperature: element("temperature").valueAsNumber,
    max_tokens: element("limit").valueAsNumber,
    stream: true,
    stream_options: { include_usage: true },
  };
}

// Throws Refusal: an answer other than 200, an error in the stream, or a stream that ends without [DONE].
async function stream(signal, onText, onUsage) {
  const answer = await fetch("/v1/chat/completions", {
    method: "POST", headers: headers(), body: JSON.stringify(request()), signal,
  });
  if (!answer.ok) throw new Refusal(answer.status, (await answer.json().catch(() => ({}))).error);
  for await (const data of events(answer.body)) {
    if (data === "[DONE]") return;
    const { error, choices = [], usage } = JSON.parse(data);
    if (error) throw new Refusal(200, error);
    if (usage) onUsage(usage.completion_tokens);
    for (const choice of choices) if (choice.delta?.content) onText(choice.delta.content);
  }
  throw new Refusal(200, { message: "the answer broke off", code: "incomplete" });
}

// Tokens, tokens per second after the first one, and the time to the first one.
class Pace {
  begin = performance.now();
  first = null;
  last = null;
  tokens = 0;

  count() {
    this.last = performance.now();
    this.first ??= this.last;
    this.tokens += 1;
  }

  toString() {
    if (this.first === null) return "";
    const seconds = (this.last - this.first) / 1000;
    const rate = this.tokens > 1 && seconds > 0 ? ` · ${((this.tokens - 1) / seconds).toFixed(1)} tokens/s` : "";
    return `${this.tokens} tokens${rate} · first token after ${Math.round(this.first - this.begin)} ms`;
  }
}

function setRunning(controller) {
  running = controller;
  stop.hidden = controller === null;
  send.hidden = controller !== null;
}

async function answer() {
  const { item, body, figures } = addTurn("assistant");
  const pace = new Pace();
  const controller = new AbortController();
  let note = "";
  setRunning(controller);
  item.classList.add("running");
  told.textContent = "The model is answering.";
  const onText = (text) => {
    const follows = chat.scrollHeight - chat.scrollTop - chat.clientHeight < 40;
    body.append(text);
    pace.count();
    figures.textContent = String(pace);
    if (follows) chat.scrollTop = chat.scrollHeight;
  };
  try {
    await stream(controller.signal, onText, (tokens) => { pace.tokens = tokens; });
  } catch (error) {
    note = controller.signal.aborted ? "stopped" : `${error.message} (${error.code ?? "no connection"})`;
    if (!controller.signal.aborted) figures.classList.add("error");
  }
  item.classList.remove("running");
  figures.textContent = [String(pace), note].filter(Boolean).join(" · ");
  told.textContent = note ? `${body.textContent} ${note}` : body.textContent;
  chat.scrollTop = chat.scrollHeight;
  if (controller === running) setRunning(null);
  return body.textContent;
}

async function say() {
  const text = prompt.value.trim();
  if (!text || running) return;
  if (!element("options").reportValidity()) {
    element("settings").open = true;
    return;
  }
  if (model === null) await checkState();
  if (model === null) return;
  prompt.value = "";
  grow();
  const spoken = history;
  spoken.push({ role: "user", content: text });
  addTurn("user", text);
  const said = await answer();
  // A prompt without an answer is taken back, so that the turns go on to alternate.
  if (said) spoken.push({ role: "assistant", content: said });
  else spoken.pop();
  // The button that had the focus is hidden again. On a phone the field would call the keyboard over the answer.
  if (!matchMedia("(pointer: coarse)").matches) prompt.focus();
}

function grow() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight + 2}px`;
}

function begin() {
  running?.abort();
  history = [];
  chat.replaceChildren();
  element("empty").hidden = false;
  told.textContent = "New chat.";
  prompt.focus();
}

element("say").addEventListener("submit", (event) => { event.preventDefault(); say(); });
element("options").addEventListener("submit", (event) => event.preventDefault());
element("key").addEventListener("change", checkState);
element("new").addEventListener("click", begin);
stop.addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) checkState(); });
prompt.addEventListener("input", grow);
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  say();
});
watchState();
