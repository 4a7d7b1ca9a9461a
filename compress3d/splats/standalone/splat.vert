#version 300 es
// EWA splatting (Zwicker et al. 2001): each Gaussian becomes the rectangle around its ellipse on the screen.
precision highp float;
precision highp int;
precision highp usampler2D;

uniform usampler2D splats;
uniform mat4 view;        // world to camera; x right, y down, z forward
uniform vec2 focal;       // pixels
uniform vec2 principal;   // pixels
uniform vec2 size;        // pixels
uniform float near;
uniform float scaleUnit;  // world units of one unit of the stored scales
uniform float colourHigh;
uniform bool antialiased;

in vec2 corner;           // of a square from -1 to 1
in uint index;

out vec2 offset;          // in standard deviations along the axes of the ellipse
flat out vec4 colour;

const float ALPHA_MIN = 1.0 / 255.0;
const float BLUR = 0.3;   // variance in square pixels that every ellipse has at least

mat3 rotation(vec4 wxyz) {
  vec4 q = normalize(wxyz);
  float w = q.x, x = q.y, y = q.z, z = q.w;
  return mat3(
    1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z), 2.0 * (x * z - w * y),
    2.0 * (x * y - w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + w * x),
    2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y));
}

// Rows of the Jacobian of the projection at `p`, which is held to 1.15 times the field of view, where it is still sane.
mat2x3 jacobian(vec3 p) {
  vec2 margin = 0.15 * size / focal;
  vec2 slope = clamp(p.xy / p.z, -principal / focal - margin, (size - principal) / focal + margin);
  return mat2x3(vec3(focal.x, 0.0, -focal.x * slope.x) / p.z, vec3(0.0, focal.y, -focal.y * slope.y) / p.z);
}

void main() {
  gl_Position = vec4(0.0, 0.0, 2.0, 1.0);  // off the screen, unless all goes well
  ivec2 at = ivec2(2 * int(index & 1023u), int(index >> 10u));
  uvec4 first = texelFetch(splats, at, 0);
  uvec4 second = texelFetch(splats, at + ivec2(1, 0), 0);
  vec3 p = (view * vec4(uintBitsToFloat(first.xyz), 1.0)).xyz;
  if (p.z < near) return;

  vec4 quaternion = vec4(unpackSnorm2x16(second.x), unpackSnorm2x16(second.y));
  vec3 scales = scaleUnit * vec3(unpackHalf2x16(second.z), unpackHalf2x16(second.w).x);
  mat3 axes = mat3(view) * rotation(quaternion);
  axes = mat3(axes[0] * scales.x, axes[1] * scales.y, axes[2] * scales.z);
  mat2x3 slopes = jacobian(p);
  vec3 a = slopes[0] * axes, b = slopes[1] * axes;
  float rawX = dot(a, a), rawY = dot(b, b), xy = dot(a, b);
  float xx = rawX + BLUR, yy = rawY + BLUR;

  vec4 bytes = vec4(first.w & 255u, (first.w >> 8u) & 255u, (first.w >> 16u) & 255u, first.w >> 24u);
  float peak = bytes.a / 255.0;
  if (antialiased) peak *= sqrt(max(0.0, (rawX * rawY - xy * xy) / (xx * yy - xy * xy)));
  if (peak < ALPHA_MIN) return;

  float middle = 0.5 * (xx + yy), spread = length(vec2(0.5 * (xx - yy), xy));
  vec2 variances = vec2(middle + spread, max(middle - spread, 1e-4));
  vec2 along = vec2(xy, variances.x - xx);
  along = dot(along, along) > 1e-12 * middle * middle ? normalize(along) : (xx >= yy ? vec2(1.0, 0.0) : vec2(0.0, 1.0));
  offset = corner * sqrt(2.0 * log(peak / ALPHA_MIN));
  vec2 reach = offset * sqrt(variances);
  vec2 pixel = focal * p.xy / p.z + principal + reach.x * along + reach.y * vec2(-along.y, along.x);
  gl_Position = vec4(2.0 * pixel.x / size.x - 1.0, 1.0 - 2.0 * pixel.y / size.y, 0.0, 1.0);
  colour = vec4(colourHigh * bytes.rgb / 255.0, peak);
}
