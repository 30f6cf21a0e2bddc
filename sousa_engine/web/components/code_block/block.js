// Text that can be copied. What it says is text to the browser too: nothing in it is markup.

export default function ({ data, parentElement }) {
  const pre = parentElement.querySelector("pre")
  const button = parentElement.querySelector("button")
  if (pre.textContent !== data.text) pre.textContent = data.text // what a reader selected stays selected otherwise
  button.onclick = async () => {
    button.textContent = (await copied(data.text, pre)) ? "Copied" : "Selected: press Ctrl+C"
    setTimeout(() => (button.textContent = "Copy"), 2000)
  }
}

async function copied(text, pre) {
  try {
    await navigator.clipboard.writeText(text) // absent where the studio is reached without TLS from elsewhere
    return true
  } catch {
    getSelection().selectAllChildren(pre)
    return false
  }
}
