(() => {
  "use strict";
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const stage = document.querySelector(".stage");
  const pictures = JSON.parse(document.getElementById("pictures").textContent);
  let result = Number(document.querySelector("main").dataset.first), view = 0;

  const press = (buttons, isChosen) => {
    for (const button of buttons) button.setAttribute("aria-pressed", String(isChosen(button)));
  };

  const show = () => {
    for (const part of all("[data-for]")) part.hidden = Number(part.dataset.for) !== result;
    for (const row of all("[data-row]")) row.classList.toggle("chosen", Number(row.dataset.row) === result);
    press(all("[data-result]"), (button) => Number(button.dataset.result) === result);
    if (!stage) return;
    const { name, image } = pictures.views[view], chosen = pictures.results[result];
    const put = (selector, source, alt) => Object.assign(stage.querySelector(selector), { src: source, alt });
    put(".left", image, `${name}: ${pictures.original}`);
    put(".right", chosen.images[view], `${name}: ${chosen.name}`);
    put(".heat", chosen.errors[view], `${name}: how far ${chosen.name} is from ${pictures.original}, pixel by pixel`);
    stage.querySelector(".at-right").textContent = [chosen.captions[view], chosen.name].filter(Boolean).join(" · ");
  };

  const choose = (button) => {
    result = Number(button.dataset.result);
    show();
    document.getElementById("announced").textContent = `${button.getAttribute("aria-label") || button.textContent}: shown`;
  };
  for (const button of all("[data-result]")) {
    button.addEventListener("click", () => choose(button));
    if (button.matches("button")) continue;
    button.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      choose(button);
    });
  }
  show();

  const order = new Intl.Collator("en", { numeric: true });
  const sort = (heading) => {
    const column = heading.cellIndex, table = heading.closest("table"), body = table.querySelector("[data-sorted]");
    const sign = heading.ariaSort === "ascending" ? -1 : 1;
    for (const other of all("thead th", table)) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const rows = [...body.rows].map((row) => {
      const cell = row.cells[column], value = cell.dataset.value;
      return { row, text: cell.textContent.trim(), value: value === undefined ? NaN : Number(value) };
    });
    const compare = (one, other) => {
      const missing = Number.isNaN(one.value) - Number.isNaN(other.value);
      if (missing) return missing;
      return sign * (Number.isNaN(one.value) ? order.compare(one.text, other.text) : one.value - other.value);
    };
    body.append(...rows.sort(compare).map(({ row }) => row));
  };
  for (const button of all("button.sort")) button.addEventListener("click", () => sort(button.closest("th")));

  const dialog = document.getElementById("enlarged"), large = dialog.querySelector("img");
  let share = 1;
  const resize = (factor) => {
    share = Math.min(8, Math.max(1, share * factor));
    large.style.width = `${100 * share}%`;
  };
  for (const button of all(".drawing")) {
    button.addEventListener("click", () => {
      const { src, alt } = button.querySelector("img");
      Object.assign(large, { src, alt });
      share = 1;
      resize(1);
      dialog.showModal();
    });
  }
  for (const button of all("[data-zoom]", dialog)) {
    button.addEventListener("click", () => resize(button.dataset.zoom === "in" ? 1.5 : 1 / 1.5));
  }
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "+" || event.key === "=") resize(1.5);
    if (event.key === "-") resize(1 / 1.5);
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  if (!stage) return;

  for (const button of all("[data-view]", stage)) {
    button.addEventListener("click", () => {
      view = Number(button.dataset.view);
      press(all("[data-view]", stage), (one) => one === button);
      show();
    });
  }
  for (const thumbnail of all("[data-thumbnail]", stage)) {
    thumbnail.src = pictures.views[Number(thumbnail.dataset.thumbnail)].image;
  }
  for (const button of all("button[data-mode]", stage)) {
    button.addEventListener("click", () => {
      stage.dataset.mode = button.dataset.mode;
      press(all("button[data-mode]", stage), (one) => one === button);
    });
  }

  const canvas = stage.querySelector(".canvas"), slider = stage.querySelector(".cut");
  const cut = (percent) => {
    slider.value = percent;
    canvas.style.setProperty("--cut", `${percent}%`);
    slider.setAttribute("aria-valuetext", `${Math.round(percent)} % original`);
  };
  slider.addEventListener("input", () => cut(Number(slider.value)));
  cut(50);

  // The pictures are moved by (x, y), in shares of the canvas, after they have grown `zoom` times from its corner.
  let zoom = 1, x = 0, y = 0;
  const place = () => {
    x = Math.min(0, Math.max(1 - zoom, x));
    y = Math.min(0, Math.max(1 - zoom, y));
    for (const [name, value] of [["--zoom", zoom], ["--x", `${100 * x}%`], ["--y", `${100 * y}%`]]) {
      canvas.style.setProperty(name, value);
    }
    canvas.classList.toggle("zoomed", zoom > 1);
    if (zoom > 1) canvas.tabIndex = 0;
    else canvas.removeAttribute("tabindex");
    stage.querySelector("output").textContent = `${zoom}×`;
    stage.querySelector('[data-zoom="out"]').disabled = zoom === 1;
    stage.querySelector('[data-zoom="in"]').disabled = zoom === 8;
  };
  const scaleTo = (next) => {
    const wanted = Math.min(8, Math.max(1, next)), grown = wanted / zoom;
    x = 0.5 - (0.5 - x) * grown;
    y = 0.5 - (0.5 - y) * grown;
    zoom = wanted;
    place();
  };
  for (const button of all("[data-zoom]", stage)) {
    button.addEventListener("click", () => scaleTo(button.dataset.zoom === "in" ? 2 * zoom : zoom / 2));
  }
  const steps = { ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] };
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "+" || event.key === "=") scaleTo(2 * zoom);
    else if (event.key === "-") scaleTo(zoom / 2);
    else if (event.key in steps) [x, y] = [x + steps[event.key][0], y + steps[event.key][1]];
    else return;
    event.preventDefault();
    place();
  });

  // What a drag moves: the cut, or, when zoomed and away from the handle, the pictures.
  let grabbed = null;
  const drag = (event) => {
    const box = canvas.getBoundingClientRect();
    if (grabbed === "cut") {
      cut(Math.min(100, Math.max(0, (100 * (event.clientX - box.left)) / box.width)));
    } else {
      [x, y] = [grabbed.x + (event.clientX - grabbed.left) / box.width, grabbed.y + (event.clientY - grabbed.top) / box.height];
      place();
    }
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    const box = canvas.getBoundingClientRect(), sliding = stage.dataset.mode === "slide";
    const near = Math.abs(event.clientX - box.left - (box.width * slider.value) / 100) < 28;
    if (zoom === 1 && !sliding) return;
    grabbed = sliding && (near || zoom === 1) ? "cut" : { x, y, left: event.clientX, top: event.clientY };
    canvas.setPointerCapture(event.pointerId);
    if (grabbed !== "cut") return;
    slider.focus({ preventScroll: true, focusVisible: false });
    drag(event);
  });
  canvas.addEventListener("mousedown", (event) => event.preventDefault());
  canvas.addEventListener("pointermove", (event) => { if (canvas.hasPointerCapture(event.pointerId)) drag(event); });
  place();
})();
