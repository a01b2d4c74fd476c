// Runs before gradio's own scripts. Gradio counts the seconds of its first "Loading..." at every frame, and goes on for as long as the page
// stays: a page that nobody touches kept a processor at 60 frames a second. Nothing here shows those seconds, so they are counted once a second.
(() => {
  const next = window.requestAnimationFrame.bind(window);
  const counts = /performance\.now\(\) *- *[^,]+\/ *1e3/; // how gradio's status counts its seconds
  window.requestAnimationFrame = (draw) => (counts.test(draw) ? setTimeout(draw, 1000) : next(draw));
})();
