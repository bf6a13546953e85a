// Widgets typeset their labels through MathJax 2's queue; give them one that passes the element to MathJax 3.
addEventListener('DOMContentLoaded', () => {
  const mathjax = window.MathJax;
  if (!mathjax?.startup || mathjax.Hub) return;
  const typeset = (element) => mathjax.startup.promise.then(() => mathjax.typesetPromise([element]));
  mathjax.Hub = {Queue: ([, , element]) => typeset(element)};
});
