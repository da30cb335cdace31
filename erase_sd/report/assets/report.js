"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const one = (selector, within = document) => within.querySelector(selector);
  const press = (button, on) => button.setAttribute("aria-pressed", String(on));
  const pressed = (button) => button.getAttribute("aria-pressed") === "true";
  all(".script").forEach((element) => (element.hidden = false));

  // Light or dark: the system's until somebody chooses.
  const theme = one("#theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try {
    chosen = localStorage.getItem("erase-sd-theme");
  } catch {
    // a browser that keeps nothing for files
  }
  const paint = () => {
    if (chosen) root.dataset.theme = chosen;
    press(theme, chosen ? chosen === "dark" : dark.matches);
  };
  dark.addEventListener("change", paint);
  theme.addEventListener("click", () => {
    chosen = pressed(theme) ? "light" : "dark";
    try {
      localStorage.setItem("erase-sd-theme", chosen);
    } catch {
      // as above
    }
    paint();
  });
  paint();

  const gallery = one("#shots");
  if (!gallery) return;

  // Filters: one choice in each group, and no more than a page of pairs at first.
  const PAGE = innerWidth < 700 ? 12 : 24;
  const shots = all(".shot", gallery);
  const filters = all("[data-filter]");
  const more = one("#more");
  let limit = PAGE;
  const matching = () => {
    const asked = filters.filter((button) => pressed(button) && button.dataset.value);
    return shots.filter((shot) =>
      asked.every(({ dataset }) => shot.dataset[dataset.filter].split(" ").includes(dataset.value)),
    );
  };
  const show = () => {
    const found = matching();
    const visible = new Set(found.slice(0, limit));
    shots.forEach((shot) => (shot.hidden = !visible.has(shot)));
    more.hidden = found.length <= limit;
    more.textContent = `Show ${found.length - limit} more`;
    one("#none").hidden = found.length > 0;
    one("#status").textContent = `${found.length} of ${shots.length} pairs match, ${visible.size} shown.`;
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

  // Both images of a pair, or one of them in the same place.
  const views = all("[data-view]:not(#shots)");
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

  // A pair enlarged, with a slider between its two images.
  const dialog = one("#viewer");
  const stage = one(".stage", dialog);
  const slider = one("#split");
  let at = 0;
  let among = shots;
  const slide = () => {
    stage.style.setProperty("--split", `${slider.value}%`);
    slider.setAttribute("aria-valuetext", `original up to ${slider.value} % of the width`);
  };
  const open = (shot) => {
    at = among.indexOf(shot);
    const frames = all(".frame", shot).map((frame) => frame.cloneNode(true));
    stage.replaceChildren(...frames);
    one("#viewer-title").textContent = one(".prompt", shot).textContent;
    one("#viewer-meta").textContent = one(".meta", shot).textContent;
    one("#viewer-original").textContent = frames[0].dataset.found;
    one("#viewer-erased").textContent = frames[1].dataset.found;
    one("#viewer-outcome").textContent = shot.dataset.words;
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
      const shot = document.getElementById(button.dataset.shot);
      among = matching().includes(shot) ? matching() : shots;
      open(shot);
    }),
  );
  slider.addEventListener("input", slide);
  const step = (by) => among[at + by] && open(among[at + by]);
  one("#previous").addEventListener("click", () => step(-1));
  one("#next").addEventListener("click", () => step(1));
  one("#close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
})();
