const $ = id => document.getElementById(id);
const bytesOf = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
const unpack = async id => new Response(new Blob([bytesOf($(id).textContent)]).stream().pipeThrough(new DecompressionStream('gzip'))).text();
const numbers = text => new Float32Array(bytesOf(text).buffer);
const row = (array, number, size) => array.subarray(number*size, (number + 1)*size);
const mean = values => values.reduce((sum, value) => sum + value, 0)/values.length;
let content, model, solid, frames, code, letter, about = {}, chosen = 0, ends = [0, 1], timer = null;

// ---- the decoders: linear layers, each followed by ReLU but for the last; batch norms are part of the weights
function linear(layer, input, output, start = layer.bias, offset = 0, columns = layer.width) {
  const {weight, width} = layer, even = columns - columns % 4;
  for (let line = 0; line < output.length; line++) {
    const place = line*width + offset;
    let a = start[line], b = 0, c = 0, d = 0, column = 0;
    for (; column < even; column += 4) {
      a += weight[place + column]*input[column];
      b += weight[place + column + 1]*input[column + 1];
      c += weight[place + column + 2]*input[column + 2];
      d += weight[place + column + 3]*input[column + 3];
    }
    for (; column < columns; column++) a += weight[place + column]*input[column];
    output[line] = a + b + c + d;
  }
  return output;
}
const relu = values => { for (let i = 0; i < values.length; i++) if (values[i] < 0) values[i] = 0; return values; };
const through = (layers, values) => layers.reduce((input, layer, number) => {
  const output = linear(layer, input, layer.output);
  return number < layers.length - 1 ? relu(output) : output;
}, values);
const decodePose = values => Float32Array.from(through(model.pose, values));
function fold(layers, values, places, size) {  // the first layer sees the code and the point's place
  const [first, ...rest] = layers, count = places.length/size, points = new Float32Array(3*count);
  const fromCode = linear(first, values, new Float32Array(first.bias.length), first.bias, 0, values.length);
  for (let point = 0; point < count; point++) {
    linear(first, row(places, point, size), first.output, fromCode, values.length, size);
    points.set(through(rest, relu(first.output)).map(Math.tanh), 3*point);
  }
  return points;
}
function onBones({offsets, shares, reach}, values) {  // a share of each joint, and an offset that ends at the point's reach
  const pose = through(model.pose, values), points = Float32Array.from(through(offsets, values));
  for (let point = 0; point < reach.length; point++) {
    const at = 3*point, far = reach[point], [x, y, z] = row(points, point, 3);
    const length = Math.sqrt(x*x + y*y + z*z) + 1e-6, size = far/length*Math.tanh(length/far);
    for (let axis = 0; axis < 3; axis++) {
      let place = size*points[at + axis];
      for (let joint = 0; joint < 21; joint++) place += shares[21*point + joint]*pose[3*joint + axis];
      points[at + axis] = place;
    }
  }
  return points;
}
function decodeCloud(values) {
  if (model.cloud) return Float32Array.from(through(model.cloud, values));
  if (model.bones) return onBones(model.bones, values);
  const [first, second] = model.folds;
  return fold(second, values, fold(first, values, model.grid, model.gridSize), 3).map(value => model.reach*value);
}
const hasCloud = () => model.cloud || model.bones || model.folds;
function doubled(step, input, side, output) {  // a 5x5 transposed convolution of stride 2, with ReLU but for the last
  // Maps lie in planes with a border of zeros. Each cell makes four cells of the larger map from itself and its eight neighbours.
  const {weight, bias, last} = step, P = side + 2, wide = 2*side, Q = wide + 2, sums = step.sums;
  for (let to = 0; to < bias.length; to++) {
    sums.fill(bias[to]);
    for (let from = 0; from*P*P < input.length; from++) {
      const [k0, k1, k2, k3, k4, k5, k6, k7, k8, k9, k10, k11, k12, k13, k14, k15, k16, k17, k18, k19, k20, k21, k22, k23, k24] = row(weight, from*bias.length + to, 25);
      for (let y = 0, at = 0; y < side; y++) {
        let place = (from*P + y + 1)*P + 1;
        let a = input[place - P - 1], b = input[place - P], d = input[place - 1], e = input[place], g = input[place + P - 1], h = input[place + P];
        for (let x = 0; x < side; x++, place++, at += 4) {
          const c = input[place - P + 1], f = input[place + 1], i = input[place + P + 1];
          sums[at] += k24*a + k22*b + k20*c + k14*d + k12*e + k10*f + k4*g + k2*h + k0*i;
          sums[at + 1] += k23*b + k21*c + k13*e + k11*f + k3*h + k1*i;
          sums[at + 2] += k19*d + k17*e + k15*f + k9*g + k7*h + k5*i;
          sums[at + 3] += k18*e + k16*f + k8*h + k6*i;
          a = b; b = c; d = e; e = f; g = h; h = i;
        }
      }
    }
    for (let y = 0, at = 0; y < side; y++)
      for (let x = 0; x < side; x++)
        for (let part = 0; part < 4; part++, at++) {
          const v = 2*y + (part >> 1), u = 2*x + (part & 1), value = sums[at];
          if (last) output[(to*wide + v)*wide + u] = 1/(1 + Math.exp(-value));
          else output[(to*Q + v + 1)*Q + u + 1] = value > 0 ? value : 0;
        }
  }
  return output;
}
function decodeMaps(values) {  // (21, size, size), 0 to 1; the next call overwrites them
  const {start, grow, planes} = model.heat, flat = linear(start, values, start.output), P = model.heat.side + 2;
  let side = model.heat.side;
  for (let cell = 0; cell < flat.length; cell++) {
    const channel = Math.floor(cell/side/side), y = Math.floor(cell/side) % side;
    planes[0][(channel*P + y + 1)*P + cell % side + 1] = flat[cell];
  }
  return grow.reduce((maps, step, number) => {
    const larger = doubled(step, maps, side, planes[number + 1]);
    side *= 2;
    return larger;
  }, planes[0]);
}
function makePlanes() {  // what decodeMaps works in
  const {start, grow} = model.heat, border = (channels, side) => new Float64Array(channels*(side + 2)**2);
  let side = model.heat.side;
  model.heat.planes = [border(start.bias.length/side/side, side)];
  grow.forEach((step, number) => {
    step.sums = new Float64Array(4*side*side);
    step.last = number === grow.length - 1;
    side *= 2;
    model.heat.planes.push(step.last ? new Float32Array(step.bias.length*side*side) : border(step.bias.length, side));
  });
}

// ---- a solid hand: twenty capsules and the palm, as handlab.hand.solid makes them
function capsule(pose, start, end, radii, out, place) {  // -> the place after it in out
  let x = pose[3*end] - pose[3*start], y = pose[3*end + 1] - pose[3*start + 1], z = pose[3*end + 2] - pose[3*start + 2];
  const length = Math.max(Math.sqrt(x*x + y*y + z*z), 1e-6);
  x /= length; y /= length; z /= length;
  const [a, b, c] = [Math.abs(x), Math.abs(y), Math.abs(z)];
  let [p, q, r] = a <= b && a <= c ? [0, z, -y] : b <= c ? [-z, 0, x] : [y, -x, 0];  // across, from the axis that is least along
  const size = Math.max(Math.sqrt(p*p + q*q + r*r), 1e-6);
  p /= size; q /= size; r /= size;
  const u = y*r - z*q, v = z*p - x*r, w = x*q - y*p;
  for (const [far, sine, cosine] of solid.circles) {
    const joint = 3*(far ? end : start), along = sine*radii[far], wide = cosine*radii[far];
    for (const [turn, half] of solid.turns) {
      const f = turn*wide, g = half*wide;
      out[place++] = pose[joint] + along*x + f*p + g*u;
      out[place++] = pose[joint + 1] + along*y + f*q + g*v;
      out[place++] = pose[joint + 2] + along*z + f*r + g*w;
    }
  }
  return place;
}
function handVertices(pose) {  // the next call overwrites them
  const out = solid.vertices, side = (joint, axis) => pose[3*joint + axis] - pose[axis];
  let place = 0;
  solid.bones.forEach(([parent, child], bone) => place = capsule(pose, parent, child, solid.radii[bone], out, place));
  const normal = [1, 2, 0].map((b, a) => side(5, b)*side(17, 3 - a - b) - side(5, 3 - a - b)*side(17, b));
  const size = Math.max(Math.hypot(...normal), 1e-6);
  for (const above of [1, -1])
    for (const joint of solid.palm) for (let axis = 0; axis < 3; axis++) out[place++] = pose[3*joint + axis] + above*solid.sheet*normal[axis]/size;
  return out;
}

// ---- one view for all scenes: turned by dragging, zoomed by the wheel or two fingers, kept until it is changed
const START = {yaw: .34, pitch: .24, zoom: 1}, view = {...START}, FAR = 14;
let room = {space: [], flat: [], order: []};  // kept from frame to frame
function seen(points, canvas) {  // -> in the view (x, y, z) and on the canvas (u, v); the next call overwrites them
  const count = points.length/3;
  if (room.flat.length < 2*count) room = {space: new Float32Array(3*count), flat: new Float32Array(2*count), order: []};
  const {space, flat} = room, {width, height} = canvas, [left, top, front] = content.centre;
  const [a, b, c, d] = [Math.cos(view.yaw), Math.sin(view.yaw), Math.cos(view.pitch), Math.sin(view.pitch)];
  const unit = Math.min(width, height)/2/content.reach*view.zoom;
  for (let i = 0; i < count; i++) {
    const x = points[3*i] - left, y = points[3*i + 1] - top, z = points[3*i + 2] - front;
    const right = a*x + b*z, ahead = a*z - b*x, down = c*y - d*ahead, away = d*y + c*ahead, size = unit*FAR/Math.max(FAR + away, 1);
    space[3*i] = right; space[3*i + 1] = down; space[3*i + 2] = away;
    flat[2*i] = width/2 + right*size; flat[2*i + 1] = height/2 + down*size;
  }
  return {space, flat, unit};
}
const PLACES = 65536;  // a depth and a number in one, which sort faster than numbers by their depth
function farFirst(count, depth) {  // -> the numbers below count, those with the largest depth first
  if (room.order.length < count) room.order = new Float64Array(count);
  const order = room.order.subarray(0, count);
  for (let i = 0; i < count; i++) order[i] = Math.round(1e6*(1000 - depth(i)))*PLACES + i;
  order.sort();
  for (let i = 0; i < count; i++) order[i] %= PLACES;
  return order;
}
const rgb = (colour, light) => `rgb(${colour.map(value => Math.round(value*light))})`;
const LIGHT = [-.37, -.66, -.65], LEVELS = 32;
function drawSolid(context, pose) {
  const {space, flat} = seen(handVertices(pose), context.canvas), {facing, levels, depths} = solid;
  let count = 0;
  solid.faces.forEach(({corners: [a, b, c], twoSided}, number) => {
    if (!twoSided && (flat[2*b] - flat[2*a])*(flat[2*c + 1] - flat[2*a + 1]) - (flat[2*b + 1] - flat[2*a + 1])*(flat[2*c] - flat[2*a]) >= 0) return;
    const i = 3*a, j = 3*b, k = 3*c;
    const x1 = space[j] - space[i], y1 = space[j + 1] - space[i + 1], z1 = space[j + 2] - space[i + 2];
    const x2 = space[k] - space[i], y2 = space[k + 1] - space[i + 1], z2 = space[k + 2] - space[i + 2];
    const x = y1*z2 - z1*y2, y = z1*x2 - x1*z2, z = x1*y2 - y1*x2;
    const light = (x*LIGHT[0] + y*LIGHT[1] + z*LIGHT[2])/(Math.sqrt(x*x + y*y + z*z) || 1);
    facing[count] = number;
    levels[count] = Math.round(LEVELS*(twoSided ? Math.abs(light) : Math.max(light, 0)));
    depths[count++] = (space[i + 2] + space[j + 2] + space[k + 2])/3;
  });
  for (const one of farFirst(count, i => depths[i])) {
    const {corners, shades} = solid.faces[facing[one]];
    let u = 0, v = 0;
    for (const i of corners) { u += flat[2*i]/corners.length; v += flat[2*i + 1]/corners.length; }
    context.beginPath();
    for (const i of corners) {  // a little larger than it is: no seams between faces
      const right = flat[2*i] - u, down = flat[2*i + 1] - v, far = 1 + .8/(Math.sqrt(right*right + down*down) || 1);
      context.lineTo(u + right*far, v + down*far);
    }
    context.fillStyle = shades[levels[one]];
    context.fill();
  }
}
function drawSkeleton(context, pose, colour, thick = .1) {
  const {space, flat, unit} = seen(pose, context.canvas);
  context.lineCap = 'round';
  for (const bone of farFirst(solid.bones.length, bone => space[3*solid.bones[bone][0] + 2] + space[3*solid.bones[bone][1] + 2])) {
    const [a, b] = solid.bones[bone];
    for (const [style, wide] of [['#fff', thick + .05], [colour ?? rgb(solid.fingers[bone >> 2], 1), thick]]) {
      context.beginPath();
      context.moveTo(flat[2*a], flat[2*a + 1]);
      context.lineTo(flat[2*b], flat[2*b + 1]);
      context.lineWidth = wide*unit;
      context.strokeStyle = style;
      context.stroke();
    }
  }
}
const NEAR = -1, DEEP = 1;  // hand scales before and behind the root; near points are dark
const SHADES = 256;
function drawCloud(context, points, grey) {
  const {space, flat, unit} = seen(points, context.canvas), size = (grey ? .05 : .075)*unit;
  for (const i of farFirst(points.length/3, i => space[3*i + 2])) {
    const deep = Math.min(Math.max((points[3*i + 2] - NEAR)/(DEEP - NEAR), 0), 1);
    context.beginPath();
    context.arc(flat[2*i], flat[2*i + 1], size, 0, 2*Math.PI);
    context.fillStyle = grey ? '#9aa3b2' : content.shades[Math.round(deep*SHADES)];
    context.fill();
  }
}
const loaded = {};
let unpacked = 0;
function picture(number) {  // an image, drawn as soon as the browser has unpacked it
  if (!loaded[number]) {
    loaded[number] = new Image();
    loaded[number].onload = () => { unpacked++; draw(); };
    loaded[number].src = frames.images[number];
  }
  return loaded[number];
}
function drawImage(context, frame) {
  const {width, height} = context.canvas;
  if (frame !== undefined && picture(frame).complete) context.drawImage(picture(frame), 0, 0, width, height);
}
const sheet = document.createElement('canvas');
function drawMaps(context, maps) {  // each cell in the colour of the joint whose map is highest there
  const side = Math.sqrt(maps.length/21), only = $('joint').value;
  if (only === 'off') return;
  if (sheet.width !== side) sheet.width = sheet.height = side;
  const pen = sheet.getContext('2d'), image = pen.createImageData(side, side), {data} = image, cells = side*side;
  for (let cell = 0; cell < cells; cell++) {
    let best = only === 'all' ? 0 : +only, most = maps[best*cells + cell];
    if (only === 'all') for (let joint = 1; joint < 21; joint++) if (maps[joint*cells + cell] > most) { best = joint; most = maps[best*cells + cell]; }
    const colour = best ? solid.fingers[(best - 1) >> 2] : solid.wrist;
    for (let i = 0; i < 3; i++) data[4*cell + i] = colour[i];
    data[4*cell + 3] = 255*Math.min(1.6*most, .92);
  }
  pen.putImageData(image, 0, 0);
  context.drawImage(sheet, 0, 0, context.canvas.width, context.canvas.height);
}
function drawTrueJoints(context, uv) {
  const place = number => [0, 1].map(axis => (uv[2*number + axis] + .5)/content.crop*context.canvas.width);
  context.lineCap = 'round';
  context.lineWidth = context.canvas.width/60;
  solid.bones.forEach(([a, b], bone) => {
    context.beginPath();
    context.moveTo(...place(a));
    context.lineTo(...place(b));
    context.strokeStyle = rgb(solid.fingers[bone >> 2], 1);
    context.stroke();
  });
}

// ---- drawing: once per frame of the screen, the newest code in the newest view
let asked = false, decoded = {};
function draw() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => { asked = false; render(); });
}
function decode() {  // once per code
  if (decoded.code !== code) decoded = {code, pose: decodePose(code), cloud: hasCloud() && decodeCloud(code)};
  if (model.heat && !decoded.maps && $('joint').value !== 'off') decoded.maps = decodeMaps(code);
}
const known = frame => frame !== undefined && frames.known[frame];
function closest(values) {  // the image whose code is nearest
  let best = [Infinity, 0];
  for (let number = 0; number < frames.names.length; number++) {
    const other = codeOf(number);
    let far = 0;
    for (let i = 0; i < size(); i++) far += (values[i] - other[i])**2;
    if (far < best[0]) best = [far, number];
  }
  return best[1];
}
function truth(frame) {
  if (!known(frame)) return {};
  return {pose: row(frames.poses, frame, 63), cloud: frames.clouds && row(frames.clouds, frame, frames.clouds.length/frames.names.length), uv: row(frames.uv, frame, 42)};
}
const hand = (context, pose) => $('look').value === 'solid' ? drawSolid(context, pose) : drawSkeleton(context, pose);
function render() {
  decode();
  const {pose, cloud, maps} = decoded, right = truth(about.frame), over = $('truth').value === 'over';
  const near = about.frame ?? closest(code), its = truth(near);  // between images there is no truth: that of the nearest code stands beside
  const parts = {
    maps: context => { drawImage(context, about.frame); if (maps) drawMaps(context, maps); if (over && right.uv) drawTrueJoints(context, right.uv); },
    hand: context => { hand(context, pose); if (over && right.pose) drawSkeleton(context, right.pose, '#000', .05); },
    cloud: context => { if (over && right.cloud) drawCloud(context, right.cloud, true); drawCloud(context, cloud); },
  };
  const beside = {
    maps: context => { drawImage(context, near); if (its.uv && $('truth').value !== 'hidden') drawTrueJoints(context, its.uv); },
    hand: context => { if (its.pose) hand(context, its.pose); },
    cloud: context => { if (its.cloud) drawCloud(context, its.cloud); },
  };
  document.querySelectorAll('#panels figure').forEach(figure => {
    const canvas = figure.querySelector('canvas'), wide = Math.round(canvas.clientWidth*devicePixelRatio);
    const shown = JSON.stringify([known(near), near, view, wide, $('look').value, $('truth').value, unpacked]);
    if (!wide || figure.dataset.true && canvas.dataset.shown === shown) return;  // a truth stays as it is
    canvas.dataset.shown = shown;
    if (canvas.width !== wide) canvas.width = canvas.height = wide;
    const context = canvas.getContext('2d');
    context.clearRect(0, 0, wide, wide);
    (figure.dataset.true ? beside : parts)[figure.dataset.part](context);
  });
  markMap(); setAxes(); tell(right, near); report();
  document.body.dataset.drawn = +(document.body.dataset.drawn || 0) + 1;
}
const distances = (a, b) => { const found = []; for (let i = 0; i < a.length; i += 3) found.push(Math.hypot(a[i] - b[i], a[i + 1] - b[i + 1], a[i + 2] - b[i + 2])); return found; };
function nearest(from, to) {
  let sum = 0;
  for (let i = 0; i < from.length; i += 3) {
    let best = Infinity;
    for (let j = 0; j < to.length; j += 3) {
      const far = (from[i] - to[j])**2 + (from[i + 1] - to[j + 1])**2 + (from[i + 2] - to[j + 2])**2;
      if (far < best) best = far;
    }
    sum += Math.sqrt(best);
  }
  return 3*sum/from.length;
}
const jointError = (pose, frame) => mean(distances(pose, row(frames.poses, frame, 63)))*frames.scales[frame];
function peakError(maps, uv) {  // px of the crop, from each map's highest cell
  const side = Math.sqrt(maps.length/21), off = [];
  for (let joint = 0; joint < 21; joint++) {
    const map = row(maps, joint, side*side), best = map.indexOf(Math.max(...map)), cell = content.crop/side;
    off.push(Math.hypot((best % side + .5)*cell - .5 - uv[2*joint], (Math.floor(best/side) + .5)*cell - .5 - uv[2*joint + 1]));
  }
  return mean(off);
}
const set = (element, name, value) => { if (element.getAttribute(name) !== value) element.setAttribute(name, value); };
const say = (element, text) => { if (element.textContent !== text) element.textContent = text; };
function tell(right, near) {
  const {pose, cloud, maps} = decoded, scale = frames.scales[about.frame], told = {maps: '', hand: '', cloud: ''};
  if (right.pose) told.hand = `${jointError(pose, about.frame).toFixed(1)} mm off`;
  if (right.cloud && cloud) told.cloud = `${((nearest(cloud, right.cloud) + nearest(right.cloud, cloud))/2*scale).toFixed(1)} mm off`;
  if (right.uv && maps) told.maps = `${peakError(maps, right.uv).toFixed(1)} px off`;
  document.querySelectorAll('#panels figure').forEach(figure => say(figure.querySelector('span'), figure.dataset.true ? (about.frame === undefined ? 'of the nearest code' : known(near) ? '' : figure.dataset.part === 'maps' ? 'joints not known' : 'not known') : told[figure.dataset.part]));
  say($('told'), about.text);
}

// ---- where the code comes from
const size = () => model.latent;
const codeOf = (frame, from = letter) => row(frames.codes[from].mean, frame, size());
function setCode(values, what) { code = Float32Array.from(values); about = what; draw(); }
function choose(frame) {
  chosen = frame;
  document.querySelectorAll('#map circle').forEach((dot, number) => dot.classList.toggle('chosen', number === frame));
  showExperts();
  setCode(codeOf(frame), {frame, text: frames.names[frame]});
}
const mix = (a, b, share) => a.map((value, axis) => (1 - share)*value + share*b[axis]);
function walkTo(share) {
  const at = share === 0 ? {frame: ends[0]} : share === 1 ? {frame: ends[1]} : {};
  setCode(mix(codeOf(ends[0]), codeOf(ends[1]), share), {text: `${Math.round(100*share)} % of the way`, ...at});
}
function fromPrior() {
  const normal = () => Math.sqrt(-2*Math.log(1 - Math.random()))*Math.cos(2*Math.PI*Math.random());
  setCode(Float32Array.from({length: size()}, normal), {text: 'drawn from the prior'});
}
function project(values, axis) { let sum = 0; for (let i = 0; i < size(); i++) sum += (values[i] - frames.middle[i])*frames.axes[axis*size() + i]; return sum; }
function fromMap(x, y) {  // a free place: on the principal plane through the chosen image, elsewhere between the nearest codes
  if ($('places').value === 'PCA') {
    const start = codeOf(chosen), moved = [x - project(start, 0), y - project(start, 1)];
    return start.map((value, i) => value + moved[0]*frames.axes[i] + moved[1]*frames.axes[size() + i]);
  }
  const spots = frames.maps[$('places').value];
  const near = frames.names.map((_, number) => [Math.hypot(spots[2*number] - x, spots[2*number + 1] - y) + 1e-6, number]).sort((a, b) => a[0] - b[0]).slice(0, 4);
  const total = near.reduce((sum, [far]) => sum + 1/far, 0), found = new Float32Array(size());
  near.forEach(([far, number]) => codeOf(number).forEach((value, i) => found[i] += value/far/total));
  return found;
}
function weightsOf(frame) {  // of each expert in the product, the mean over the code's numbers
  const precisions = Object.keys(frames.codes).filter(name => name !== 'joint').map(name => [name, row(frames.codes[name].logVariance, frame, size()).map(value => Math.exp(-value))]);
  const total = precisions[0][1].map((_, i) => model.priorExpert + precisions.reduce((sum, [, each]) => sum + each[i], 0));
  return Object.fromEntries(precisions.map(([name, each]) => [name, mean(each.map((value, i) => value/total[i]))]));
}
function showExperts() {
  const every = Object.keys(frames.codes), names = known(chosen) ? every : every.slice(0, 1);  // a photograph has no cloud
  if (every.length < 2) return;
  const weights = known(chosen) ? weightsOf(chosen) : {};
  $('codes').replaceChildren(...names.map(name => {
    const button = document.createElement('button'), weight = 100*(weights[name] ?? 1);
    button.setAttribute('aria-pressed', name === letter);
    button.style.setProperty('--weight', `${weight}%`);
    const lost = known(chosen) ? `${jointError(decodePose(codeOf(chosen, name)), chosen).toFixed(1)} mm off` : '';
    const heading = document.createElement('b'), told = document.createElement('span');
    heading.textContent = content.letters[name];
    told.textContent = [name === 'joint' ? '' : `weight ${Math.round(weight)} %`, lost].filter(text => text).join(', ');
    button.append(heading, document.createElement('i'), told);
    button.dataset.letter = name;
    button.onclick = () => { stop(); letter = name; drawMap(); choose(chosen); };
    return button;
  }));
}

// ---- the map
const NS = 'http://www.w3.org/2000/svg', WIDE = 600, HIGH = 440, EDGE = 24;
const MEANING = {
  PCA: 'PCA: the two directions in which the codes differ most; what lies near here may be far apart in the others',
  UMAP: 'UMAP of the first encoder: neighbours stay together, distances between groups mean little; a free place takes the four nearest codes',
};
let scale;
function palette(share) {
  const stops = content.palette, place = Math.min(Math.max(share, 0), 1)*(stops.length - 1), low = Math.min(Math.floor(place), stops.length - 2);
  return `rgb(${stops[low].map((value, i) => Math.round(value + (place - low)*(stops[low + 1][i] - value)))})`;
}
const gradient = most => `linear-gradient(90deg,${[0, .25, .5, .75, 1].map(share => palette(most*share))})`;
function spots() {
  const here = $('places').value;
  if (here !== 'PCA') return frames.maps[here];
  return Float32Array.from(frames.names.flatMap((_, number) => [project(codeOf(number), 0), project(codeOf(number), 1)]));
}
const colour = () => content.colours[$('colours').value];
const inWords = number => colour().values[number] === null ? 'unknown' : `${colour().values[number]} ${colour().unit}`;
function drawMap() {
  const all = spots(), xs = all.filter((_, i) => i % 2 === 0), ys = all.filter((_, i) => i % 2);
  const low = [Math.min(...xs), Math.min(...ys)], high = [Math.max(...xs), Math.max(...ys)];
  const zoom = Math.min((WIDE - 2*EDGE)/(high[0] - low[0] || 1), (HIGH - 2*EDGE)/(high[1] - low[1] || 1));
  const middle = [0, 1].map(axis => (low[axis] + high[axis])/2);
  scale = {to: (x, y) => [WIDE/2 + (x - middle[0])*zoom, HIGH/2 + (y - middle[1])*zoom], from: (u, v) => [(u - WIDE/2)/zoom + middle[0], (v - HIGH/2)/zoom + middle[1]], all};
  const values = colour().values.filter(value => value !== null), least = Math.min(...values), most = Math.max(...values);
  $('map').replaceChildren(...frames.names.map((_, number) => {
    const dot = document.createElementNS(NS, 'circle'), [u, v] = scale.to(all[2*number], all[2*number + 1]), value = colour().values[number];
    Object.entries({cx: u, cy: v, r: 7, fill: value === null ? '#fff' : palette((value - least)/(most - least || 1))}).forEach(each => dot.setAttribute(...each));
    dot.classList.toggle('chosen', number === chosen);
    dot.classList.toggle('unknown', value === null);
    return dot;
  }));
  $('placed').textContent = MEANING[$('places').value] ?? '';
  $('legend').innerHTML = `${least.toFixed(0)} ${colour().unit}<i style="background:${gradient(1)}"></i>${most.toFixed(0)} ${colour().unit}`;
  markMap();
}
function markMap() {  // a cross where the present code lies, and the walk as a line
  if (!scale) return;
  const isPlane = $('places').value === 'PCA', line = $('marks').querySelector('line');
  const spot = frame => [scale.all[2*frame], scale.all[2*frame + 1]];
  const here = isPlane ? [project(code, 0), project(code, 1)] : about.place ?? (about.frame === undefined ? null : spot(about.frame));
  const [u, v] = here ? scale.to(...here) : [];
  set($('marks').querySelector('path'), 'd', here ? `M${u - 9} ${v}H${u + 9}M${u} ${v - 9}V${v + 9}` : '');
  set(line, 'display', isPlane ? 'inline' : 'none');  // a straight line is straight on a plane only
  const two = ends.map(frame => scale.to(...spot(frame)));
  ['x1', 'y1', 'x2', 'y2'].forEach((name, i) => set(line, name, `${two[i >> 1][i % 2]}`));
}
function placeOf(event, box = $('map').getBoundingClientRect()) { return [(event.clientX - box.left)*WIDE/box.width, (event.clientY - box.top)*HIGH/box.height]; }
function dotAt(u, v, reach = 11) {
  let best = [reach, null];
  frames.names.forEach((_, number) => {
    const [x, y] = scale.to(scale.all[2*number], scale.all[2*number + 1]), far = Math.hypot(x - u, y - v);
    if (far < best[0]) best = [far, number];
  });
  return best[1];
}
function showHover(event, dot) {
  const hover = $('hover');
  hover.hidden = dot === null;
  if (dot === null) return;
  hover.querySelector('img').src = frames.images[dot];
  hover.querySelector('span').textContent = inWords(dot);
  hover.style.left = `${Math.min(event.clientX + 14, innerWidth - 130)}px`;
  hover.style.top = `${Math.max(event.clientY - 140, 4)}px`;
}
function watchMap() {
  let held = null;  // the map's box while it is dragged on: to ask for it in each frame costs a layout
  const map = $('map'), walk = place => setCode(fromMap(...place), {text: 'a place on the map', place});
  map.onpointerdown = event => {
    stop();
    held = map.getBoundingClientRect(); map.setPointerCapture(event.pointerId);
    const [u, v] = placeOf(event, held), dot = dotAt(u, v);
    if (dot !== null) choose(dot); else walk(scale.from(u, v));
    $('hover').hidden = true;
  };
  map.onpointermove = event => {
    const [u, v] = placeOf(event, held ?? undefined);
    if (held) walk(scale.from(u, v)); else showHover(event, dotAt(u, v));
  };
  map.onpointerup = map.onpointercancel = () => held = null;
  map.onpointerleave = () => $('hover').hidden = true;
  map.onkeydown = event => {
    const way = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (!way) return;
    event.preventDefault();
    const at = number => scale.to(scale.all[2*number], scale.all[2*number + 1]), [u, v] = at(chosen);
    const ahead = frames.names.map((_, number) => {
      const [x, y] = at(number), along = (x - u)*way[0] + (y - v)*way[1], aside = Math.abs((x - u)*way[1]) + Math.abs((y - v)*way[0]);
      return [along > 1 ? along + 2*aside : Infinity, number];
    }).sort((a, b) => a[0] - b[0]);
    if (ahead[0][0] < Infinity) choose(ahead[0][1]);
  };
}

// ---- sliders, play
function makeAxes() {
  for (let axis = 0; axis < frames.spreads.length; axis++) {
    const label = document.createElement('label'), slider = document.createElement('input');
    Object.assign(slider, {type: 'range', min: -3, max: 3, step: .05, value: 0, ariaLabel: `direction ${axis + 1}`});
    label.append(`${axis + 1} (${(100*frames.shares[axis]).toFixed(0)} %)`, slider);
    slider.oninput = () => {
      stop();
      const moved = slider.value*frames.spreads[axis] - project(code, axis);
      setCode(code.map((value, i) => value + moved*frames.axes[axis*size() + i]), {text: `along direction ${axis + 1}`});
    };
    $('axes').append(label);
  }
}
const setAxes = () => document.querySelectorAll('#axes input').forEach((slider, axis) => { 
  const value = `${Math.round(20*project(code, axis)/frames.spreads[axis])/20}`;  // in its own steps: most frames change none
  if (slider.value !== value && (slider !== document.activeElement || about.text !== `along direction ${axis + 1}`)) slider.value = value;
});
function setEnd(end, frame) { ends[end] = frame; $(['from', 'to'][end]).querySelector('img').src = frames.images[frame]; markMap(); }
function stop() { cancelAnimationFrame(timer); timer = null; $('play').innerHTML = '&#9654;'; }
function play() {
  if (timer !== null) return stop();
  $('play').innerHTML = '&#10073;&#10073;';
  const begin = performance.now() - 20*$('share').value;
  const tick = () => {
    const place = (performance.now() - begin)/2000 % 2;
    $('share').value = 100*(place < 1 ? place : 2 - place);
    walkTo($('share').value/100);
    timer = requestAnimationFrame(tick);
  };
  timer = requestAnimationFrame(tick);
}

// ---- the scenes turn and zoom together
function turnBy(right, down, zoom = 1) {
  view.yaw -= right;
  view.pitch = Math.min(Math.max(view.pitch + down, -1.5), 1.5);
  view.zoom = Math.min(Math.max(view.zoom*zoom, .4), 5);
  draw();
}
function watchScene(canvas) {
  const held = new Map(), apart = () => { const [a, b] = [...held.values()]; return Math.hypot(a[0] - b[0], a[1] - b[1]); };
  canvas.onpointerdown = event => { held.set(event.pointerId, [event.clientX, event.clientY]); canvas.setPointerCapture(event.pointerId); };
  canvas.onpointermove = event => {
    const from = held.get(event.pointerId), before = held.size === 2 ? apart() : 0;
    if (!from) return;
    held.set(event.pointerId, [event.clientX, event.clientY]);
    if (before) turnBy(0, 0, apart()/before);
    else turnBy((event.clientX - from[0])/120, (event.clientY - from[1])/120);
  };
  canvas.onpointerup = canvas.onpointercancel = event => held.delete(event.pointerId);
  canvas.addEventListener('wheel', event => { event.preventDefault(); turnBy(0, 0, Math.exp(-event.deltaY/600)); }, {passive: false});
  canvas.ondblclick = () => { Object.assign(view, START); draw(); };
  canvas.onkeydown = event => {
    const turn = {ArrowLeft: [-.15, 0], ArrowRight: [.15, 0], ArrowUp: [0, -.15], ArrowDown: [0, .15], '+': [0, 0, 1.15], '=': [0, 0, 1.15], '-': [0, 0, 1/1.15]}[event.key];
    if (turn) { event.preventDefault(); turnBy(...turn); }
  };
}

// ---- start
function readNumbers() {
  const layers = [model.pose, model.cloud || [], model.bones?.offsets || [], ...(model.folds || []), model.heat ? [model.heat.start, ...model.heat.grow] : []].flat();
  layers.forEach(layer => {
    layer.weight = numbers(layer.weight);
    layer.bias = numbers(layer.bias);
    layer.width = layer.weight.length/layer.bias.length;
    layer.output = new Float32Array(layer.bias.length);
  });
  if (model.grid) model.grid = numbers(model.grid);
  if (model.bones) ['shares', 'reach'].forEach(name => model.bones[name] = numbers(model.bones[name]));
  if (model.heat) makePlanes();
  ['poses', 'clouds', 'uv', 'middle', 'axes', 'spreads', 'shares', 'scales'].forEach(name => { if (frames[name]) frames[name] = numbers(frames[name]); });
  Object.values(frames.codes).forEach(each => { each.mean = numbers(each.mean); each.logVariance = numbers(each.logVariance); });
  Object.keys(frames.maps).forEach(name => frames.maps[name] = numbers(frames.maps[name]));
}
function makeFaces() {  // four corners between two rings of a capsule; the palm's triangles
  const {corners, rings, bones, palm} = solid, ofBone = bone => bone % 4 ? solid.fingers[bone >> 2] : solid.skin;
  const shades = colour => Array.from({length: LEVELS + 1}, (_, level) => rgb(colour, .62 + .42*level/LEVELS));
  const ofPalm = shades(solid.skin);
  solid.faces = solid.palmFaces.map(face => ({corners: face, shades: ofPalm, twoSided: true}));
  bones.forEach((_, bone) => {
    const own = shades(ofBone(bone));
    for (let ring = 0; ring < rings - 1; ring++)
      for (let corner = 0; corner < corners; corner++) {
        const first = (bone*rings + ring)*corners, next = (corner + 1) % corners, around = [first + corner, first + next, first + corners + next, first + corners + corner];
        solid.faces.push({corners: ring ? around : around.slice(1).concat(around[0]), shades: own});  // the first ring is one point
      }
  });
  const circle = (angle, far) => [far, Math.sin(angle*Math.PI/180), Math.cos(angle*Math.PI/180)];
  solid.circles = [[-90, 0], [-45, 0], [0, 0], [0, 1], [45, 1], [90, 1]].map(each => circle(...each));  // three at each end of a bone
  solid.turns = Array.from({length: corners}, (_, corner) => [Math.cos(2*Math.PI*corner/corners), Math.sin(2*Math.PI*corner/corners)]);
  solid.vertices = new Float32Array(3*(bones.length*rings*corners + 2*palm.length));
  Object.assign(solid, {facing: new Uint16Array(solid.faces.length), levels: new Uint8Array(solid.faces.length), depths: new Float32Array(solid.faces.length)});
  content.shades = Array.from({length: SHADES + 1}, (_, level) => palette(.88*level/SHADES));
}
function makeControls() {
  const options = (id, names) => $(id).replaceChildren(...names.map(([value, text]) => new Option(text, value)));
  options('places', [['PCA', 'PCA'], ...Object.keys(frames.maps).map(name => [name, name])]);
  options('colours', Object.keys(content.colours).map(name => [name, name]));
  options('joint', [['all', 'all joints'], ['off', 'none'], ...content.joints.map((name, number) => [number, name])]);
  $('experts').hidden = Object.keys(frames.codes).length < 2;
  const has = {maps: model.heat, hand: true, cloud: hasCloud()};
  document.querySelectorAll('#panels figure').forEach(figure => {
    if (figure.classList.contains('truth')) figure.dataset.true = 'yes';
    figure.hidden = !has[figure.dataset.part] && !(figure.dataset.part === 'maps' && figure.dataset.true);
    if (!model.heat && figure.dataset.part === 'maps') figure.classList.remove('truth');  // the image always has its place
    if (figure.dataset.part !== 'maps') watchScene(figure.querySelector('canvas'));
  });
  $('heat').hidden = !model.heat;
  const named = (name, colour) => `<span><i style="background:${rgb(colour, 1)}"></i>${name}</span>`;
  const fingers = ['thumb', 'index', 'middle', 'ring', 'little'].map((name, number) => named(name, solid.fingers[number]));
  $('key').innerHTML = fingers.join('') + (has.maps ? named("wrist's heat map", solid.wrist) : '') + (has.cloud ? `<span>cloud: near<i class="scale" style="background:${gradient(.88)}"></i>far</span>` : '') + '<span>drag to turn, wheel or two fingers to zoom, double click to reset</span>';
}
async function start() {
  content = JSON.parse(await unpack('content'));
  ({model, solid, frames} = content);
  readNumbers();
  makeFaces();
  letter = Object.keys(frames.codes)[0];
  code = Float32Array.from(codeOf(0));
  makeControls(); makeAxes(); drawMap(); watchMap();
  $('places').onchange = $('colours').onchange = drawMap;
  $('random').onclick = () => { stop(); fromPrior(); };
  $('share').oninput = () => { stop(); walkTo($('share').value/100); };
  $('play').onclick = play;
  $('look').onchange = $('joint').onchange = () => draw();
  $('truth').onchange = () => { $('panels').dataset.truth = $('truth').value; draw(); };
  ['from', 'to'].forEach((id, end) => $(id).onclick = () => { stop(); setEnd(end, chosen); });
  new ResizeObserver(draw).observe($('panels'));
  content.ends.forEach((frame, end) => setEnd(end, frame));
  const opened = new URLSearchParams(location.hash.slice(1));  // '#frame=3' or '#share=50' opens there
  const [frame, share] = ['frame', 'share'].map(name => +(opened.get(name) ?? -1));
  choose(frames.names[frame] === undefined ? content.ends[0] : frame);
  if (share >= 0 && share <= 100) { $('share').value = share; walkTo(share/100); }
  render();
  document.body.dataset.ready = 'yes';
}

// ---- within a notebook: the code goes to it, and a code can come from it
let follower = null, reported;
function report() {
  if (!follower || reported === code) return;
  reported = code;
  follower.postMessage({code: [...code], image: about.frame ?? null}, '*');
}
function watchNotebook(started) {
  const reportHeight = () => follower?.postMessage({height: document.documentElement.getBoundingClientRect().height}, '*');
  new ResizeObserver(reportHeight).observe(document.body);
  addEventListener('message', async ({data, source}) => {
    if (source !== parent) return;
    await started;
    if (data.follow) {
      follower = source;
      document.documentElement.style.overflow = 'hidden';  // a bar would make the page narrower and so less high, and then stay
      reportHeight(); report();
    }
    if (data.code) { stop(); setCode(data.code, {text: 'set in Python'}); }
  });
}
const started = start();
if (parent !== window) watchNotebook(started);
started.catch(error => $('told').textContent = `This page needs a browser not older than 2023: ${error}`);
