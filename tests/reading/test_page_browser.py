"""The page in a real headless Chromium: tokens are text, nothing executes, nothing overflows, dark is dark."""

import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detjac_lanczos.reading import render_page
from detjac_lanczos.reading.page.markup import dotted
from detjac_lanczos.runs import Run
from tests.reading.conftest import ODD_TOKENS

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"no browser: none of {', '.join(NAMES)} is installed")


@pytest.fixture
def page(odd_record: dict[str, Any], run: Run, tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(render_page(odd_record, run.vectors), "utf-8")
    return path


def browse(page: Path, *options: str) -> str:
    """Open a page with no network and return what the browser prints."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--disable-background-networking",
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={page.parent / 'profile'}",
        *options,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, check=True, timeout=120).stdout.decode("utf-8")


def screenshot(page: Path, width: int, height: int, *options: str) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Return the pixels of the page, (height, width, 3)."""
    image = pytest.importorskip("PIL.Image")
    path = page.parent / "shot.png"
    browse(page, f"--screenshot={path}", f"--window-size={width},{height}", *options)
    return np.asarray(image.open(path).convert("RGB"))


def test_tokens_are_text_and_nothing_executes(page: Path) -> None:
    dom = browse(page, "--dump-dom")
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title and title[1] != "executed" and "detached Jacobians" in title[1]
    assert not re.search(r"<(script|img|link|iframe)\b", dom)
    text = unescape(re.sub(r"<[^>]*>", "", dom))
    for token in ODD_TOKENS:
        assert dotted(token) in text


def test_the_test_itself_would_notice_a_script(page: Path) -> None:
    whole = page.read_text("utf-8")
    unsafe = re.sub(r"<meta http-equiv[^>]*>", "", whole).replace("</body>", f"{ODD_TOKENS[0]}</body>")
    page.write_text(unsafe, "utf-8")
    assert "<title>executed</title>" in browse(page, "--dump-dom")


def test_the_policy_stops_a_script_that_slipped_in(page: Path) -> None:
    page.write_text(page.read_text("utf-8").replace("</body>", f"{ODD_TOKENS[0]}</body>"), "utf-8")
    assert "<title>executed</title>" not in browse(page, "--dump-dom")


def test_dark_is_dark_and_light_is_light(page: Path) -> None:
    light = screenshot(page, 900, 700, "--blink-settings=preferredColorScheme=1")
    dark = screenshot(page, 900, 700, "--blink-settings=preferredColorScheme=0")
    assert np.median(light) > 230
    assert np.median(dark) < 40
    assert light.min() < 60 and dark.max() > 200


@pytest.mark.parametrize("width", [400, 900])
def test_nothing_sticks_out_of_the_page(page: Path, width: int) -> None:
    """The margins right and left of the text are empty over the whole height."""
    pixels = screenshot(page, width, 6000).astype(int)
    for margin in (pixels[:, :4], pixels[:, -4:]):
        assert np.ptp(margin, axis=(0, 1)).max() <= 2
    assert np.ptp(pixels) > 150
