// Text that can be copied. It is only ever set as text, never as markup.

export default function ({ data, parentElement }) {
  const pre = parentElement.querySelector("pre")
  const button = parentElement.querySelector("button")
  if (pre.textContent !== data.text) pre.textContent = data.text // only on change, to keep the selection
  button.onclick = async () => {
    button.textContent = (await copied(data.text, pre)) ? "Copied" : "Selected: press Ctrl+C"
    setTimeout(() => (button.textContent = "Copy"), 2000)
  }
}

async function copied(text, pre) {
  try {
    await navigator.clipboard.writeText(text) // not available without TLS from another machine
    return true
  } catch {
    getSelection().selectAllChildren(pre)
    return false
  }
}
