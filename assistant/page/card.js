// One pin, large: what is known of it, and what can be done with it.

import { byId, el, icon, openDialog, picture, titleOf } from "./dom.js";

export class Card {
  /** `onMore(pin)`, `onTag(tag)`, `onBoard(pin)`. */
  constructor({ onMore, onTag, onBoard }) {
    this.on = { more: onMore, tag: onTag, board: onBoard };
    this.dialog = byId("pin");
  }

  open(pin) {
    const leave = (what) => () => {
      this.dialog.close();
      what();
    };
    const tags = pin.tags.map((tag) =>
      el("li", {}, el("button", { type: "button", class: "chip", on: { click: leave(() => this.on.tag(tag)) } }, tag)),
    );
    byId("pin-body").replaceChildren(
      picture(pin, { alt: titleOf(pin) }),
      el(
        "div",
        { class: "about-pin" },
        el("h2", { id: "pin-title", dir: "auto" }, titleOf(pin)),
        pin.why ? el("p", { class: "why" }, pin.why) : null,
        tags.length ? el("ul", { class: "chips", "aria-label": "Only pins with this tag" }, tags) : null,
        el(
          "div",
          { class: "row" },
          el("button", { type: "button", class: "solid", on: { click: leave(() => this.on.more(pin)) } }, icon("alike"), el("span", {}, "More like this")),
          pin.board_id === null ? null : el("button", { type: "button", class: "quiet", on: { click: leave(() => this.on.board(pin)) } }, "Only its board"),
        ),
      ),
    );
    openDialog(this.dialog);
  }
}
