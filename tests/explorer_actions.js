// What a test adds to the explorer's page: it uses every control and notes what changed.
const wait = async test => { while (!test()) await new Promise(done => setTimeout(done, 20)); };
const still = async () => { await wait(() => !drawing && !wanted); return [...code]; };
const seen = () => [...plot.data[plot.data.length - 2].x];
const answer = arguments[arguments.length - 1];  // as selenium hands it over
(async () => {
  await wait(() => document.body.dataset.ready === 'yes');
  const result = {codes: [], poses: [], clouds: [], steps: {}};
  for (let frame = 0; frame < 3; frame++) {
    await choose(frame);
    await still();
    result.codes.push([...code]);
    result.poses.push([...decodePose(code)]);
    result.clouds.push([...decodeCloud(code)]);
  }
  result.vertices = [...handVertices(decodePose(code))];
  const step = async (name, act) => { const before = seen(), from = [...code]; await act(); await still(); result.steps[name] = {drawn: before.join() !== seen().join(), moved: from.join() !== code.join(), told: $('told').textContent}; };
  const box = $('map').getBoundingClientRect(), dot = document.querySelectorAll('#map circle')[7].getBoundingClientRect();
  const point = (kind, x, y) => $('map').dispatchEvent(new PointerEvent(kind, {clientX: x, clientY: y, pointerId: 1, bubbles: true}));
  $('map').setPointerCapture = () => {};
  await step('click', async () => { point('pointerdown', dot.x + dot.width/2, dot.y + dot.height/2); point('pointerup', 0, 0); });
  await step('drag', async () => { point('pointerdown', box.x + 5, box.y + 5); point('pointermove', box.x + box.width/2, box.y + box.height/2); point('pointerup', 0, 0); });
  await step('slider', async () => { $('share').value = 60; $('share').dispatchEvent(new Event('input')); });
  await step('direction', async () => { const slider = document.querySelector('#axes input'); slider.value = 2; slider.dispatchEvent(new Event('input')); });
  await step('random', async () => $('random').click());
  await step('expert', async () => { $('expert').value = 'C'; $('expert').dispatchEvent(new Event('change')); });
  await step('key', async () => { const start = chosen; for (const key of ['ArrowRight', 'ArrowLeft', 'ArrowUp']) if (chosen === start) $('map').dispatchEvent(new KeyboardEvent('keydown', {key})); });
  await Plotly.relayout(plot, {'scene.camera.eye': {x: .1, y: -2, z: .1}});
  await step('play', async () => { $('play').click(); await wait(() => +$('share').value > 65); $('play').click(); });
  result.eye = plot._fullLayout.scene.camera.eye;
  result.wide = document.documentElement.scrollWidth <= innerWidth;
  answer(result);
})().catch(error => answer({error: `${error}`}));
