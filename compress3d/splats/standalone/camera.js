/* A camera that orbits a target: x right, y down, z forward, as everywhere in secateur. */

const add = (a, b, scale = 1) => a.map((value, i) => value + scale * b[i]);
const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const unit = (a) => { const length = Math.hypot(...a) || 1; return a.map((value) => value / length); };

class OrbitCamera {
  /* `start`: position, target, up (each three numbers) and fov, the field of view of the shorter side in radians. */
  constructor(start) {
    this.start = start;
    this.up = unit(start.up);
    const helper = Math.abs(this.up[0]) < 0.9 ? [1, 0, 0] : [0, 1, 0];
    this.side = unit(cross(this.up, helper));
    this.front = cross(this.up, this.side);
    this.reset();
  }

  reset() {
    const { position, target, fov } = this.start, away = add(position, target, -1), direction = unit(away);
    Object.assign(this, { target: [...target], fov, distance: Math.hypot(...away) });
    this.elevation = Math.asin(dot(direction, this.up));
    this.azimuth = Math.atan2(dot(direction, this.front), dot(direction, this.side));
  }

  orbit(azimuth, elevation) {
    this.azimuth += azimuth;
    this.elevation = Math.min(1.55, Math.max(-1.55, this.elevation + elevation));
  }

  zoom(factor) {
    const least = 1e-3 * Math.hypot(...add(this.start.position, this.start.target, -1));
    this.distance = Math.min(1e5 * least, Math.max(least, this.distance * factor));
  }

  /* By shares of the shorter side of the picture. */
  pan(right, down) {
    const [x, y] = this.axes(), scale = 2 * this.distance * Math.tan(this.fov / 2);
    this.target = add(add(this.target, x, -right * scale), y, -down * scale);
  }

  /* From the camera to the target. */
  forward() {
    const flat = add(this.side.map((value) => value * Math.cos(this.azimuth)), this.front, Math.sin(this.azimuth));
    return add(flat.map((value) => value * Math.cos(this.elevation)), this.up, Math.sin(this.elevation)).map((value) => -value);
  }

  axes() {
    const z = this.forward(), x = unit(cross(z, this.up));
    return [x, cross(z, x), z];
  }

  /* What the renderer needs for a picture of width x height pixels. */
  at(width, height) {
    const axes = this.axes(), position = add(this.target, axes[2], -this.distance);
    const focal = (0.5 * Math.min(width, height)) / Math.tan(this.fov / 2);
    return {
      width, height, near: 1e-3 * this.distance, focal: [focal, focal], principal: [width / 2, height / 2],
      viewmat: [...axes.map((axis) => [...axis, -dot(axis, position)]), [0, 0, 0, 1]],
    };
  }
}

/* Mouse, touch and keys on `canvas` move `camera`; `moved` is called after each change. */
function control(canvas, camera, moved) {
  const fingers = new Map();
  const centre = () => {
    const points = [...fingers.values()], count = points.length;
    const x = points.reduce((sum, p) => sum + p.x, 0) / count, y = points.reduce((sum, p) => sum + p.y, 0) / count;
    return { x, y, apart: count > 1 ? Math.hypot(points[0].x - points[1].x, points[0].y - points[1].y) : 0 };
  };
  const side = () => Math.min(canvas.clientWidth, canvas.clientHeight) || 1;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => fingers.delete(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    if (!fingers.has(event.pointerId)) return;
    const before = centre();
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    const now = centre(), dx = now.x - before.x, dy = now.y - before.y;
    if (fingers.size > 1 || event.shiftKey || event.buttons & 6) camera.pan(dx / side(), dy / side());
    else camera.orbit((-dx / side()) * 4, (dy / side()) * 4);
    if (before.apart && now.apart) camera.zoom(before.apart / now.apart);
    moved();
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    camera.zoom(Math.exp(Math.max(-60, Math.min(60, event.deltaY * (event.deltaMode ? 20 : 1))) * 0.003));
    moved();
  }, { passive: false });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = steps[event.key];
    if (step && event.shiftKey) camera.pan(-0.05 * step[0], 0.05 * step[1]);
    else if (step) camera.orbit(0.1 * step[0], 0.1 * step[1]);
    else if (event.key === "+" || event.key === "=") camera.zoom(0.9);
    else if (event.key === "-") camera.zoom(1 / 0.9);
    else return;
    event.preventDefault();
    moved();
  });
}
