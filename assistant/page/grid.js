// The grid of pins: masonry in the order of retrieval, one stop for the Tab key, arrow keys within.

import { byId, el, icon, picture, say, titleOf } from "./dom.js";

const SKELETONS = [210, 160, 250, 190, 230, 170, 200, 260, 180, 220, 150, 240];
const ROW = 4; // height of a row of the CSS grid, of which a card takes as many as it is high

export class Grid {
  /** `onOpen(pin)`: a card was chosen; `onMore(pin)`: more like it is wanted. */
  constructor({ onOpen, onMore }) {
    this.list = byId("grid");
    this.on = { open: onOpen, more: onMore };
    this.cards = new Map();
    this.sizes = new ResizeObserver((entries) => entries.forEach((entry) => this.#place(entry.target.parentElement)));
    this.list.addEventListener("keydown", (event) => this.#move(event));
  }

  /** Pins, best first. `numbers`: by pin id, how the answer names them. */
  show(pins, numbers = new Map()) {
    this.#clear();
    const usual = commonest(pins.map((pin) => pin.why));
    for (const pin of pins) {
      const card = this.#card(pin, numbers.get(pin.pin_id), pin.why !== usual);
      this.cards.set(pin.pin_id, card);
      this.list.append(card);
      this.sizes.observe(card.firstElementChild);
    }
    this.#makeReachable(this.list.firstElementChild);
    this.list.scrollTo({ left: 0, top: 0 });
    if (this.hadFocus) this.list.querySelector(".open")?.focus();
    this.hadFocus = false;
  }

  /** Empty cards while pins are looked for. */
  wait() {
    this.#clear();
    for (const height of SKELETONS) {
      const inner = el("div", { class: "skeleton" });
      inner.style.height = `${height}px`;
      const card = el("li", { class: "pin", "aria-hidden": "true" }, inner);
      this.list.append(card);
      this.#place(card);
    }
  }

  empty(text) {
    this.#clear();
    this.list.append(el("li", { class: "nothing" }, text));
  }

  has(pinId) {
    return this.cards.has(pinId);
  }

  /** Marks the pins that an answer names. */
  cite(pinIds) {
    for (const [id, card] of this.cards) card.classList.toggle("cited", pinIds.has(id));
  }

  /** Lights a card up while a citation is pointed at. */
  light(pinId, on) {
    this.cards.get(pinId)?.classList.toggle("lit", on);
  }

  /** Brings a card into view and gives it the focus. */
  find(pinId) {
    const card = this.cards.get(pinId);
    if (!card) return;
    this.#makeReachable(card);
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    card.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "center", inline: "center" });
    card.querySelector(".open").focus({ preventScroll: true });
    card.classList.remove("found");
    void card.offsetWidth; // so that the animation begins again
    card.classList.add("found");
    say(`${card.dataset.number ? `Pin ${card.dataset.number}: ` : ""}${card.dataset.title}`);
  }

  #clear() {
    this.hadFocus ||= this.list.contains(document.activeElement); // whoever was in it stays in it
    this.sizes.disconnect();
    this.cards.clear();
    this.list.replaceChildren();
  }

  /** `reason`: whether it says why it is here; a reason that most of them share is said in the pin's own card alone. */
  #card(pin, number, reason) {
    const title = titleOf(pin);
    const open = el(
      "button",
      { type: "button", class: "open", on: { click: () => this.on.open(pin) } },
      picture(pin),
      number ? el("span", { class: "number" }, el("span", { class: "hidden" }, "Pin "), String(number)) : null,
      el("span", { class: "title" }, title),
      el("span", { class: "why" }, reason ? pin.why : pin.tags.slice(0, 3).join(" · ")),
    );
    const more = el(
      "button",
      { type: "button", class: "more", "aria-label": `More like ${title}`, on: { click: () => this.on.more(pin) } },
      icon("alike"),
      el("span", {}, "More like this"),
    );
    return el(
      "li",
      { class: "pin", data: { title, number: number ? String(number) : "" }, on: { focusin: (event) => this.#makeReachable(event.currentTarget) } },
      el("div", { class: "inner" }, open, more),
    );
  }

  /** A card takes as many of the grid's rows as it is high: the next one falls into the shortest column. */
  #place(card) {
    if (!card) return;
    const gap = Number.parseFloat(getComputedStyle(this.list).columnGap) || 0;
    const rows = Math.ceil((card.firstElementChild.getBoundingClientRect().height + gap) / ROW);
    card.style.gridRowEnd = `span ${rows}`;
  }

  #makeReachable(card) {
    if (!card || card === this.reachable) return;
    for (const other of this.list.children) {
      for (const button of other.querySelectorAll("button")) button.tabIndex = other === card ? 0 : -1;
    }
  }

  #move(event) {
    const card = event.target.closest(".pin");
    const cards = [...this.cards.values()];
    const at = cards.indexOf(card);
    if (at < 0) return;
    const next = {
      ArrowRight: () => cards[at + 1],
      ArrowLeft: () => cards[at - 1],
      ArrowDown: () => this.#beyond(card, cards, 1),
      ArrowUp: () => this.#beyond(card, cards, -1),
      Home: () => cards[0],
      End: () => cards.at(-1),
    }[event.key]?.();
    if (!next) return;
    event.preventDefault();
    this.#makeReachable(next);
    next.querySelector(".open").focus();
  }

  /** The nearest card of the same column above or below; of a strip, the one before or after. */
  #beyond(card, cards, way) {
    const here = card.getBoundingClientRect();
    const there = cards
      .map((other) => [other, other.getBoundingClientRect()])
      .filter(([other, box]) => other !== card && Math.abs(box.left - here.left) < 4 && (box.top - here.top) * way > 0)
      .sort(([, a], [, b]) => (a.top - b.top) * way);
    return there[0]?.[0] ?? cards[cards.indexOf(card) + way];
  }
}

function commonest(values) {
  const times = new Map();
  for (const value of values) times.set(value, (times.get(value) ?? 0) + 1);
  return [...times].find(([, often]) => often > values.length / 2)?.[0];
}
