// The explorer's page in a cell of a notebook: the page comes from Python, the code that it shows goes there.
function render({model, el}) {
  const frame = document.createElement('iframe');
  Object.assign(frame, {title: 'explorer of the latent space', sandbox: 'allow-scripts allow-popups'});
  frame.style.cssText = 'display: block; width: 100%; height: 900px; border: 0';
  const note = document.createElement('p');
  note.textContent = 'The explorer comes from the kernel: run this cell.';
  el.replaceChildren(note);
  const fromPython = ({page, code}) => {
    if (page && !frame.isConnected) {
      frame.srcdoc = page;
      el.replaceChildren(frame);
    }
    if (code) frame.contentWindow?.postMessage({code}, '*');
  };
  const fromPage = ({data, source}) => {
    if (source !== frame.contentWindow) return;
    if (data.height) frame.style.height = `${Math.ceil(data.height)}px`;
    if (data.code) {
      model.set(data);
      model.save_changes();
    }
  };
  frame.onload = () => frame.contentWindow.postMessage({follow: true}, '*');
  addEventListener('message', fromPage);
  model.on('msg:custom', fromPython);
  model.send({want: 'page'});
  return () => {
    removeEventListener('message', fromPage);
    model.off('msg:custom', fromPython);
  };
}
export default {render};
