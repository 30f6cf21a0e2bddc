// Two corrections of the history that Streamlit 1.67 writes. Both would make Back show an address that nobody visited.
//
// - When Python opens another page (st.switch_page), the browser first learns of the new query and pushes it onto the old
//   page, /runs?id=A, and then of the page, /run?id=A. The first of the two is replaced here.
// - A form that is kept in the address (?draft=...) would push an entry for every field that is filled in; and if another
//   page opens before the newest draft arrives, it would be pushed onto that page and take the place of its query.

const DRAFT = "draft"
const FORMS = /\/(launch|sweeps)$/

export default function () {
  if (history.pushState.isOurs) return
  const { pushState, replaceState } = history
  let isHalf = false // the newest entry has the query of the page that opens now

  const query = (url) => {
    const found = new URLSearchParams(url.search)
    found.delete(DRAFT)
    return found.toString()
  }

  history.pushState = function (state, title, address) {
    const [now, next] = [new URL(location.href), new URL(address ?? "", location.href)]
    const opens = next.pathname !== now.pathname
    if (next.searchParams.has(DRAFT) && !FORMS.test(next.pathname)) {
      if (!opens) return // late: its form was left, perhaps by Back
      next.searchParams.delete(DRAFT)
    }
    const replaces = opens ? isHalf && query(next) === now.search.slice(1) : query(next) === query(now)
    isHalf = !opens && (isHalf || !replaces)
    return (replaces ? replaceState : pushState).call(history, state, title, next.href)
  }
  history.pushState.isOurs = true
  // Whoever touched the page in between has seen that entry.
  for (const touch of ["pointerdown", "keydown", "popstate"]) addEventListener(touch, () => { isHalf = false }, true)
}
