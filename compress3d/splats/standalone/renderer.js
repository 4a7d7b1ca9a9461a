/* Draws one of the loaded scenes with WebGL2: a rectangle a Gaussian, the farthest first, blended over the background. */

class Renderer {
  constructor(canvas, sources) {
    this.canvas = canvas;
    const gl = (this.gl = canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false }));
    if (!gl) throw new Error("this browser has no WebGL2, which the 3D view needs");
    this.program = this.build(sources);
    gl.useProgram(this.program);
    this.uniforms = {};
    for (let i = 0; i < gl.getProgramParameter(this.program, gl.ACTIVE_UNIFORMS); i++) {
      const { name } = gl.getActiveUniform(this.program, i);
      this.uniforms[name] = gl.getUniformLocation(this.program, name);
    }
    this.scenes = [];
    this.none = this.texture(gl.RGBA32F, gl.RGBA, gl.FLOAT, 1, 1, new Float32Array(4));
    gl.uniform1i(this.uniforms.harmonics, 1);
    this.attributes();
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  }

  build({ vertex, fragment }) {
    const gl = this.gl, program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source.trim());
      gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    return program;
  }

  attributes() {
    const gl = this.gl, at = (name) => gl.getAttribLocation(this.program, name);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([-1, -1, 1, -1, -1, 1, 1, 1]), gl.STATIC_DRAW);
    gl.enableVertexAttribArray(at("corner"));
    gl.vertexAttribPointer(at("corner"), 2, gl.FLOAT, false, 0, 0);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.enableVertexAttribArray(at("index"));
    gl.vertexAttribIPointer(at("index"), 1, gl.UNSIGNED_INT, 0, 0);
    gl.vertexAttribDivisor(at("index"), 1);
  }

  texture(inside, format, type, width, height, values) {
    const gl = this.gl, texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, gl.NEAREST);
    gl.texImage2D(gl.TEXTURE_2D, 0, inside, width, height, 0, format, type, values);
    return texture;
  }

  add({ texels, height, harmonics, scaleUnit, ranges }) {
    const gl = this.gl;
    this.scenes.push({
      splats: this.texture(gl.RGBA32UI, gl.RGBA_INTEGER, gl.UNSIGNED_INT, 2 * ROW, height, texels),
      harmonics: harmonics
        ? this.texture(gl.RGBA32F, gl.RGBA, gl.FLOAT, harmonics.width, harmonics.height, harmonics.values)
        : this.none,
      scaleUnit, ranges,
    });
  }

  /* `order` holds the indices of what is in front of the camera, the farthest first; `background` is [r, g, b], 0 to 1. */
  draw(index, camera, order, background) {
    const { gl, uniforms, canvas } = this, { splats, harmonics, scaleUnit, ranges } = this.scenes[index];
    if (canvas.width !== camera.width || canvas.height !== camera.height) {
      canvas.width = camera.width;
      canvas.height = camera.height;
    }
    gl.viewport(0, 0, camera.width, camera.height);
    gl.clearColor(...background, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    for (const [unit, texture] of [splats, harmonics].entries()) {
      gl.activeTexture(gl.TEXTURE0 + unit);
      gl.bindTexture(gl.TEXTURE_2D, texture);
    }
    gl.activeTexture(gl.TEXTURE0);
    gl.uniformMatrix4fv(uniforms.view, true, camera.viewmat.flat());
    gl.uniform2f(uniforms.focal, ...camera.focal);
    gl.uniform2f(uniforms.principal, ...camera.principal);
    gl.uniform2f(uniforms.size, camera.width, camera.height);
    gl.uniform1f(uniforms.near, camera.near);
    gl.uniform1f(uniforms.scaleUnit, scaleUnit);
    gl.uniform2f(uniforms.colours, ranges.colour_low, ranges.colour_high);
    gl.uniform1i(uniforms.degree, ranges.harmonics ? ranges.harmonics.degree : 0);
    gl.uniform1i(uniforms.antialiased, ranges.antialiased);
    gl.bufferData(gl.ARRAY_BUFFER, order, gl.DYNAMIC_DRAW);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, order.length);
  }
}
