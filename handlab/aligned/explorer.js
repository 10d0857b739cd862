const $ = id => document.getElementById(id);
const unpack = async id => {
  const bytes = Uint8Array.from(atob($(id).textContent), letter => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'))).text();
};
let figure, walks, current = 0, timer = null, ahead = 1, drawing = false, wanted = null;
const steps = () => walks[current].steps - 1;
async function draw(name) {  // the newest wish only: a slow machine skips steps and never falls behind
  wanted = name;
  if (drawing) return;
  drawing = true;
  while (wanted !== null) { const now = wanted; wanted = null; await Plotly.animate('plot', [now], {mode: 'immediate', frame: {duration: 0, redraw: true}, transition: {duration: 0}}); }
  drawing = false;
}
function show(step) {
  $('share').value = step;
  const part = step/steps();
  $('told').textContent = `${Math.round(100*part)} % of the way`;
  $('first').style.opacity = 1 - .65*part; $('second').style.opacity = .35 + .65*part;
  return draw(`${current}:${step}`);
}
function choose(number) {
  current = number;
  ['first', 'second'].forEach((id, end) => { $(id).src = walks[number].images[end]; $(id + '_name').textContent = walks[number].names[end]; });
  document.querySelectorAll('#pairs button').forEach((button, place) => button.setAttribute('aria-pressed', place === number));
  $('share').max = steps();
  return show(0);
}
function stop() { clearInterval(timer); timer = null; $('play').innerHTML = '&#9654;'; }
function play() {
  if (timer) return stop();
  $('play').innerHTML = '&#10073;&#10073;';
  timer = setInterval(() => {
    const step = +$('share').value + ahead;
    if (step < 0 || step > steps()) ahead = -ahead; else show(step);
  }, 60);
}

function link(plot) {  // turning one scene turns the other
  const scenes = Object.keys(figure.layout).filter(name => name.startsWith('scene'));
  let busy = false;
  plot.on('plotly_relayouting', turned => {
    const from = scenes.find(name => turned[name + '.camera']);
    if (busy || !from) return;
    busy = true;
    const others = Object.fromEntries(scenes.filter(name => name !== from).map(name => [name + '.camera', turned[from + '.camera']]));
    Plotly.relayout(plot, others).then(() => busy = false);
  });
}
(async () => {
  try {
    const library = document.createElement('script');
    library.textContent = await unpack('library');
    document.head.append(library);
    figure = JSON.parse(await unpack('figure')); walks = figure.walks;
    const narrow = Math.max(1, 620/$('plot').clientWidth);  // step back where the scenes are high and narrow
    Object.keys(figure.layout).filter(name => name.startsWith('scene')).forEach(name => { const eye = figure.layout[name].camera.eye; for (const axis in eye) eye[axis] *= narrow; });
    const plot = await Plotly.newPlot('plot', figure.data, {...figure.layout, height: undefined, autosize: true}, {displayModeBar: false, displaylogo: false, responsive: true, scrollZoom: true});
    await Plotly.addFrames(plot, figure.frames);
    walks.forEach((walk, number) => {
      const button = document.createElement('button');
      button.innerHTML = walk.images.map(image => `<img src="${image}" alt="">`).join('');
      button.setAttribute('aria-label', `walk ${number + 1}`);
      button.onclick = () => { stop(); choose(number); };
      $('pairs').append(button);
    });
    $('share').oninput = () => { stop(); show(+$('share').value); };
    $('play').onclick = play;
    link(plot);
    await choose(0);
    const start = new URLSearchParams(location.hash.slice(1));  // '#walk=1&step=20' opens a certain step
    if (start.has('walk')) await choose(+start.get('walk'));
    if (start.has('step')) await show(+start.get('step'));
    document.body.dataset.ready = 'yes';
  } catch (error) { $('plot').textContent = `This page needs WebGL and a browser not older than 2023: ${error}`; }
})();
