const $ = id => document.getElementById(id);
const bytesOf = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
const unpack = async id => new Response(new Blob([bytesOf($(id).textContent)]).stream().pipeThrough(new DecompressionStream('gzip'))).text();
const numbers = text => new Float32Array(bytesOf(text).buffer);

// ---- the decoders: linear layers, each followed by ReLU but for the last; batch norms are part of the weights
function linear(layer, input, offset = 0, columns = input.length, output = Float32Array.from(layer.bias)) {
  const {weight, width} = layer;
  for (let row = 0; row < output.length; row++) {
    let sum = 0;
    for (let column = 0, place = row*width + offset; column < columns; column++) sum += weight[place + column]*input[column];
    output[row] += sum;
  }
  return output;
}
const relu = values => { for (let i = 0; i < values.length; i++) if (values[i] < 0) values[i] = 0; return values; };
const through = (layers, values) => layers.reduce((input, layer, number) => { const output = linear(layer, input); return number < layers.length - 1 ? relu(output) : output; }, values);
const decodePose = code => through(model.pose, code);
function fold(layers, code, places, size) {  // the first layer sees the code and the point's place
  const [first, ...rest] = layers, count = places.length/size, points = new Float32Array(3*count);
  const fromCode = linear(first, code, 0, code.length);
  for (let point = 0; point < count; point++) {
    const seen = relu(linear(first, places.subarray(point*size, (point + 1)*size), code.length, size, Float32Array.from(fromCode)));
    points.set(through(rest, seen).map(Math.tanh), 3*point);
  }
  return points;
}
const decodeCloud = code => model.cloud ? through(model.cloud, code) : fold(model.folds[1], code, fold(model.folds[0], code, model.grid, model.gridSize), 3).map(value => model.reach*value);

// ---- a solid hand: twenty capsules and the palm, as handlab.hand.solid makes them
function capsule(start, end, radii, out) {
  const along = end.map((value, axis) => value - start[axis]), length = Math.max(Math.hypot(...along), 1e-6);
  along.forEach((value, axis) => along[axis] = value/length);
  const helper = [0, 0, 0];
  helper[along.reduce((best, value, axis) => Math.abs(value) < Math.abs(along[best]) ? axis : best, 0)] = 1;
  const cross = (a, b) => [a[1]*b[2] - a[2]*b[1], a[2]*b[0] - a[0]*b[2], a[0]*b[1] - a[1]*b[0]];
  let first = cross(along, helper);
  const size = Math.max(Math.hypot(...first), 1e-6);
  first = first.map(value => value/size);
  const second = cross(along, first);
  [[start, radii[0], [-90, -45, 0]], [end, radii[1], [0, 45, 90]]].forEach(([centre, radius, angles]) => angles.forEach(angle => {
    const sine = Math.sin(angle*Math.PI/180)*radius, cosine = Math.cos(angle*Math.PI/180)*radius;
    for (let corner = 0; corner < solid.corners; corner++) {
      const turn = 2*Math.PI*corner/solid.corners, c = Math.cos(turn)*cosine, s = Math.sin(turn)*cosine;
      for (let axis = 0; axis < 3; axis++) out.push(centre[axis] + along[axis]*sine + c*first[axis] + s*second[axis]);
    }
  }));
}
function handVertices(pose) {
  const joint = number => Array.from(pose.subarray(3*number, 3*number + 3)), out = [];
  solid.bones.forEach(([parent, child], bone) => capsule(joint(parent), joint(child), solid.radii[bone], out));
  const a = joint(5).map((value, axis) => value - pose[axis]), b = joint(17).map((value, axis) => value - pose[axis]);
  const normal = [a[1]*b[2] - a[2]*b[1], a[2]*b[0] - a[0]*b[2], a[0]*b[1] - a[1]*b[0]], size = Math.max(Math.hypot(...normal), 1e-6);
  [1, -1].forEach(side => solid.palm.forEach(number => joint(number).forEach((value, axis) => out.push(value + side*solid.sheet*normal[axis]/size))));
  return out;
}

// ---- drawing: the newest wish only, so that a slow machine skips steps and never falls behind
let content, model, solid, frames, plot, code, about = {}, chosen = 0, letter, ends = [0, 1], timer = null, drawing = false, wanted = false;
const places = points => { const x = [], y = [], z = []; for (let i = 0; i < points.length; i += 3) { x.push(points[i]); y.push(points[i + 2]); z.push(-points[i + 1]); } return {x, y, z}; };
const bones = pose => { const line = {x: [], y: [], z: []}, all = places(pose); solid.bones.forEach(([a, b]) => ['x', 'y', 'z'].forEach(axis => line[axis].push(all[axis][a], all[axis][b], null))); return line; };
const row = (array, number, size) => array.subarray(number*size, (number + 1)*size);
const distances = (a, b) => { const found = []; for (let i = 0; i < a.length; i += 3) found.push(Math.hypot(a[i] - b[i], a[i + 1] - b[i + 1], a[i + 2] - b[i + 2])); return found; };
const mean = values => values.reduce((sum, value) => sum + value, 0)/values.length;
function nearest(from, to) { let sum = 0; for (let i = 0; i < from.length; i += 3) { let best = Infinity; for (let j = 0; j < to.length; j += 3) { const d = (from[i] - to[j])**2 + (from[i + 1] - to[j + 1])**2 + (from[i + 2] - to[j + 2])**2; if (d < best) best = d; } sum += Math.sqrt(best); } return 3*sum/from.length; }
async function draw() {
  wanted = true;
  if (drawing) return;
  drawing = true;
  while (wanted) {
    wanted = false;
    const pose = decodePose(code), cloud = (model.cloud || model.folds) && decodeCloud(code), frame = about.frame, truth = frame !== undefined && $('truth').checked;
    const none = {x: [], y: [], z: []}, isSolid = $('solid').checked;
    const parts = [isSolid ? places(handVertices(pose)) : none, isSolid ? none : bones(pose), truth ? bones(row(frames.poses, frame, 63)) : none];
    if (cloud) parts.push(places(cloud), truth && frames.clouds ? places(row(frames.clouds, frame, cloud.length)) : none);
    const update = {x: parts.map(part => part.x), y: parts.map(part => part.y), z: parts.map(part => part.z)};
    if (cloud) update['marker.color'] = [...parts.slice(0, 3).map(() => undefined), parts[3].y, '#9aa3b2'];
    const first = isSolid ? 0 : 1;  // a mesh without vertices is an error, so it is hidden instead
    for (const name in update) update[name] = update[name].slice(first);
    await Plotly.restyle(plot, update, parts.map((_, number) => number).slice(first));
    tell(pose, cloud);
    document.body.dataset.drawn = +(document.body.dataset.drawn || 0) + 1;
    await new Promise(requestAnimationFrame);
  }
  drawing = false;
}
function tell(pose, cloud) {
  let text = about.text;
  if (about.frame !== undefined) {
    const scale = frames.scales[about.frame];
    text += `: joints ${(mean(distances(pose, row(frames.poses, about.frame, 63)))*scale).toFixed(1)} mm off`;
    if (cloud && frames.clouds) { const true_cloud = row(frames.clouds, about.frame, cloud.length); text += `, cloud ${((nearest(cloud, true_cloud) + nearest(true_cloud, cloud))/2*scale).toFixed(1)} mm`; }
  }
  $('told').textContent = text;
  $('seen').hidden = about.frame === undefined;
  if (about.frame !== undefined) $('seen').src = frames.images[about.frame];
}

// ---- where the code comes from
const size = () => model.latent;
const codeOf = (frame, from = letter) => row(frames.codes[from].mean, frame, size());
function setCode(values, what) { code = Float32Array.from(values); about = what; markMap(); setAxes(); return draw(); }
function choose(frame) {
  chosen = frame;
  document.querySelectorAll('#map circle').forEach((dot, number) => dot.classList.toggle('chosen', number === frame));
  showShares();
  return setCode(codeOf(frame), {frame, text: frames.names[frame]});
}
const mix = (a, b, share) => a.map((value, axis) => (1 - share)*value + share*b[axis]);
const walkTo = share => setCode(mix(codeOf(ends[0]), codeOf(ends[1]), share), {text: `${Math.round(100*share)} % of the way`, ...(share === 0 ? {frame: ends[0]} : share === 1 ? {frame: ends[1]} : {})});
function fromPrior() {
  const normal = () => Math.sqrt(-2*Math.log(1 - Math.random()))*Math.cos(2*Math.PI*Math.random());
  return setCode(Float32Array.from({length: size()}, normal), {text: 'drawn from the prior'});
}
function project(values, axis) { let sum = 0; for (let i = 0; i < size(); i++) sum += (values[i] - frames.middle[i])*frames.axes[axis*size() + i]; return sum; }
function fromMap(x, y) {  // a free place: on the principal plane through the chosen image, elsewhere between the nearest codes
  if ($('places').value === 'PCA') {
    const start = codeOf(chosen), moved = [x - project(start, 0), y - project(start, 1)];
    return start.map((value, i) => value + moved[0]*frames.axes[i] + moved[1]*frames.axes[size() + i]);
  }
  const spots = frames.maps[$('places').value], near = frames.names.map((_, number) => [Math.hypot(spots[2*number] - x, spots[2*number + 1] - y) + 1e-6, number]).sort((a, b) => a[0] - b[0]).slice(0, 4);
  const total = near.reduce((sum, [far]) => sum + 1/far, 0), found = new Float32Array(size());
  near.forEach(([far, number]) => codeOf(number).forEach((value, i) => found[i] += value/far/total));
  return found;
}
function showShares() {
  const experts = Object.keys(frames.codes).filter(name => name !== 'joint');
  if (experts.length < 2) return;
  const weights = experts.map(name => row(frames.codes[name].logVariance, chosen, size()).map(value => Math.exp(-value)));
  const total = weights[0].map((_, i) => model.priorExpert + weights.reduce((sum, weight) => sum + weight[i], 0));
  const shares = weights.map(weight => mean(Array.from(weight, (value, i) => value/total[i])));
  $('shares').textContent = 'weight in the product: ' + experts.map((name, number) => `${content.letters[name]} ${Math.round(100*shares[number])} %`).join(', ') + (model.priorExpert ? `, prior ${Math.round(100*(1 - shares.reduce((a, b) => a + b)))} %` : '');
}

// ---- the map
const NS = 'http://www.w3.org/2000/svg', WIDE = 600, HIGH = 440, EDGE = 24;
let scale;
const palette = share => { const stops = content.palette, place = Math.min(Math.max(share, 0), 1)*(stops.length - 1), low = Math.min(Math.floor(place), stops.length - 2); return `rgb(${stops[low].map((value, i) => Math.round(value + (place - low)*(stops[low + 1][i] - value)))})`; };
function spots() {
  const here = $('places').value;
  if (here !== 'PCA') return frames.maps[here];
  return Float32Array.from(frames.names.flatMap((_, number) => [project(codeOf(number), 0), project(codeOf(number), 1)]));
}
function drawMap() {
  const all = spots(), colour = content.colours[$('colours').value], xs = all.filter((_, i) => i % 2 === 0), ys = all.filter((_, i) => i % 2);
  const low = [Math.min(...xs), Math.min(...ys)], high = [Math.max(...xs), Math.max(...ys)];
  const zoom = Math.min((WIDE - 2*EDGE)/(high[0] - low[0] || 1), (HIGH - 2*EDGE)/(high[1] - low[1] || 1));
  scale = {to: (x, y) => [WIDE/2 + (x - (low[0] + high[0])/2)*zoom, HIGH/2 + (y - (low[1] + high[1])/2)*zoom], from: (u, v) => [(u - WIDE/2)/zoom + (low[0] + high[0])/2, (v - HIGH/2)/zoom + (low[1] + high[1])/2], all};
  const values = colour.values, least = Math.min(...values), most = Math.max(...values);
  $('map').replaceChildren(...frames.names.map((_, number) => {
    const dot = document.createElementNS(NS, 'circle'), [u, v] = scale.to(all[2*number], all[2*number + 1]);
    Object.entries({cx: u, cy: v, r: 7, fill: palette((values[number] - least)/(most - least || 1))}).forEach(each => dot.setAttribute(...each));
    dot.classList.toggle('chosen', number === chosen);
    return dot;
  }), document.createElementNS(NS, 'line'), document.createElementNS(NS, 'path'));
  $('legend').innerHTML = `${least.toFixed(0)} ${colour.unit}<i style="background:linear-gradient(90deg,${[0, .25, .5, .75, 1].map(palette)})"></i>${most.toFixed(0)} ${colour.unit}`;
  markMap();
}
function markMap() {  // a cross where the present code lies, and the walk as a line
  if (!scale || $('places').value !== 'PCA') { $('map').querySelector('path')?.setAttribute('d', ''); return; }
  const [u, v] = scale.to(project(code, 0), project(code, 1)), line = $('map').querySelector('line');
  $('map').querySelector('path').setAttribute('d', `M${u - 9} ${v}H${u + 9}M${u} ${v - 9}V${v + 9}`);
  const two = ends.map(frame => scale.to(project(codeOf(frame), 0), project(codeOf(frame), 1)));
  ['x1', 'y1', 'x2', 'y2'].forEach((name, i) => line.setAttribute(name, two[i >> 1][i % 2]));
}
function placeOf(event) { const box = $('map').getBoundingClientRect(); return [(event.clientX - box.left)*WIDE/box.width, (event.clientY - box.top)*HIGH/box.height]; }
function dotAt(u, v, reach = 11) {
  let best = [reach, null];
  frames.names.forEach((_, number) => { const [x, y] = scale.to(scale.all[2*number], scale.all[2*number + 1]), far = Math.hypot(x - u, y - v); if (far < best[0]) best = [far, number]; });
  return best[1];
}
function watchMap() {
  let held = false;
  const map = $('map'), hover = $('hover');
  map.onpointerdown = event => {
    stop();
    held = true; map.setPointerCapture(event.pointerId);
    const [u, v] = placeOf(event), dot = dotAt(u, v);
    if (dot !== null) choose(dot); else setCode(fromMap(...scale.from(u, v)), {text: 'a place on the map'});
  };
  map.onpointermove = event => {
    const [u, v] = placeOf(event), dot = held ? null : dotAt(u, v);
    hover.hidden = dot === null;
    if (dot !== null) { hover.querySelector('img').src = frames.images[dot]; hover.querySelector('span').textContent = `${content.colours[$('colours').value].values[dot].toFixed(1)} ${content.colours[$('colours').value].unit}`; hover.style.left = `${Math.min(event.clientX + 14, innerWidth - 130)}px`; hover.style.top = `${Math.max(event.clientY - 140, 4)}px`; }
    if (held) setCode(fromMap(...scale.from(u, v)), {text: 'a place on the map'});
  };
  map.onpointerup = map.onpointercancel = () => held = false;
  map.onpointerleave = () => hover.hidden = true;
  map.onkeydown = event => {
    const way = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (!way) return;
    event.preventDefault();
    const at = number => scale.to(scale.all[2*number], scale.all[2*number + 1]), [u, v] = at(chosen);
    const ahead = frames.names.map((_, number) => { const [x, y] = at(number), along = (x - u)*way[0] + (y - v)*way[1], aside = Math.abs((x - u)*way[1]) + Math.abs((y - v)*way[0]); return [along > 1 ? along + 2*aside : Infinity, number]; }).sort((a, b) => a[0] - b[0]);
    if (ahead[0][0] < Infinity) choose(ahead[0][1]);
  };
}

// ---- sliders, play
function makeAxes() {
  for (let axis = 0; axis < frames.spreads.length; axis++) {
    const label = document.createElement('label'), slider = document.createElement('input');
    Object.assign(slider, {type: 'range', min: -3, max: 3, step: .05, value: 0, ariaLabel: `direction ${axis + 1}`});
    label.append(`${axis + 1} (${(100*frames.shares[axis]).toFixed(0)} %)`, slider);
    slider.oninput = () => { stop(); const moved = slider.value*frames.spreads[axis] - project(code, axis); setCode(code.map((value, i) => value + moved*frames.axes[axis*size() + i]), {text: `along direction ${axis + 1}`}); };
    $('axes').append(label);
  }
}
const setAxes = () => document.querySelectorAll('#axes input').forEach((slider, axis) => { if (slider !== document.activeElement || about.text !== `along direction ${axis + 1}`) slider.value = project(code, axis)/frames.spreads[axis]; });
function setEnd(end, frame) { ends[end] = frame; $(['from', 'to'][end]).querySelector('img').src = frames.images[frame]; markMap(); }
function stop() { clearTimeout(timer); timer = null; $('play').innerHTML = '&#9654;'; }
function play() {
  if (timer) return stop();
  $('play').innerHTML = '&#10073;&#10073;';
  const begin = performance.now() - 20*$('share').value;
  const tick = () => { const place = (performance.now() - begin)/2000 % 2; $('share').value = 100*(place < 1 ? place : 2 - place); walkTo($('share').value/100); timer = setTimeout(tick, 16); };
  timer = setTimeout(tick, 16);
}

// ---- the two scenes turn and zoom together, and keep their view
function link(names) {
  let busy = false;
  plot.on('plotly_relayouting', turned => {
    const from = names.find(name => turned[name + '.camera']);
    if (busy || !from) return;
    busy = true;
    Plotly.relayout(plot, Object.fromEntries(names.filter(name => name !== from).map(name => [name + '.camera', turned[from + '.camera']]))).then(() => busy = false);
  });
}
async function start() {
  const library = document.createElement('script');
  library.textContent = await unpack('library');
  document.head.append(library);
  content = JSON.parse(await unpack('content'));
  ({model, solid, frames} = content);
  [model.pose, model.cloud || [], ...(model.folds || [])].flat().forEach(layer => { layer.weight = numbers(layer.weight); layer.bias = numbers(layer.bias); layer.width = layer.weight.length/layer.bias.length; });
  if (model.grid) model.grid = numbers(model.grid);
  ['poses', 'clouds', 'middle', 'axes', 'spreads', 'shares', 'scales'].forEach(name => { if (frames[name]) frames[name] = numbers(frames[name]); });
  Object.values(frames.codes).forEach(each => { each.mean = numbers(each.mean); each.logVariance = numbers(each.logVariance); });
  Object.keys(frames.maps).forEach(name => frames.maps[name] = numbers(frames.maps[name]));
  letter = Object.keys(frames.codes)[0];
  code = Float32Array.from(codeOf(0));
  const options = (id, names) => $(id).replaceChildren(...names.map(([value, text]) => new Option(text, value)));
  options('places', [['PCA', 'PCA'], ...Object.keys(frames.maps).map(name => [name, name])]);
  options('colours', Object.keys(content.colours).map(name => [name, name]));
  options('expert', Object.keys(frames.codes).map(name => [name, content.letters[name]]));
  $('experts').hidden = Object.keys(frames.codes).length < 2;
  const scenes = Object.keys(content.figure.layout).filter(name => name.startsWith('scene'));
  plot = await Plotly.newPlot('plot', content.figure.data, {...content.figure.layout, height: undefined, autosize: true, uirevision: 'kept'}, {displayModeBar: false, displaylogo: false, responsive: true, scrollZoom: true});
  makeAxes(); drawMap(); watchMap(); link(scenes);
  $('places').onchange = $('colours').onchange = drawMap;
  $('expert').onchange = () => { letter = $('expert').value; drawMap(); choose(chosen); };
  $('random').onclick = () => { stop(); fromPrior(); };
  $('share').oninput = () => { stop(); walkTo($('share').value/100); };
  $('play').onclick = play;
  $('solid').onchange = () => Plotly.restyle(plot, {visible: $('solid').checked}, [0]).then(draw);
  $('truth').onchange = draw;
  ['from', 'to'].forEach((id, end) => $(id).onclick = () => { stop(); setEnd(end, chosen); });
  content.ends.forEach((frame, end) => setEnd(end, frame));
  const opened = new URLSearchParams(location.hash.slice(1));  // '#frame=3' or '#share=50' opens there
  if (opened.has('share')) { $('share').value = +opened.get('share'); await walkTo($('share').value/100); }
  else await choose(+(opened.get('frame') ?? content.ends[0]));
  document.body.dataset.ready = 'yes';
}
start().catch(error => $('plot').textContent = `This page needs WebGL and a browser not older than 2023: ${error}`);
