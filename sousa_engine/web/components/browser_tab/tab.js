// Two corrections of the history that Streamlit 1.67 writes. Both would make Back show an address that nobody visited.
//
// - When Python opens another page (st.switch_page), the browser first learns of the new query and pushes it onto the old
//   page, /runs?id=A, and then of the page, /run?id=A. The first of the two is replaced here.
// - A form that is kept in the address (?draft=...) would push an entry for every field that is filled in; and if another
//   page opens before the newest draft arrives, it would be pushed onto that page.

const DRAFT = "draft"
const FORMS = /\/(launch|sweeps)$/

export default function () {
  if (history.pushState.isOurs) return
  const { pushState, replaceState } = history
  let isHalf = false // the newest entry has the query of the page that opens now

  const rest = (url) => {
    const query = new URLSearchParams(url.search)
    query.delete(DRAFT)
    return url.pathname + "?" + query
  }

  history.pushState = function (state, title, address) {
    const [now, next] = [new URL(location.href), new URL(address ?? "", location.href)]
    if (!FORMS.test(next.pathname)) next.searchParams.delete(DRAFT)
    const opens = next.pathname !== now.pathname
    const replaces = opens ? isHalf && next.search === now.search : rest(next) === rest(now)
    isHalf = !opens && !replaces
    return (replaces ? replaceState : pushState).call(history, state, title, next.href)
  }
  history.pushState.isOurs = true
  // Whoever touched the page in between has seen that entry.
  for (const touch of ["pointerdown", "keydown", "popstate"]) addEventListener(touch, () => { isHalf = false }, true)
}
