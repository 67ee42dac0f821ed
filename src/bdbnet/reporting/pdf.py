"""A page as a PDF, printed by a browser that is here."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from bdbnet.reporting.run_folder import ReportError
from bdbnet.results import write_atomically

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
    "msedge",
)
_SECONDS = 180


def write_pdf(page: Path) -> Path:
    """Print a page into a PDF beside it, light and without its links to other pages.

    Raises:
        ReportError: there is no browser that prints, or it failed.
    """
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise ReportError(
            f"pdf=true needs a browser that prints without a window, and none of {', '.join(BROWSERS)} is here: install "
            f"Chromium, or open {page} and print it into a file"
        )
    with tempfile.TemporaryDirectory(prefix="bdbnet-pdf-") as folder:
        made = Path(folder) / "page.pdf"
        arguments = [
            browser, "--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--no-pdf-header-footer",
            f"--user-data-dir={folder}/profile", f"--print-to-pdf={made}", page.resolve().as_uri(),
        ]  # fmt: skip
        if hasattr(os, "geteuid") and os.geteuid() == 0:  # its sandbox refuses to run as root; the page runs no script
            arguments.insert(1, "--no-sandbox")
        try:
            done = subprocess.run(arguments, capture_output=True, text=True, timeout=_SECONDS, check=False)
            said = next(
                (line for line in reversed(done.stderr.splitlines()) if line.strip()), f"exit status {done.returncode}"
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            said = str(error)
        if not made.is_file() or not made.stat().st_size:
            raise ReportError(f"{browser} could not print {page} ({said}): open it and print it into a file")
        return write_atomically(page.with_suffix(".pdf"), made.read_bytes())
