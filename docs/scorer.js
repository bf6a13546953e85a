// Which page a search lists first: a term of the glossary, a page whose title has the words, then
// tutorials and reference before chapters, chapters before the API, and the changelog last.
const KINDS = [
  [/^rooms\/|^tutorials\/earlier/, -10], [/^tutorials\//, 30], [/^(commands|method|glossary)$/, 20],
  [/^api\//, -20], [/^(changelog|contributing)$/, -40],
];
const words = (text) => text.toLowerCase().match(/[\p{L}\p{N}_]+/gu) ?? [];
const asked = words(new URLSearchParams(location.search).get('q') ?? '');
var Scorer = {
  score: ([docname, title, , , score]) => {
    const own = words(title.replace(/<[^>]+>/g, '').split('>').pop());
    const shared = asked.filter((word) => own.includes(word)).length / (asked.length || 1);
    const term = docname === 'glossary' && own.slice(0, asked.length).join() === asked.join();
    const kind = KINDS.find(([pattern]) => pattern.test(docname))?.[1] ?? 0;
    return score + kind + (kind === -20 ? 0 : 40) * shared + (term ? 100 : 0);
  },
  objNameMatch: 11, objPartialMatch: 6, objPrio: {0: 15, 1: 5, 2: -5}, objPrioDefault: 0,
  title: 15, partialTitle: 7, term: 5, partialTerm: 2,
};
