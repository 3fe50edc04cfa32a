"""Screenshots of the server's page, in headless Chromium, to `docs/serving-page.png`.

python scripts/write_page_pictures.py      a minute or two, most of which is compiling
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from dit_cachegraph.serving.embedded import EmbeddedStudio
from support.chromium import find_chromium, page
from support.serving_runs import served

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "serving-page.png"
ENDED = "document.querySelector('#{} figcaption').textContent.includes('steps reused')"


def main() -> None:
    if find_chromium() is None:
        raise SystemExit("no Chromium is installed: on Debian and Ubuntu the package chromium")
    with served(EmbeddedStudio()) as client, page() as browser:
        client.wait_until_ready()
        browser.open(f"http://127.0.0.1:{client.port}/", width=1000, height=1040)
        browser.until("document.getElementById('server').textContent === 'Ready.'")
        for button, figure in (("draw", "left"), ("uncached", "right")):
            browser.run(f"document.getElementById('{button}').click()")
            browser.until(ENDED.format(figure))
        browser.screenshot(PICTURE)
    print(PICTURE)


if __name__ == "__main__":
    main()
