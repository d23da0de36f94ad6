"""Take the pictures of docs/app.md: `python -m pipelines_tests.app.screenshots ADDRESS docs/images` beside `mardini app`.

Only examples of our own generator are shown.
"""

import sys
from pathlib import Path

from pipelines_tests.app.test_browser import CHROMIUM, playwright


def main(address: str, folder: str) -> None:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        page.set_default_timeout(300_000)  # a busy machine samples slowly
        page.goto(address)
        page.locator("#fill-example-1").click()
        page.locator("#strip .place.given").first.wait_for()
        page.locator("#fill-make").click()
        page.locator("#strip .place.made").first.wait_for()
        page.wait_for_function("document.querySelector('#fill-video video')?.currentTime > 0", polling=100)
        page.locator("#fill-compare .at").fill("5")
        page.locator("#fill-compare .wipe").fill("45")
        page.mouse.move(5, 5)
        page.wait_for_timeout(500)
        page.screenshot(path=Path(folder, "app-fill.png"), full_page=True)
        page.get_by_role("tab", name="Long").click()
        page.locator("#long-example-1").click()
        page.locator("#long-clip video").wait_for()
        page.get_by_role("radio", name="Another rate").check()
        page.locator("#long-make").click()
        page.wait_for_function("document.querySelector('#long-video video')?.currentTime > 0", polling=100)
        page.mouse.move(5, 5)
        page.wait_for_timeout(500)
        page.screenshot(path=Path(folder, "app-long.png"), full_page=True)
        page.set_viewport_size({"width": 640, "height": 700})
        page.goto(f"{address}/drive")
        page.locator("#checkpoint option").first.wait_for(state="attached")
        page.locator("#start").click()
        page.locator("#restart:not([disabled])").wait_for()
        for key, frame in (("ArrowUp", 14), ("ArrowLeft", 18)):  # straight on, then a curve
            page.keyboard.down(key)
            page.wait_for_function(f"Number(document.querySelector('#screen').dataset.index) >= {frame}", polling=100)
        page.screenshot(path=Path(folder, "app-drive.png"))
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
