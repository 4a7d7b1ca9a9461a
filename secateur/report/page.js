(() => {
  "use strict";
  const stage = document.querySelector(".stage");
  const pictures = JSON.parse(document.getElementById("pictures").textContent);
  let result = 0, view = 0;

  const press = (selector, chosen) => {
    for (const button of document.querySelectorAll(selector)) button.setAttribute("aria-pressed", String(button === chosen));
  };

  const show = () => {
    for (const part of document.querySelectorAll("[data-for]")) part.hidden = Number(part.dataset.for) !== result;
    if (!stage) return;
    const { name, image } = pictures.views[view], chosen = pictures.results[result];
    const put = (selector, source, alt) => Object.assign(stage.querySelector(selector), { src: source, alt });
    put(".left", image, `${name}: ${pictures.original}`);
    put(".right", chosen.images[view], `${name}: ${chosen.name}`);
    put(".heat", chosen.errors[view], `${name}: how far ${chosen.name} is from ${pictures.original}, pixel by pixel`);
    stage.querySelector(".at-right").textContent = `${chosen.name}: ${chosen.captions[view]}`;
  };

  for (const button of document.querySelectorAll("[data-result]")) {
    button.addEventListener("click", () => { result = Number(button.dataset.result); press("[data-result]", button); show(); });
  }
  show();
  if (!stage) return;

  for (const button of stage.querySelectorAll("[data-view]")) {
    button.addEventListener("click", () => { view = Number(button.dataset.view); press("[data-view]", button); show(); });
  }
  for (const thumbnail of stage.querySelectorAll("[data-thumbnail]")) {
    thumbnail.src = pictures.views[Number(thumbnail.dataset.thumbnail)].image;
  }
  for (const button of stage.querySelectorAll("button[data-mode]")) {
    button.addEventListener("click", () => { stage.dataset.mode = button.dataset.mode; press("button[data-mode]", button); });
  }

  const canvas = stage.querySelector(".canvas"), slider = stage.querySelector(".cut");
  const cut = (percent) => {
    slider.value = percent;
    canvas.style.setProperty("--cut", `${percent}%`);
    slider.setAttribute("aria-valuetext", `${Math.round(percent)} % original`);
  };
  const follow = (event) => {
    const box = canvas.getBoundingClientRect();
    cut(Math.min(100, Math.max(0, (100 * (event.clientX - box.left)) / box.width)));
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (stage.dataset.mode !== "slide" || event.button) return;
    canvas.setPointerCapture(event.pointerId);
    slider.focus({ preventScroll: true, focusVisible: false });
    follow(event);
  });
  canvas.addEventListener("mousedown", (event) => event.preventDefault());
  canvas.addEventListener("pointermove", (event) => { if (canvas.hasPointerCapture(event.pointerId)) follow(event); });
  slider.addEventListener("input", () => cut(Number(slider.value)));
  cut(50);
})();
