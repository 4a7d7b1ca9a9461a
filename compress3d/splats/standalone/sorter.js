/* A worker: which Gaussians are in front of the camera, the farthest first. A counting sort by depth. */

const scenes = [];
const counts = new Uint32Array(65536);

/* `row` is the third row of the world-to-camera matrix: depth = row . (x, y, z, 1). */
function farthestFirst({ positions, depths, bits }, row, near) {
  const count = depths.length, [a, b, c, d] = row;
  let least = 0xffffffff, most = 0;
  for (let i = 0; i < count; i++) {
    const depth = a * positions[3 * i] + b * positions[3 * i + 1] + c * positions[3 * i + 2] + d;
    depths[i] = depth >= near ? depth : 0;
    if (!bits[i]) continue;
    if (bits[i] < least) least = bits[i];
    if (bits[i] > most) most = bits[i];
  }
  if (!most) return new Uint32Array(0);
  // The bits of positive floats are in the order of the floats, and their steps are relative to the depth.
  let shift = 0;
  while ((most - least) >>> shift > 65535) shift++;
  counts.fill(0);
  for (let i = 0; i < count; i++) if (bits[i]) counts[(bits[i] - least) >>> shift]++;
  let start = 0;
  for (let key = 65535; key >= 0; key--) [counts[key], start] = [start, start + counts[key]];
  const order = new Uint32Array(start);
  for (let i = count - 1; i >= 0; i--) if (bits[i]) order[counts[(bits[i] - least) >>> shift]++] = i;
  return order;
}

onmessage = ({ data }) => {
  if (data.positions) {
    const depths = new Float32Array(data.positions.length / 3);
    scenes.push({ positions: data.positions, depths, bits: new Uint32Array(depths.buffer) });
    return;
  }
  const order = farthestFirst(scenes[data.scene], data.row, data.near);
  postMessage({ order, ticket: data.ticket }, [order.buffer]);
};
