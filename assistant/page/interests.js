// "My interests": who is asking, what the platform knows of them, and pins for them.

import { getJson } from "./api.js";
import { byId, el, openDialog, picture, say } from "./dom.js";

export class Interests {
  /** `onUser(user)`: someone was chosen, {id, label}, or nobody (null); `onRecommend()`; `onInterest(interest)`. */
  constructor({ onUser, onRecommend, onInterest }) {
    this.on = { user: onUser, recommend: onRecommend, interest: onInterest };
    this.dialog = byId("interests");
    this.body = byId("interests-body");
    this.user = null;
  }

  async open(lists) {
    openDialog(this.dialog);
    await this.#draw(lists);
  }

  close() {
    this.dialog.close();
  }

  async #draw(lists) {
    this.lists = lists;
    if (this.user) return this.#drawUser();
    const field = el("input", { id: "user-id", inputMode: "numeric", pattern: "-?[0-9]+", required: true, autocomplete: "off" });
    const form = el(
      "form",
      { class: "by-id", on: { submit: (event) => (event.preventDefault(), this.#choose({ id: field.value.trim(), label: "" })) } },
      el("label", { for: "user-id" }, "User id"),
      el("div", { class: "row" }, field, el("button", { type: "submit", class: "solid" }, "Go on")),
    );
    const people = el("ul", { class: "people", "aria-label": "People to try" });
    this.body.replaceChildren(
      el("p", { class: "lead" }, "Interests are worked out every night from what someone keeps. Choose whose to ask as: they steer what is found, and the assistant is told of them."),
      people,
      form,
    );
    if (!lists) return;
    try {
      for (const person of await getJson("/people")) {
        const choose = () => this.#choose({ id: person.user_id, label: person.label });
        people.append(
          el("li", {}, el("button", { type: "button", class: "person", on: { click: choose } }, avatar(person.user_id), el("span", { class: "who" }, el("strong", {}, person.label || `User …${person.user_id.slice(-4)}`), el("small", {}, `${person.interests} interests · user …${person.user_id.slice(-4)}`)))),
        );
      }
    } catch (error) {
      people.append(el("li", { class: "note" }, error.message));
    }
  }

  async #choose(user) {
    this.user = user;
    this.on.user(user);
    await this.#drawUser();
  }

  async #drawUser() {
    const list = el("ul", { class: "interests", "aria-label": "Interests, most important first" });
    const recommend = el("button", { type: "button", class: "solid", on: { click: () => this.on.recommend() } }, "Pins for me");
    const other = el("button", { type: "button", class: "quiet", on: { click: () => this.#forget() } }, "Someone else");
    this.body.replaceChildren(
      el("div", { class: "me" }, avatar(this.user.id), el("span", { class: "who" }, el("strong", {}, this.user.label || "You"), el("small", {}, `User ${this.user.id}`))),
      el("div", { class: "row" }, recommend, other),
      list,
    );
    recommend.focus();
    for (let i = 0; i < 5; i++) list.append(el("li", { class: "interest skeleton", "aria-hidden": "true" }));
    try {
      const { interests, more } = await getJson("/interests", { user_id: this.user.id });
      const most = Math.max(...interests.map((interest) => interest.share));
      list.replaceChildren(...interests.map((interest) => el("li", {}, this.#row(interest, most))));
      if (more > 0) list.append(el("li", { class: "note" }, `and ${more} smaller ones`));
      say(`${interests.length} interests`);
    } catch (error) {
      recommend.disabled = true;
      list.replaceChildren(el("li", { class: "note" }, `${error.message}. ${error.advice ?? ""}`));
    }
  }

  #row(interest, most) {
    const share = `${(interest.share * 100).toFixed(interest.share < 0.1 ? 1 : 0)}%`;
    const bar = el("span", { class: "bar", "aria-hidden": "true" }, el("span"));
    bar.firstElementChild.style.width = `${(interest.share / most) * 100}%`;
    return el(
      "button",
      { type: "button", class: "interest", disabled: !interest.medoid, on: { click: () => this.on.interest(interest) } },
      interest.medoid ? picture(interest.medoid) : el("span", { class: "frame missing" }),
      el("span", { class: "who" }, el("strong", {}, interest.label), bar, el("small", {}, `${share} of all · ${interest.saves} saved`)),
    );
  }

  #forget() {
    this.user = null;
    this.on.user(null);
    this.#draw(this.lists);
  }
}

/** A disc of a colour that the id gives. */
function avatar(id) {
  const disc = el("span", { class: "avatar", "aria-hidden": "true" }, id.slice(-2));
  disc.style.setProperty("--hue", String(Number(BigInt(id) % 360n)).replace("-", ""));
  return disc;
}
