// One turn as the page shows it: what was asked, what is done about it, the answer with its citations, and what it took.

import { byId, count, el, icon, picture, say, seconds, titleOf } from "./dom.js";

const CITATION = /\[(\d+)\]/g;
const TOOLS = {
  search_text: (query) => `Searched for “${query}”`,
  search_picture: () => "Searched by your picture",
  search_pin: () => "Looked for more like it",
  search_interests: () => "Looked through your interests",
  talk: () => "No search was needed",
};
const SENTENCE = /[^.!?]*[.!?]+\s+/g;

export class Turn {
  /** `on`: {cite(turn, pinId), light(pinId, on), show(turn), retry(turn)}. */
  constructor(question, on) {
    Object.assign(this, { question, on, pins: [], byNumber: new Map(), cited: new Set(), text: "", told: 0, tool: null });
    this.#build();
  }

  #build() {
    const asked = el("div", { class: "asked" });
    if (this.question.thumbnail) asked.append(el("img", { class: "sent", src: this.question.thumbnail, alt: "Your picture" }));
    if (this.question.about) asked.append(el("div", { class: "about" }, picture(this.question.about), el("span", {}, titleOf(this.question.about))));
    if (this.question.text) asked.append(el("p", { dir: "auto" }, this.question.text));

    this.steps = el("p", { class: "steps" }, el("span", { class: "dots", "aria-hidden": "true" }, el("i"), el("i"), el("i")));
    this.step = el("span", { class: "step" }, "Reading your message");
    this.did = el("span", { class: "step", hidden: true });
    this.steps.append(el("span", { class: "lines" }, this.step, this.did));
    this.thought = el("p", { dir: "auto" });
    this.thinking = el("details", { class: "thinking", hidden: true }, el("summary", {}, "Thinking"), this.thought);
    this.answer = el("p", { class: "answer", dir: "auto" });
    this.named = el("ul", { class: "named", hidden: true, "aria-label": "Pins that the answer names" });
    this.foot = el("div", { class: "foot" });
    this.reply = el("div", { class: "reply", "aria-busy": "true" }, this.steps, this.thinking, this.answer, this.named, this.foot);
    this.node = el(
      "li",
      { class: "turn" },
      el("div", {}, el("h3", { class: "hidden" }, "You said"), asked),
      el("div", {}, el("h3", { class: "hidden" }, "Answer"), this.reply),
    );
    byId("turns").append(this.node);
  }

  handle(name, data) {
    this[{ mode: "onMode", tool: "onTool", candidates: "onCandidates", thinking: "onThinking", answer: "onAnswer", done: "onDone", error: "onError" }[name]]?.(data);
  }

  onMode({ mode, reason }) {
    this.mode = mode;
    const name = mode === "thinking" ? "Thinking" : "Quick";
    this.badge = el("span", { class: `badge ${mode}` }, name);
    this.step.replaceChildren(this.badge, el("span", { class: "reason" }, reason));
    say(`${name} mode: ${reason}`);
  }

  onTool({ tool, query, reason }) {
    this.tool = { tool, query };
    this.#tell(TOOLS[tool]?.(query) ?? tool, reason);
  }

  onCandidates({ pins, release_id: release }) {
    this.pins = pins;
    this.release = release;
    this.byNumber = new Map(pins.map((pin) => [pin.number, pin]));
    if (this.silent) return;
    const found = pins.length ? count(pins.length, "pin") : "nothing found";
    this.showing = el("button", { type: "button", class: "link", on: { click: () => this.on.show(this) } }, found);
    this.did.append(this.showing);
    say(found);
  }

  /** Whether nothing was looked for and nothing is shown: the grid stays as it is. */
  get silent() {
    return this.tool?.tool === "talk" && !this.pins.length;
  }

  onThinking({ text }) {
    this.thinking.hidden = false;
    this.thinking.open = true;
    this.#write(this.thought, text);
    this.thought.scrollTop = this.thought.scrollHeight;
  }

  onAnswer({ text }) {
    this.thinking.open = false;
    this.text += text;
    this.#write(this.answer, text);
    this.#sayWhole();
  }

  onDone({ cited, removed, brain, mode, usage, first_token_ms: first, total_ms: total }) {
    this.#end();
    this.cited = new Set(cited);
    const named = cited.map((id) => this.pins.find((pin) => pin.pin_id === id)).filter(Boolean);
    this.named.append(...named.map((pin) => el("li", {}, this.#chosen(pin))));
    this.named.hidden = !named.length;
    const tokens = usage.answer + usage.thinking;
    const facts = [
      first === null ? null : ["first word after", seconds(first)],
      ["in all", seconds(total)],
      [`${count(tokens, "token").replace(/^\S+ /, "")}`, tokens.toLocaleString("en")],
      usage.thinking ? ["of them thinking", usage.thinking.toLocaleString("en")] : null,
      ["brain", brain],
    ].filter(Boolean);
    this.foot.append(
      el("dl", { class: "facts" }, facts.map(([what, value]) => el("div", {}, el("dt", {}, what), el("dd", {}, value)))),
    );
    if (removed) this.foot.append(el("p", { class: "note" }, `${count(removed, "citation")} of what was not found ${removed === 1 ? "was" : "were"} left out.`));
    this.finished = true;
    this.#sayWhole(true);
  }

  onError({ error, retryable }) {
    this.fail(error, retryable ? "" : null);
  }

  /** Tells what went wrong. `advice`: what to do, null where trying again is of no use. */
  fail(error, advice = "") {
    this.#end();
    const box = el("div", { class: "failed", role: "alert" }, el("p", {}, error), advice ? el("p", { class: "advice" }, advice) : null);
    if (advice !== null) {
      box.append(el("button", { type: "button", class: "quiet", on: { click: () => this.on.retry(this) } }, icon("retry"), el("span", {}, "Try again")));
    }
    this.foot.append(box);
  }

  /** The user has ended it. */
  stopped() {
    this.#end();
    this.foot.append(el("p", { class: "note" }, "Stopped."));
    say("Stopped");
  }

  /** Says that it will be tried again by itself. */
  waiting(error, inSeconds) {
    this.step.replaceChildren(el("span", { class: "reason" }, `${error}. Trying again in ${Math.ceil(inSeconds)} s …`));
  }

  remove() {
    this.node.remove();
  }

  /** Whether the grid shows this turn's pins. */
  current(is) {
    this.node.classList.toggle("current", is);
    this.showing?.setAttribute("aria-pressed", String(is));
  }

  /** Text, in which citations become buttons. */
  #write(node, text) {
    let from = 0;
    for (const match of text.matchAll(CITATION)) {
      const pin = this.byNumber.get(Number(match[1]));
      if (!pin) continue;
      node.append(text.slice(from, match.index), this.#citation(pin));
      from = match.index + match[0].length;
    }
    node.append(text.slice(from));
  }

  #tell(what, reason) {
    this.did.replaceChildren(el("span", { title: reason }, what));
    this.did.hidden = false;
  }

  #end() {
    if (!this.mode) this.steps.hidden = true;
    this.reply.removeAttribute("aria-busy");
    this.steps.classList.add("settled");
    this.thinking.open = false;
  }

  #citation(pin) {
    const listen = {
      click: () => this.on.cite(this, pin.pin_id),
      mouseenter: () => this.on.light(pin.pin_id, true),
      mouseleave: () => this.on.light(pin.pin_id, false),
      focus: () => this.on.light(pin.pin_id, true),
      blur: () => this.on.light(pin.pin_id, false),
    };
    const label = `Pin ${pin.number}: ${titleOf(pin)}`;
    return el("button", { type: "button", class: "cite", title: titleOf(pin), "aria-label": label, on: listen }, String(pin.number));
  }

  #chosen(pin) {
    const button = this.#citation(pin);
    button.className = "thumb";
    button.replaceChildren(picture(pin), el("span", { class: "number" }, String(pin.number)));
    return button;
  }

  /** Screen readers are told whole sentences, not pieces of words. */
  #sayWhole(all = false) {
    const rest = this.text.slice(this.told);
    const whole = all ? rest : (rest.match(SENTENCE) ?? []).join("");
    if (!whole.trim()) return;
    this.told += whole.length;
    say(whole.replace(CITATION, (_, number) => `pin ${number}`));
  }
}
