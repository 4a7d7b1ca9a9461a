/* The packed scene of `packing.py`, as the texture that the shaders read and the positions that are sorted. */

const ROW = 1024; // Gaussians in a row of the texture, two texels each
const ENTRIES = 64; // of the palette in a row of its texture

async function inflate(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/* Bits of a half-precision float, rounded to nearest; what is too small becomes 0. */
const toHalf = (() => {
  const float = new Float32Array(1), bits = new Uint32Array(float.buffer);
  return (value) => {
    float[0] = Math.min(Math.abs(value), 65504);
    if (float[0] < 6.1e-5) return Math.round(float[0] * 16777216);
    return (bits[0] - 0x38000000 + 0x1000) >>> 13;
  };
})();

function decode(ranges, planes) {
  const { count, centre, unit, low, high } = ranges;
  const plane = (index) => planes.subarray(index * count, (index + 1) * count);
  const positions = new Float32Array(3 * count);
  for (let axis = 0; axis < 3; axis++) {
    const large = plane(axis), small = plane(3 + axis), step = (high[axis] - low[axis]) / 65535;
    for (let i = 0; i < count; i++) {
      const log = low[axis] + (256 * large[i] + small[i]) * step;
      positions[3 * i + axis] = centre[axis] + unit * Math.sign(log) * Math.expm1(Math.abs(log));
    }
  }
  const height = Math.ceil(count / ROW);
  const texels = new Uint32Array(8 * ROW * height), floats = new Float32Array(texels.buffer);
  // Scales are halves in units of the largest one, so that all of them are in range.
  const shrink = Float32Array.from({ length: 256 }, (_, level) => ((level - 255) * (ranges.scale_high - ranges.scale_low)) / 255);
  const halves = Uint32Array.from(shrink, (log) => toHalf(1024 * Math.exp(log)));
  const parts = Array.from({ length: 11 }, (_, index) => plane(6 + index));
  const quaternion = [0, 0, 0, 0];
  for (let i = 0; i < count; i++) {
    const at = 8 * i, missing = parts[6][i];
    floats.set(positions.subarray(3 * i, 3 * i + 3), at);
    texels[at + 3] = (parts[7][i] | (parts[8][i] << 8) | (parts[9][i] << 16) | (parts[10][i] << 24)) >>> 0;
    let rest = 1;
    for (let k = 0, part = 0; k < 4; k++) {
      if (k === missing) continue;
      quaternion[k] = ((parts[3 + part++][i] - 127) / 127) * Math.SQRT1_2;
      rest -= quaternion[k] ** 2;
    }
    quaternion[missing] = Math.sqrt(Math.max(rest, 0));
    const level = quaternion.map((value) => Math.round(value * 32767) & 0xffff);
    texels[at + 4] = (level[0] | (level[1] << 16)) >>> 0;
    texels[at + 5] = (level[2] | (level[3] << 16)) >>> 0;
    texels[at + 6] = (halves[parts[0][i]] | (halves[parts[1][i]] << 16)) >>> 0;
    texels[at + 7] = halves[parts[2][i]];
  }
  const harmonics = ranges.harmonics && palette(ranges.harmonics, planes.subarray(17 * count), count, texels);
  return { count, positions, texels, height, harmonics, scaleUnit: Math.exp(ranges.scale_high) / 1024, ranges };
}

/* The texture of harmonics above degree 0, a texel a coefficient; which entry a Gaussian has goes into its last texel. */
function palette({ degree, entries, codebook }, planes, count, texels) {
  for (let i = 0; i < count; i++) texels[8 * i + 7] |= (planes[i] | (planes[count + i] << 8)) << 16;
  const coefficients = (degree + 1) ** 2 - 1, width = ENTRIES * coefficients, height = Math.ceil(entries / ENTRIES);
  const values = new Float32Array(4 * width * height);
  for (let plane = 0; plane < 3 * coefficients; plane++) {
    const from = 2 * count + plane * entries, channel = plane % 3, coefficient = Math.floor(plane / 3);
    for (let entry = 0; entry < entries; entry++) {
      values[4 * (entry * coefficients + coefficient) + channel] = codebook[planes[from + entry]];
    }
  }
  return { values, width, height };
}
