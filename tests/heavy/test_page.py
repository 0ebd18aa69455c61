"""The report in a real browser, on a phone's width and on a desk's."""

import shutil
import subprocess

import pytest

from vit.report.compare import compare
from vit.report.page import report

BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=3000",
]  # fmt: skip
# A frame is the window of a phone: headless Chromium itself has a least width.
FRAME = """<iframe id="frame" src="file://{path}" width="{width}" height="3000"></iframe><pre id="out"></pre>
<script>window.onload = () => {{ const page = document.getElementById("frame").contentDocument;
const whole = [...page.images].every(image => image.complete && image.naturalWidth > 0);
const seen = [page.documentElement.scrollWidth, whole, page.images.length];
document.getElementById("out").textContent = seen.join(" "); }}</script>"""


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("kind", ["run", "comparison"])
def test_nothing_is_wider_than_the_window(trained, tmp_path, width, kind):
    shutil.copytree(trained, tmp_path / "run")
    page = tmp_path / "run" / "report.html"
    if kind == "run":
        report(tmp_path / "run")
    else:
        compare([trained, tmp_path / "run"], page)
    (tmp_path / "frame.html").write_text(FRAME.format(path=page, width=width))
    flags = [*FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--allow-file-access-from-files", "--window-size=1400,3000"]
    command = [BROWSER, *flags, "--dump-dom", f"file://{tmp_path / 'frame.html'}"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    seen, images, count = dom.split('<pre id="out">')[1].split("</pre>")[0].split()
    assert int(seen) <= width
    assert images == "true"
    assert int(count) >= 4
