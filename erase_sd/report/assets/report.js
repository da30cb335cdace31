"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const one = (selector, within = document) => within.querySelector(selector);
  const press = (button, on) => button.setAttribute("aria-pressed", String(on));
  const pressed = (button) => button.getAttribute("aria-pressed") === "true";
  all(".script").forEach((element) => (element.hidden = false));

  // Light or dark: the system's setting until the user chooses.
  const theme = one("#theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try {
    chosen = localStorage.getItem("erase-sd-theme");
  } catch {
    // some browsers have no storage for local files
  }
  const apply = () => {
    if (chosen) root.dataset.theme = chosen;
    press(theme, chosen ? chosen === "dark" : dark.matches);
  };
  dark.addEventListener("change", apply);
  theme.addEventListener("click", () => {
    chosen = pressed(theme) ? "light" : "dark";
    try {
      localStorage.setItem("erase-sd-theme", chosen);
    } catch {
      // as above
    }
    apply();
  });
  apply();

  const gallery = one("#gallery");
  if (!gallery) return;

  // Filters: one choice per group; at first, at most one page of pairs is shown.
  const PAGE = innerWidth < 700 ? 12 : 24;
  const pairs = all(".pair", gallery);
  const filters = all("[data-filter]");
  const more = one("#more");
  let limit = PAGE;
  const matching = () => {
    const active = filters.filter((button) => pressed(button) && button.dataset.value);
    return pairs.filter((pair) =>
      active.every(({ dataset }) => pair.dataset[dataset.filter].split(" ").includes(dataset.value)),
    );
  };
  const show = () => {
    const matches = matching();
    const visible = new Set(matches.slice(0, limit));
    pairs.forEach((pair) => (pair.hidden = !visible.has(pair)));
    more.hidden = matches.length <= limit;
    more.textContent = `Show ${matches.length - limit} more`;
    one("#none").hidden = matches.length > 0;
    one("#status").textContent = `${matches.length} of ${pairs.length} pairs match; ${visible.size} shown.`;
  };
  filters.forEach((button) =>
    button.addEventListener("click", () => {
      const group = all(`[data-filter="${button.dataset.filter}"]`);
      group.forEach((other) => press(other, other === button));
      limit = PAGE;
      show();
    }),
  );
  more.addEventListener("click", () => {
    const next = matching()[limit];
    limit = Infinity;
    show();
    one(".enlarge", next).focus();
  });
  show();

  // Both images side by side, or one of them in the same place.
  const views = all("[data-view]:not(#gallery)");
  views.forEach((button) =>
    button.addEventListener("click", () => {
      views.forEach((other) => press(other, other === button));
      gallery.dataset.view = button.dataset.view;
    }),
  );
  const boxes = one("#boxes");
  boxes.addEventListener("click", () => {
    press(boxes, !pressed(boxes));
    root.dataset.boxes = pressed(boxes) ? "on" : "off";
  });

  // An enlarged pair, with a slider between its two images.
  const dialog = one("#viewer");
  const stage = one(".stage", dialog);
  const slider = one("#split");
  let at = 0;
  let among = pairs;
  const slide = () => {
    stage.style.setProperty("--split", `${slider.value}%`);
    slider.setAttribute("aria-valuetext", `original on the left ${slider.value} %`);
  };
  const open = (pair) => {
    at = among.indexOf(pair);
    const frames = all(".frame", pair).map((frame) => frame.cloneNode(true));
    stage.replaceChildren(...frames);
    one("#viewer-title").textContent = one(".prompt", pair).textContent;
    one("#viewer-meta").textContent = one(".meta", pair).textContent;
    one("#viewer-original").textContent = frames[0].dataset.detected;
    one("#viewer-erased").textContent = frames[1].dataset.detected;
    one("#viewer-outcome").textContent = pair.dataset.words;
    one("#previous").disabled = at === 0;
    one("#next").disabled = at === among.length - 1;
    if (!dialog.open) {
      slider.value = 50;
      dialog.showModal();
    }
    slide();
  };
  all(".enlarge").forEach((button) =>
    button.addEventListener("click", () => {
      const pair = document.getElementById(button.dataset.pair);
      among = matching().includes(pair) ? matching() : pairs;
      open(pair);
    }),
  );
  slider.addEventListener("input", slide);
  const step = (by) => among[at + by] && open(among[at + by]);
  one("#previous").addEventListener("click", () => step(-1));
  one("#next").addEventListener("click", () => step(1));
  one("#close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
})();
