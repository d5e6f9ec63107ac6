"""A page in headless Chromium: what a script finds in it, and what the console says."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = (  # a sandbox needs privileges that containers and root lack
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
    *("--disable-dev-shm-usage", "--no-first-run", "--enable-logging=stderr"),
)
CONSOLE = re.compile(r":CONSOLE(?::\d+|\(\d+\))?\] \"(.*)\", source: ")
# A page in a frame of a given width: windows of Chromium are at least 500 pixels wide.
FRAME = """<!DOCTYPE html><meta charset="utf-8">
<iframe style="border: 0; width: {width}px; height: 800px" srcdoc="{page}"></iframe><pre></pre>
<script>
addEventListener("load", () => {{
  const window = document.querySelector("iframe").contentWindow;
  const find = (window, document) => {{ {script} }};
  document.querySelector("pre").textContent = JSON.stringify(find(window, window.document));
  console.info("the script has ended");
}});
</script>
"""


def evaluate(page: str, script: str, folder: Path, *, width: int = 390) -> tuple[Any, list[str]]:
    """(what a script returns in a page, lines of the console); skips without a browser.

    script: body of a function of the `window` and `document` of the page, called after its load.
    """
    command = next(filter(None, map(shutil.which, NAMES)), None)
    if command is None:
        pytest.skip(f"needs a browser, one of {', '.join(NAMES)}")
    folder = folder.resolve()
    file = folder / "frame.html"
    file.write_text(FRAME.format(page=escape(page), script=script, width=width))
    words = [command, *OPTIONS, f"--user-data-dir={folder / 'browser'}"]
    words += ["--dump-dom", file.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    lines = CONSOLE.findall(done.stderr)
    found = re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert found and "the script has ended" in lines, done.stderr
    lines.remove("the script has ended")
    return json.loads(unescape(found[1])), lines
