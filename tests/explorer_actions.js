// What a test adds to the explorer's page: it uses every control and notes what changed.
const wait = async test => { while (!test()) await new Promise(done => setTimeout(done, 20)); };
const still = async () => { await wait(() => !asked); return [...code]; };
const canvas = part => document.querySelector(`#panels figure:not([data-true])[data-part=${part}] canvas`);
const seenIn = part => canvas(part).toDataURL();
const answer = arguments[arguments.length - 1];  // as selenium hands it over
const point = (target, kind, x, y, pointerId = 1) => target.dispatchEvent(new PointerEvent(kind, {clientX: x, clientY: y, pointerId, bubbles: true}));
const pick = (id, value) => { $(id).value = value; $(id).dispatchEvent(new Event('change')); };
async function fps(act, seconds = 2) {  // frames of the screen per second
  let count = 0, run = true;
  const next = () => { count++; if (run) requestAnimationFrame(next); };
  requestAnimationFrame(next);
  const begin = performance.now();
  for (let step = 0; performance.now() - begin < 1000*seconds; step++) { act(step); await new Promise(done => setTimeout(done, 8)); }
  run = false;
  return 1000*count/(performance.now() - begin);
}
const milliseconds = (act, times) => { const begin = performance.now(); for (let i = 0; i < times; i++) act(); return (performance.now() - begin)/times; };
(async () => {
  await wait(() => document.body.dataset.ready === 'yes');
  document.querySelectorAll('canvas, #map').forEach(each => each.setPointerCapture = () => {});  // events made here have no pointer
  const result = {codes: [], poses: [], clouds: [], maps: [], steps: {}};
  for (let frame = 0; frame < 3; frame++) {
    choose(frame);
    await still();
    result.codes.push([...code]);
    result.poses.push([...decodePose(code)]);
    result.clouds.push([...decodeCloud(code)]);
    result.maps.push([...decodeMaps(code)]);
  }
  result.vertices = [...handVertices(decodePose(code))];
  result.peaks = peakError(decoded.maps, row(frames.uv, 2, 42));
  const step = async (name, act, parts = ['hand', 'cloud', 'maps']) => {
    const before = parts.map(seenIn), from = [...code];
    await act();
    await still();
    result.steps[name] = {drawn: parts.every((part, number) => before[number] !== seenIn(part)), moved: from.join() !== code.join(), told: $('told').textContent, hand: canvas('hand').parentNode.textContent};
  };
  const box = $('map').getBoundingClientRect(), dot = document.querySelectorAll('#map circle')[7].getBoundingClientRect();
  point($('map'), 'pointermove', dot.x + dot.width/2, dot.y + dot.height/2);
  result.hover = !$('hover').hidden && $('hover').querySelector('img').src === frames.images[7];
  await step('click', async () => { point($('map'), 'pointerdown', dot.x + dot.width/2, dot.y + dot.height/2); point($('map'), 'pointerup', 0, 0); });
  await step('drag', async () => { point($('map'), 'pointerdown', box.x + 5, box.y + 5); point($('map'), 'pointermove', box.x + box.width/2, box.y + box.height/2); point($('map'), 'pointerup', 0, 0); });
  await step('slider', async () => { $('share').value = 60; $('share').dispatchEvent(new Event('input')); });
  await step('direction', async () => { const slider = document.querySelector('#axes input'); slider.value = 2; slider.dispatchEvent(new Event('input')); });
  await step('random', async () => $('random').click());
  await step('expert', async () => document.querySelector('#codes [data-letter=C]').click());
  // the switch to the map that was computed beforehand, and back
  const dots = () => [...document.querySelectorAll('#map circle')].map(each => [+each.getAttribute('cx'), +each.getAttribute('cy')]);
  const press = (u, v) => { const now = $('map').getBoundingClientRect(); point($('map'), 'pointerdown', now.x + u*now.width/WIDE, now.y + v*now.height/HIGH); point($('map'), 'pointerup', 0, 0); };
  result.places = {names: [...$('places').options].map(each => each.value), PCA: dots(), told: [$('placed').textContent]};
  pick('places', 'UMAP');
  result.places.UMAP = dots();
  result.places.told.push($('placed').textContent);
  await step('dot of UMAP', async () => press(...result.places.UMAP[4]));
  await step('place on UMAP', async () => press(30, 30));
  Object.assign(result.places, {place: scale.from(30, 30), code: [...code], cross: $('marks').querySelector('path').getAttribute('d'), line: $('marks').querySelector('line').getAttribute('display')});
  pick('places', 'PCA');
  result.places.again = dots();
  await step('key', async () => { const start = chosen; for (const key of ['ArrowRight', 'ArrowLeft', 'ArrowUp']) if (chosen === start) $('map').dispatchEvent(new KeyboardEvent('keydown', {key})); });
  // the look of the same code: both scenes turn and zoom together
  const scenes = ['hand', 'cloud'], scene = canvas('cloud');
  await step('turn', async () => { point(scene, 'pointerdown', 10, 10); point(scene, 'pointermove', 70, 40); point(scene, 'pointerup', 0, 0); }, scenes);
  await step('wheel', async () => scene.dispatchEvent(new WheelEvent('wheel', {deltaY: -200, cancelable: true})), scenes);
  await step('two fingers', async () => { point(scene, 'pointerdown', 10, 10, 1); point(scene, 'pointerdown', 50, 10, 2); point(scene, 'pointermove', 60, 10, 2); point(scene, 'pointerup', 0, 0, 1); point(scene, 'pointerup', 0, 0, 2); }, scenes);
  await step('keys', async () => { for (const key of ['ArrowLeft', 'ArrowDown', '-']) canvas('hand').dispatchEvent(new KeyboardEvent('keydown', {key})); }, scenes);
  result.view = {...view};
  await step('skeleton', async () => pick('look', 'skeleton'), ['hand']);
  await step('solid', async () => pick('look', 'solid'), ['hand']);
  await step('over', async () => pick('truth', 'over'));
  await step('beside', async () => pick('truth', 'beside'));
  await step('no maps', async () => pick('joint', 'off'), ['maps']);
  await step('one map', async () => pick('joint', '8'), ['maps']);
  pick('joint', 'all');
  for (const name of Object.keys(content.colours)) { pick('colours', name); result.coloured = (result.coloured || []).concat(new Set([...document.querySelectorAll('#map circle')].map(each => each.getAttribute('fill'))).size > 1); }
  await step('play', async () => { $('play').click(); await wait(() => +$('share').value > 65 || +$('share').value < 20); $('play').click(); });
  result.kept = JSON.stringify(view) === JSON.stringify(result.view);
  result.times = {pose: milliseconds(() => decodePose(code), 20), cloud: milliseconds(() => decodeCloud(code), 5), maps: milliseconds(() => decodeMaps(code), 5), drawing: milliseconds(render, 5), idle: await fps(() => {})};
  point($('map'), 'pointerdown', box.x + 5, box.y + 5);
  result.times.dragging = await fps(number => point($('map'), 'pointermove', box.x + 5 + number % 200, box.y + 5 + number % 150));
  point($('map'), 'pointerup', 0, 0);
  answer(result);
})().catch(error => answer({error: `${error} ${error.stack}`}));
