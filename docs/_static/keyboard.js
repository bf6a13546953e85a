// Who goes by the keyboard can scroll what is wider than its place; the two drawers have names.
const WIDE = 'article :is(pre, .table-wrapper, .picture, .cell_output, .math-wrapper)';
const focusable = () => document.querySelectorAll(WIDE).forEach((area) => {
  if (area.scrollWidth > area.clientWidth) area.tabIndex = 0;
  else area.removeAttribute('tabindex');
});
addEventListener('DOMContentLoaded', () => {
  document.querySelector('.sidebar-drawer')?.setAttribute('aria-label', 'Pages');
  document.querySelector('.toc-drawer')?.setAttribute('aria-label', 'On this page');
  focusable();
});
for (const event of ['load', 'resize']) addEventListener(event, focusable);
addEventListener('toggle', focusable, true);  // what was folded is open
