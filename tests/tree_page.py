"""The module tree of one tab: what a user can see and do in it."""

import re


class Tree:
    """What a user can see and do in the tree of one tab."""

    def __init__(self, page, settled):
        self.page, self.settled = page, settled
        self.tree = page.get_by_role("tree", name="Modules")
        self.search = page.get_by_role("textbox", name="Search modules")

    def open(self, variant="ast-base"):
        self.page.goto(f"/backbones?variant={variant}")
        self.row("whole network").wait_for()
        self.settled(self.page)
        return self

    def box(self, name):
        """A cell or a heading of the grid."""
        return self.page.get_by_role("checkbox", name=name, exact=True)

    def rank(self, path):
        """The field of one row."""
        return self.page.get_by_role("spinbutton", name=f"Rank of {path}", exact=True)

    def focused(self):
        """The name of what has the keyboard."""
        return self.page.locator(":focus").last.get_attribute("aria-label")

    def row(self, path):
        return self.page.locator(f'[role=treeitem][aria-label^="{path},"]')

    def tick(self, path):
        self.row(path).locator(".box").click()

    def checked(self, path):
        return self.row(path).get_attribute("aria-checked")

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def active(self):
        label = self.page.locator(".row.active").get_attribute("aria-label")
        return label.split(",")[0]

    def click(self, name):
        self.page.get_by_role("button", name=name, exact=True).click()

    def head(self, name):
        self.page.get_by_role("radio", name=name, exact=True).click()

    def counts(self):
        """The browser's own counts, as numbers."""
        texts = self.page.locator("[data-count]").evaluate_all("all => all.map(e => [e.dataset.count, e.textContent])")
        return {name: float(re.sub(r"[^\d.]", "", text)) for name, text in texts}

    def until(self, **expected):
        """Wait until the browser's counts are these."""
        for name, value in expected.items():
            self.page.wait_for_function(
                "([name, text]) => [...document.querySelectorAll('*')].some(e =>"
                " e.shadowRoot?.querySelector(`[data-count=${name}]`)?.textContent === text)",
                arg=[name, f"{value:,}"],
            )

    def python_says(self, layers, trainable, total):
        """Wait until Python's own count, under the Launch button, is this."""
        modules = "1 module" if layers == 1 else f"{layers} modules"
        self.page.get_by_text(f"{modules} with LoRA, {trainable:,} trainable of {total:,}").wait_for()
