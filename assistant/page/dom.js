// Small helpers around the document. Everything that comes from pins or people is put in as text, never as markup.

/** An element with properties and children; `on` holds listeners, `data` dataset entries, other names with a dash attributes. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    else if (name === "data") Object.assign(node.dataset, value);
    else if (name.includes("-") || name === "role" || name === "for") node.setAttribute(name, value);
    else node[name === "class" ? "className" : name] = value;
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export const byId = (id) => document.getElementById(id);

const PATHS = {
  more: ["M5 12h14", "M13 6l6 6-6 6"],
  search: ["M11 4.5a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13z", "M16 16l4.5 4.5"],
  close: ["M6 6l12 12", "M18 6L6 18"],
  check: ["M5 12.5l4.5 4.5L19 7.5"],
  retry: ["M19 12a7 7 0 1 1-2.1-5", "M19.5 3.5V7.5h-4"],
  alike: ["M4.5 4.5h6v6h-6z", "M13.5 4.5h6v6h-6z", "M4.5 13.5h6v6h-6z", "M16.5 13.5v6", "M13.5 16.5h6"],
};

/** An icon; decoration, so that no screen reader names it. */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", "icon");
  for (const d of PATHS[name]) {
    const path = document.createElementNS(space, "path");
    path.setAttribute("d", d);
    svg.append(path);
  }
  return svg;
}

/** A pin's picture, which fades in; where it cannot be had, its title stands for it. `alt` is empty where the title is beside it. */
export function picture(pin, { alt = "", onSettled = () => {} } = {}) {
  const image = el("img", { alt, loading: "lazy", decoding: "async", draggable: false, referrerPolicy: "no-referrer" });
  const frame = el("span", { class: "frame loading" }, image);
  const missing = () => {
    frame.classList.replace("loading", "missing");
    frame.replaceChildren(el("span", { class: "no-picture" }, titleOf(pin)));
    onSettled();
  };
  image.addEventListener("load", () => {
    frame.classList.remove("loading");
    onSettled();
  });
  image.addEventListener("error", missing);
  if (pin.picture) image.src = pin.picture;
  else missing();
  return frame;
}

/** Says something to screen readers, after what they are saying. */
export function say(text) {
  const line = byId("said");
  line.textContent = line.textContent === text ? `${text} ` : text;
}

export const titleOf = (pin) => pin.title || pin.tags?.slice(0, 2).join(", ") || "Untitled";

export const count = (number, thing) => `${number.toLocaleString("en")} ${thing}${number === 1 ? "" : "s"}`;

export const seconds = (ms) => (ms < 950 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

/** Opens a dialog; it closes by Escape, by its button, and by a click beside it. */
export function openDialog(dialog) {
  if (!dialog.dataset.ready) {
    dialog.dataset.ready = "yes";
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog || event.target.closest("[data-close]")) dialog.close();
    });
  }
  if (!dialog.open) dialog.showModal();
}
