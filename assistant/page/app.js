// The page: a conversation beside the pins that it is about. Keeps what was said; the service keeps nothing.

import { ApiError, chat, getJson, health, onTokenWanted, searchByPicture } from "./api.js";
import { Card } from "./card.js";
import { Composer } from "./composer.js";
import { byId, count, el, icon, openDialog, say, titleOf } from "./dom.js";
import { Grid } from "./grid.js";
import { Interests } from "./interests.js";
import { Turn } from "./turn.js";

const SUGGESTIONS = [
  "a red bicycle",
  "birds sitting on a branch",
  "a birthday cake with candles",
  "old maps and compasses",
  "Which would suit a children’s poster better, a cat or a dog, and why?",
];
const START = "a happy animal in the sun";
const MESSAGES = 20; // of the conversation, sent along
const PINS = 24;
const TRIES = 3;
const CHIPS = 8;
const LOOK_EVERY_MS = 20_000;

const state = { turns: [], current: null, user: null, lists: false, among: { tag: null, board: null }, source: null, running: null, waiting: false };

const grid = new Grid({ onOpen: (pin) => card.open(pin), onMore: moreLike });
const card = new Card({ onMore: moreLike, onTag: (tag) => narrow({ tag }), onBoard: (pin) => narrow({ board: pin.board_id, boardOf: titleOf(pin) }) });
const composer = new Composer({ onSend: (said) => ask(said), onStop: stop, onWiden: narrow });
const interests = new Interests({ onUser: asUser, onRecommend: recommend, onInterest: (interest) => moreLike({ ...interest.medoid, title: interest.medoid.title || interest.label }) });

// A turn

async function ask(question) {
  if (state.running) return;
  const turn = new Turn(question, { cite: showCited, light: (id, on) => grid.light(id, on), show: showTurn, retry: again });
  byId("welcome").hidden = true;
  byId("new-chat").hidden = false;
  state.running = { turn, controller: new AbortController() };
  composer.busy(true);
  scrollDown(true);
  const request = requestOf(question);
  try {
    await attempt(turn, request, question.picture);
    if (!turn.finished && !turn.failed) turn.fail("The answer broke off.");
  } catch (error) {
    if (error.name === "AbortError") turn.stopped();
    else turn.fail(error.message, error.advice ?? "");
  } finally {
    if (state.waiting) restoreGrid();
    state.turns.push(turn);
    state.running = null;
    composer.busy(false);
    scrollDown();
  }
}

/** Asks, and again where the service says when; told while it waits. */
async function attempt(turn, request, picture) {
  const { signal } = state.running.controller;
  for (let tries = 1; ; tries++) {
    try {
      return await chat(request, picture, { signal, onEvent: (name, data) => onEvent(turn, name, data) });
    } catch (error) {
      if (!(error instanceof ApiError) || error.retryAfter === null || tries === TRIES) throw error;
      turn.waiting(error.message, error.retryAfter);
      await pause(error.retryAfter * 1000, signal);
    }
  }
}

function onEvent(turn, name, data) {
  if (name === "error") turn.failed = true;
  turn.handle(name, data);
  if (name === "tool" && data.tool !== "talk") waitFor(turn);
  if (name === "candidates") {
    turn.source = sourceOf(turn);
    if (!turn.silent) showTurn(turn);
  }
  if (name === "done" && state.current === turn) grid.cite(turn.cited);
  if (name !== "thinking") scrollDown();
}

function requestOf(question) {
  const messages = [];
  for (const turn of state.turns.filter((turn) => turn.finished)) {
    messages.push({ role: "user", text: turn.question.text }, { role: "assistant", text: turn.text.slice(0, 4000) });
  }
  const last = state.turns.findLast((turn) => turn.finished && turn.pins.length && turn.tool?.tool !== "talk");
  const { tag, board } = state.among;
  return {
    messages: [...messages.slice(1 - MESSAGES), { role: "user", text: question.text }],
    shown: last ? last.pins.map((pin) => pin.pin_id) : [],
    pin_id: question.about?.pin_id ?? null,
    user_id: state.user?.id ?? null,
    board,
    tag,
    mode: composer.mode,
  };
}

function again(turn) {
  if (state.running) return;
  state.turns = state.turns.filter((other) => other !== turn);
  turn.remove();
  ask(turn.question);
}

function stop() {
  state.running?.controller.abort();
}

function moreLike(pin) {
  interests.close();
  if (state.running) return say("Wait for the answer, or stop it, first");
  ask({ text: `More like “${titleOf(pin)}”`, about: pin });
}

// The grid

function sourceOf(turn) {
  const { tool, query } = turn.tool ?? {};
  const picture = turn.question.picture;
  if (tool === "search_picture" && picture) return { title: "Like your picture", find: (among) => searchByPicture({ k: PINS, ...among }, picture) };
  if (tool === "search_pin") {
    const pin = turn.question.about;
    return { title: `More like “${titleOf(pin)}”`, find: (among) => getJson(`/pins/${pin.pin_id}/related`, { k: PINS, ...among }) };
  }
  if (tool === "search_interests") return recommended();
  if (tool === "talk") return { title: "What was found before", find: null };
  return searched(query);
}

const searched = (text) => ({ title: `“${text}”`, find: (among) => getJson("/search", { text, k: PINS, ...among }) });

function recommended() {
  const user = state.user.id;
  return { title: "For you", find: (among) => getJson("/recommendations", { user_id: user, k: PINS, ...among }) };
}

function waitFor(turn) {
  state.waiting = true;
  head("Looking …", "");
  grid.wait();
  current(turn);
}

function showTurn(turn) {
  current(turn);
  state.source = turn.source;
  draw(turn.source?.title ?? "Pins", turn.pins, turn);
}

function current(turn) {
  state.current = turn;
  for (const other of [...state.turns, state.running?.turn]) other?.current(other === turn);
}

function showCited(turn, pinId) {
  if (state.current !== turn || !grid.has(pinId)) showTurn(turn);
  grid.find(pinId);
}

function draw(title, pins, turn = null) {
  state.waiting = false;
  const numbers = new Map(turn?.pins.map((pin) => [pin.pin_id, pin.number]));
  head(title, pins.length ? count(pins.length, "pin") : "");
  chips(pins);
  if (pins.length) grid.show(pins, numbers);
  else grid.empty(state.among.tag || state.among.board ? "Nothing here with this narrowing. Widen it, or ask for something else." : "Nothing was found. Try other words.");
  grid.cite(turn?.cited ?? new Set());
}

function head(title, note) {
  byId("pins-title").textContent = title;
  byId("pins-note").textContent = note;
}

/** Asks for the source's pins under the present narrowing, without the assistant. */
async function fill(source, turn = null) {
  state.source = source;
  if (!source?.find) return;
  current(turn);
  head(source.title, "");
  grid.wait();
  try {
    const { tag, board } = state.among;
    const found = await source.find({ tag, board });
    if (state.source === source) draw(source.title, found.pins, turn);
  } catch (error) {
    if (state.source !== source) return;
    head(source.title, "");
    grid.empty(`${error.message}. ${error.advice ?? ""}`);
  }
}

function restoreGrid() {
  const before = state.turns.findLast((turn) => turn.pins.length);
  if (before) showTurn(before);
  else start();
}

function start() {
  return fill({ ...searched(START), title: "Something to begin with" });
}

// Narrowing

/** Takes a tag or a board, or leaves both (null). */
function narrow(among) {
  state.among = { tag: among?.tag ?? null, board: among?.board ?? null };
  composer.among(state.among.tag ? `tag: ${state.among.tag}` : state.among.board ? `board of “${among.boardOf}”` : null);
  const { current: turn, source } = state;
  if (!among && turn?.source === source && turn?.pins.length) showTurn(turn);
  else fill(source, turn);
}

function chips(pins) {
  const often = new Map();
  for (const tag of pins.flatMap((pin) => pin.tags)) often.set(tag, (often.get(tag) ?? 0) + 1);
  const tags = [...often].filter(([tag, times]) => times > 1 && tag !== state.among.tag).sort(([, a], [, b]) => b - a);
  const shown = tags.slice(0, CHIPS).map(([tag]) => tag);
  const on = state.among.tag ?? (state.among.board ? "this board" : null);
  byId("chips").replaceChildren(
    ...(on ? [chip(on, true)] : []),
    ...(state.among.board ? [] : shown.map((tag) => chip(tag, false))),
  );
}

function chip(tag, on) {
  const press = () => narrow(on ? null : { tag });
  return el("li", {}, el("button", { type: "button", class: "chip", "aria-pressed": String(on), on: { click: press } }, tag, on ? icon("close") : null));
}

// Who is asking

function asUser(user) {
  state.user = user;
  byId("interests-label").textContent = user ? user.label || `User …${user.id.slice(-4)}` : "Interests";
  byId("open-interests").classList.toggle("on", Boolean(user));
}

function recommend() {
  interests.close();
  fill(recommended());
  byId("pins").scrollIntoView({ block: "nearest" });
}

// The service

async function look() {
  const line = byId("release");
  try {
    const said = await health();
    state.lists = said.people;
    line.classList.toggle("off", !said.ready);
    line.replaceChildren(
      el("span", { class: "dot", "aria-hidden": "true" }),
      said.release_id ? el("span", {}, el("span", { class: "long" }, "Release "), said.release_id.slice(0, 10), el("span", { class: "long" }, ` · ${count(said.pins, "pin")}`)) : "No release yet",
    );
    line.title = said.release_id ? `${said.release_id}, encoder ${said.embedding_version}` : "";
    if (!said.ready) line.append(el("span", { class: "long" }, ` · ${said.waiting_for}`));
    return said;
  } catch {
    line.classList.add("off");
    line.replaceChildren(el("span", { class: "dot", "aria-hidden": "true" }), "The service cannot be reached");
    return null;
  }
}

onTokenWanted((wrong) => new Promise((resolve) => {
  const [dialog, form, field] = [byId("ask"), byId("ask-form"), byId("token")];
  byId("ask-wrong").hidden = !wrong;
  dialog.addEventListener("cancel", (event) => event.preventDefault());
  form.onsubmit = () => {
    resolve(field.value.trim());
    field.value = "";
  };
  openDialog(dialog);
}));

// The page itself

/** Follows the answer, unless the reader has scrolled up. */
function scrollDown(always = false) {
  const log = byId("log");
  if (always || log.scrollHeight - log.scrollTop - log.clientHeight < 160) log.scrollTop = log.scrollHeight;
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(new DOMException("stopped", "AbortError"))), { once: true });
  });
}

byId("open-interests").addEventListener("click", () => interests.open(state.lists));
byId("new-chat").addEventListener("click", () => {
  stop();
  state.turns = [];
  byId("turns").replaceChildren();
  byId("welcome").hidden = false;
  byId("new-chat").hidden = true;
  narrow(null);
  start();
  composer.focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && state.running && !document.querySelector("dialog[open]")) stop();
});
byId("suggestions").append(
  ...SUGGESTIONS.map((text) => el("li", {}, el("button", { type: "button", class: "suggestion", on: { click: () => ask({ text }) } }, icon("search"), el("span", {}, text)))),
);
setInterval(look, LOOK_EVERY_MS);

let said = await look();
while (!said?.release_id) {
  await new Promise((resolve) => setTimeout(resolve, 2000));
  said = await look();
}
await start();
while (!(await look())?.ready) await new Promise((resolve) => setTimeout(resolve, 2000));
