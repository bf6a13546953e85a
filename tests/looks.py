"""What a person needs of a page, measured in a browser: contrast, whole labels, and what axe-core
finds."""

from functools import cache

DULL = """(where) => {
  const ctx = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const known = {}, rgba = (c) => known[c] ??= (() => { ctx.clearRect(0, 0, 1, 1);
    ctx.fillStyle = c; ctx.fillRect(0, 0, 1, 1);
    const d = ctx.getImageData(0, 0, 1, 1).data; return [d[0], d[1], d[2], d[3]/255]; })();
  const over = (a, part, b) => [0, 1, 2].map((i) => a[i]*part + b[i]*(1 - part));
  const ups = (e) => e ? [...ups(e.parentElement), e] : [];
  const ground = (e) => ups(e).reduce((under, x) => {
    const c = rgba(getComputedStyle(x).backgroundColor); return over(c, c[3], under); },
    [255, 255, 255]);
  const seen = (e) => ups(e).reduce((o, x) => o*getComputedStyle(x).opacity, 1);
  const part = (x) => (x /= 255) <= .03928 ? x/12.92 : ((x + .055)/1.055) ** 2.4;
  const light = (c) => { const [r, g, b] = c.map(part); return .2126*r + .7152*g + .0722*b; };
  const what = '.widget-label, input, textarea, select, option:not(:checked), td, th, ' +
    'caption, h1, h2, h3, a, p, li, small, pre, summary, [role=status], [role=alert], ' +
    '[role=tab], button:enabled, dt, code';
  return [...document.querySelectorAll(`${where} :is(${what})`)]
    .filter((e) => e.offsetWidth).map((e) => {
    const under = ground(e), c = rgba(getComputedStyle(e).color);
    const a = light(over(c, c[3]*seen(e), under)), b = light(under);
    return [(Math.max(a, b) + .05)/(Math.min(a, b) + .05), e.tagName,
            (e.innerText || '').slice(0, 30)];
  }).filter(([ratio]) => ratio < 4.5);
}"""
HIDDEN = """(where) => {
  const clips = (e) => { for (const found = []; ; e = e.parentElement) {
    if (!e) return found;
    if (getComputedStyle(e).overflowX != 'visible') found.push(e.getBoundingClientRect()); } };
  const what = 'td, th, h1, h2, h3, p, li, img, .widget-label';
  return [...document.querySelectorAll(`${where} :is(${what})`)]
    .filter((e) => e.offsetWidth).map((e) => {
    const text = document.createRange(); text.selectNodeContents(e);
    const b = (e.tagName == 'IMG' ? e : text).getBoundingClientRect();
    const out = clips(e.parentElement).some((c) => b.left < c.left - 1 || b.right > c.right + 1);
    return [out || b.left < 0 || b.right > innerWidth + 1, e.innerText.slice(0, 40), b.right];
  }).filter(([bad]) => bad);
}"""


@cache
def axe() -> str:
    "The script of axe-core."
    from axe_playwright_python.base import AXE_SCRIPT

    return AXE_SCRIPT


def faults(page, contrast: bool = False, where: str = '') -> list[tuple[str, list[str]]]:
    """What axe-core finds on a page that is serious or critical: the rule, and where. Its rule of
    contrast takes more time than all others, and `dull` measures the same."""
    page.evaluate(axe())
    options = dict(resultTypes=['violations'], rules={'color-contrast': dict(enabled=contrast)})
    run = '([where, options]) => axe.run(where || document, options)'
    found = page.evaluate(run, [where, options])
    return [
        (rule['id'], [node['html'][:100] for node in rule['nodes']])
        for rule in found['violations']
        if rule['impact'] in ('serious', 'critical')
    ]


def dull(page, where: str) -> list:
    "Texts of less contrast than 4.5 (WCAG AA) to what is behind them: ratio, element, text."
    return page.evaluate(DULL, where)


def hidden(page, where: str) -> list:
    "Texts that are cut off at a side: element, text, where it ends."
    return page.evaluate(HIDDEN, where)
