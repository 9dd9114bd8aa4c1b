// Where a message is written: words, a picture, a mode, and what the search is confined to.

import { byId, el, icon, say } from "./dom.js";

const MOST_BYTES = 8 * 2 ** 20;

export class Composer {
  /** `onSend({text, picture, thumbnail})`, `onStop()`, `onWiden(null)`: the narrowing is to go. */
  constructor({ onSend, onStop, onWiden }) {
    this.on = { send: onSend, stop: onStop, widen: onWiden };
    this.form = byId("composer");
    this.words = byId("words");
    this.file = byId("file");
    this.running = false;
    this.picture = this.thumbnail = this.narrowed = null;
    this.#listen();
  }

  get mode() {
    return this.form.elements.mode.value;
  }

  focus() {
    this.words.focus();
  }

  /** While an answer is under way the button stops it. */
  busy(running) {
    this.running = running;
    const button = byId("send");
    button.classList.toggle("stop", running);
    button.setAttribute("aria-label", running ? "Stop" : "Send");
    button.title = running ? "Stop (Escape)" : "Send (Enter)";
  }

  /** What the next search is confined to, in words; null: nothing. */
  among(said) {
    this.narrowed = said;
    this.#drawWith();
  }

  #listen() {
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.running) this.on.stop();
      else this.#send();
    });
    this.words.addEventListener("input", () => this.#grow());
    this.words.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.running) this.#send();
    });
    this.words.addEventListener("paste", (event) => this.#take(event.clipboardData?.files[0]));
    byId("attach").addEventListener("click", () => this.file.click());
    this.file.addEventListener("change", () => {
      this.#take(this.file.files[0]);
      this.file.value = "";
    });
    this.#listenToDrops();
  }

  #listenToDrops() {
    let depth = 0;
    const over = byId("drop");
    const ends = () => (over.hidden = (depth = 0) === 0);
    document.addEventListener("dragenter", (event) => {
      if (![...event.dataTransfer.types].includes("Files")) return;
      depth += 1;
      over.hidden = false;
    });
    document.addEventListener("dragleave", () => {
      if (--depth <= 0) ends();
    });
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      ends();
      this.#take(event.dataTransfer.files[0]);
    });
  }

  #take(file) {
    if (!file) return;
    const wrong = !file.type.startsWith("image/") ? "That is not a picture." : file.size > MOST_BYTES ? "That picture has more than 8 MB: take a smaller one." : "";
    this.warning = wrong;
    if (!wrong) {
      this.picture = file;
      this.thumbnail = URL.createObjectURL(file);
    }
    say(wrong || `Picture ${file.name} attached`);
    this.#drawWith();
    this.focus();
  }

  #send() {
    const text = this.words.value.trim();
    if (!text && !this.picture) return this.focus();
    const said = { text: text || "Find pins like this picture", picture: this.picture, thumbnail: this.thumbnail };
    this.words.value = "";
    this.picture = this.thumbnail = null;
    this.warning = "";
    this.#grow();
    this.#drawWith();
    this.on.send(said);
  }

  #grow() {
    this.words.style.height = "auto";
    this.words.style.height = `${Math.min(this.words.scrollHeight, 180)}px`;
  }

  #drawWith() {
    const list = byId("with");
    const remove = (label, what) => el("button", { type: "button", class: "remove", "aria-label": label, on: { click: what } }, icon("close"));
    const forget = () => {
      URL.revokeObjectURL(this.thumbnail);
      this.picture = this.thumbnail = null;
      this.#drawWith();
      this.focus();
    };
    list.replaceChildren(
      ...(this.thumbnail ? [el("li", { class: "with-picture" }, el("img", { src: this.thumbnail, alt: "The picture that you attached" }), remove("Remove the picture", forget))] : []),
      ...(this.narrowed ? [el("li", { class: "with-filter" }, el("span", {}, `Only ${this.narrowed}`), remove("Search everything", () => this.on.widen(null)))] : []),
      ...(this.warning ? [el("li", { class: "with-warning", role: "alert" }, this.warning)] : []),
    );
    list.hidden = !list.childElementCount;
  }
}
