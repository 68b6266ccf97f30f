"""Takes the picture in the README: `python -m tests.server.web.screenshot docs/page.png`."""

import re
import sys

from playwright.sync_api import expect, sync_playwright

from tests.server.web.serving import CHROMIUM, serving


def take(path: str) -> None:
    """A question answered on the left, requests running on the right."""
    with serving() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.goto(address)
        expect(page.locator("#demo")).to_be_visible()
        page.select_option("#question", "Show the 3 most expensive cheeses")
        page.click("#send")
        expect(page.locator("table.rows")).to_be_visible()
        page.fill("#prompt", "What is the average price of cheeses for each milk?")
        page.click("#send")
        expect(page.locator("table.rows")).to_have_count(2)
        page.click("#load")
        busy = re.compile(r"the next token of [78]")
        expect(page.locator("#steps")).to_have_attribute("aria-label", busy, timeout=15_000)
        page.wait_for_timeout(150)
        page.screenshot(path=path)
        browser.close()


if __name__ == "__main__":
    take(sys.argv[1])
