"""Photographs every tab, light and dark, on a laptop and a phone: `python -m assets.screenshots [--readme]`. Needs Chromium.

The pictures go to screenshots/, which is not committed; with --readme the ones that the README shows are written to assets/ as well.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from assets.served import ROOT, chromium, open_tab, served

SIZES = {"laptop": (1440, 900), "phone": (390, 844)}
SHOWN = {"compare": "screenshot.png", "weights": "screenshot-weights.png", "tradeoffs": "screenshot-tradeoffs.png", "planner": "screenshot-planner.png"}


def main(argv: list[str] | None = None) -> None:
    from explorer.ui.tab import tabs

    parser = argparse.ArgumentParser(prog="python -m assets.screenshots", description=__doc__.splitlines()[0])
    parser.add_argument("--readme", action="store_true", help="also renew the pictures that the README shows")
    parser.add_argument("--tab", action="append", help="only this tab; may be given again")
    args = parser.parse_args(argv)
    folder = ROOT / "screenshots"
    folder.mkdir(exist_ok=True)
    with served() as address, chromium() as browser:
        for size, (width, height) in SIZES.items():
            for theme in ("light", "dark"):
                page = browser.new_page(viewport={"width": width, "height": height})
                page.goto(f"{address}?__theme={theme}")
                page.wait_for_selector("#plot-quality .main-svg", timeout=60_000)
                for tab in tabs():
                    if not args.tab or tab.name in args.tab:
                        open_tab(page, tab.name)
                        page.wait_for_timeout(4000)
                        page.screenshot(path=folder / f"{tab.name}-{size}-{theme}.png", full_page=True)
                        if args.readme and (size, theme) == ("laptop", "light") and tab.name in SHOWN:
                            page.screenshot(path=folder / SHOWN[tab.name])
                            shutil.copy(folder / SHOWN[tab.name], Path(__file__).parent)
                page.close()


if __name__ == "__main__":
    main()
