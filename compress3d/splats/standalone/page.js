/* The page: decodes the scenes, and draws what people ask for, when they ask for it. */

const text = (id) => document.getElementById(id).textContent;
const canvas = document.querySelector("canvas"), told = document.getElementById("told");
const page = JSON.parse(text("page"));
const camera = new OrbitCamera(page.start);
const dark = matchMedia("(prefers-color-scheme: dark)");
const shades = { light: [1, 1, 1], dark: [0.043, 0.055, 0.047] };
let renderer, worker, shown = page.scenes.length - 1, shade = dark.matches ? "dark" : "light";
let tickets = 0, waiting = new Map(), busy = false, stale = false;

/* The indices of a scene that `view` sees, the farthest first. */
function sorted(scene, view) {
  const ticket = ++tickets;
  worker.postMessage({ scene, row: view.viewmat[2], near: view.near, ticket });
  return new Promise((resolve) => waiting.set(ticket, resolve));
}

/* Draw the picture as it is to be now; of what is asked for meanwhile, only the last is drawn. */
async function update() {
  if (busy) return void (stale = true);
  busy = true;
  do {
    stale = false;
    const ratio = Math.min(devicePixelRatio, 2), box = canvas.getBoundingClientRect();
    const view = camera.at(Math.max(1, Math.round(box.width * ratio)), Math.max(1, Math.round(box.height * ratio)));
    const scene = shown, order = await sorted(scene, view);
    await new Promise(requestAnimationFrame);
    renderer.draw(scene, view, order, shades[shade]);
  } while (stale);
  busy = false;
}

/* A PNG of scene `scene` as a data URI, seen by {width, height, K: 3 x 3, viewmat: 4 x 4} on [r, g, b]. */
async function picture({ width, height, K, viewmat }, scene = shown, background = [1, 1, 1]) {
  const view = { width, height, viewmat, near: 0.01, focal: [K[0][0], K[1][1]], principal: [K[0][2], K[1][2]] };
  const order = await sorted(scene, view);
  renderer.draw(scene, view, order, background);
  const uri = canvas.toDataURL("image/png");
  update();
  return uri;
}

function show(index) {
  shown = index;
  for (const button of document.querySelectorAll("[data-scene]")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.scene) === index));
  }
  document.getElementById("note").textContent = page.scenes[index].note;
  update();
}

async function save() {
  const view = camera.at(canvas.width, canvas.height), order = await sorted(shown, view);
  renderer.draw(shown, view, order, shades[shade]);
  const link = document.createElement("a");
  link.href = canvas.toDataURL("image/png");
  link.download = "view.png";
  link.click();
}

const acts = {
  reset: () => { camera.reset(); update(); },
  shade: () => { shade = shade === "dark" ? "light" : "dark"; update(); },
  save,
};

async function start() {
  if (!("DecompressionStream" in window)) throw new Error("this browser is too old to unpack the scene");
  renderer = new Renderer(canvas, { vertex: text("vertex"), fragment: text("fragment") });
  worker = new Worker(URL.createObjectURL(new Blob([text("sorter")], { type: "text/javascript" })));
  worker.onmessage = ({ data }) => { waiting.get(data.ticket)(data.order); waiting.delete(data.ticket); };
  for (const [index, { ranges }] of page.scenes.entries()) {
    const scene = decode(ranges, await inflate(text(`scene-${index}`)));
    renderer.add(scene);
    worker.postMessage({ positions: scene.positions }, [scene.positions.buffer]);
  }
  control(canvas, camera, update);
  for (const button of document.querySelectorAll("[data-scene]")) button.addEventListener("click", () => show(Number(button.dataset.scene)));
  for (const button of document.querySelectorAll("[data-act]")) button.addEventListener("click", () => acts[button.dataset.act]());
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "t") show((shown + 1) % page.scenes.length);
    if (event.key === "r") acts.reset();
  });
  dark.addEventListener("change", () => { shade = dark.matches ? "dark" : "light"; update(); });
  new ResizeObserver(update).observe(canvas);
  show(shown);
  told.hidden = true;
}

const ready = start();
ready.catch((error) => { told.textContent = `The scene cannot be shown: ${error.message}.`; });
window.secateur = { ready, picture, show };
