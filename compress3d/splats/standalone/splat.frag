#version 300 es
precision highp float;

in vec2 offset;
flat in vec4 colour;
out vec4 pixel;

void main() {
  float alpha = min(0.999, colour.a * exp(-0.5 * dot(offset, offset)));
  if (alpha < 1.0 / 255.0) discard;
  pixel = vec4(colour.rgb * alpha, alpha);
}
