#version 300 es
// EWA splatting (Zwicker et al. 2001): each Gaussian becomes the rectangle around its ellipse on the screen.
precision highp float;
precision highp int;
precision highp usampler2D;
precision highp sampler2D;

uniform usampler2D splats;
uniform sampler2D harmonics;
uniform int degree;       // of the harmonics, 0 to 3
uniform mat4 view;        // world to camera; x right, y down, z forward
uniform vec2 focal;       // pixels
uniform vec2 principal;   // pixels
uniform vec2 size;        // pixels
uniform float near;
uniform float scaleUnit;  // world units of one unit of the stored scales
uniform vec2 colours;     // of bytes 0 and 255
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

vec3 coefficient(int place) {
  int width = textureSize(harmonics, 0).x;
  return texelFetch(harmonics, ivec2(place % width, place / width), 0).rgb;
}

// What the harmonics of degrees 1 to 3 add to the colour seen along `d`, in the order and signs of 3D Gaussian splatting.
vec3 harmonic(uint entry, vec3 d) {
  if (degree == 0) return vec3(0.0);
  int first = int(entry) * ((degree + 1) * (degree + 1) - 1);
  float x = d.x, y = d.y, z = d.z, xx = x * x, yy = y * y, zz = z * z;
  vec3 sum = 0.4886025119029199 * (-y * coefficient(first) + z * coefficient(first + 1) - x * coefficient(first + 2));
  if (degree == 1) return sum;
  sum += 1.0925484305920792 * (x * y * coefficient(first + 3) - y * z * coefficient(first + 4) - x * z * coefficient(first + 6));
  sum += 0.31539156525252005 * (2.0 * zz - xx - yy) * coefficient(first + 5);
  sum += 0.5462742152960396 * (xx - yy) * coefficient(first + 7);
  if (degree == 2) return sum;
  sum -= 0.5900435899266435 * (y * (3.0 * xx - yy) * coefficient(first + 8) + x * (xx - 3.0 * yy) * coefficient(first + 14));
  sum += 2.890611442640554 * x * y * z * coefficient(first + 9);
  sum -= 0.4570457994644658 * (4.0 * zz - xx - yy) * (y * coefficient(first + 10) + x * coefficient(first + 12));
  sum += 0.3731763325901154 * z * (2.0 * zz - 3.0 * xx - 3.0 * yy) * coefficient(first + 11);
  return sum + 1.445305721320277 * z * (xx - yy) * coefficient(first + 13);
}

void main() {
  gl_Position = vec4(0.0, 0.0, 2.0, 1.0);  // off the screen, unless all goes well
  ivec2 at = ivec2(2 * int(index & 1023u), int(index >> 10u));
  uvec4 first = texelFetch(splats, at, 0);
  uvec4 second = texelFetch(splats, at + ivec2(1, 0), 0);
  vec3 mean = uintBitsToFloat(first.xyz);
  vec3 p = (view * vec4(mean, 1.0)).xyz;
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
  vec3 eye = -transpose(mat3(view)) * view[3].xyz;
  vec3 base = mix(colours.xxx, colours.yyy, bytes.rgb / 255.0);
  colour = vec4(max(base + harmonic(second.w >> 16u, normalize(mean - eye)), 0.0), peak);
}
