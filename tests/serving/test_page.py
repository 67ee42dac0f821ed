"""The page in headless Chromium: upload, box, filters, keys, dark mode, the width of a phone, and its errors."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image

from bdbnet.gallery import EmbeddingStore
from bdbnet.serving.address import listening
from bdbnet.serving.running import open_app
from browser import Browser, chromium

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(chromium() is None, reason="no Chromium is installed, and these tests drive one"),
]
TOKEN = "a token of the page"
RESULTS = "document.body.dataset.state === 'results' && !running && document.querySelectorAll('#pictures li').length"


@pytest.fixture(scope="module")
def folder(make_store, embedder, tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("stores") / "rendered_people", embedder)


@pytest.fixture(scope="module")
def address(folder, embedder, tools) -> Iterator[str]:
    """Of a server in a thread, with a token."""
    config = tools.settings(f"index={folder}", f"checkpoint={embedder.origin.source}")
    app, _ = open_app(config, TOKEN)
    sock = listening("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bdbnet.serving.gallery._LOOK_EVERY", 0)
        patch.setattr("bdbnet.serving.gallery._PATIENCE", 60)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}/"
    server.should_exit = True
    thread.join(10)
    sock.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    with Browser(str(chromium()), tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def page(browser: Browser, address: str) -> Browser:
    """The page, opened with its token; desktop size, light."""
    browser.size(1200, 900)
    browser.dark(False)
    browser.open(f"{address}?token={TOKEN.replace(' ', '+')}")
    browser.evaluate("localStorage.clear()")
    browser.wait("document.body?.dataset.state === 'gallery'")
    browser.messages.clear()
    return browser


def rows(page: Browser) -> list[int]:
    return page.evaluate(
        "[...document.querySelectorAll('#pictures button')].map((button) => Number(button.dataset.row))"
    )


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    """A photograph of 400 x 200 pixels."""
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 255, (20, 40, 3), np.uint8)
    Image.fromarray(pixels).resize((400, 200)).save(path)
    return path


def test_it_opens_on_the_gallery_and_takes_the_token_out_of_the_address(page, address):
    assert page.evaluate("location.href") == address
    assert page.evaluate("document.cookie") == ""
    assert page.evaluate("document.querySelector('h1').textContent") == "rendered_people"
    assert rows(page) == [*range(19)]
    page.wait(
        "[...document.querySelectorAll('#pictures img')].slice(0, 5).every((img) => img.complete && img.naturalWidth > 0)"
    )
    assert page.messages == []


def test_an_upload_a_box_and_previous_queries(page, photo):
    page.choose("#file", photo)
    assert page.wait(RESULTS) == 19
    whole = rows(page)
    page.wait("query.size && query.size.width === 400")
    left, top, width = page.evaluate(
        "(() => { const r = document.querySelector('#preview').getBoundingClientRect(); return [r.left, r.top, r.width]; })()"
    )
    scale = width / 400
    page.drag((left + 40 * scale, top + 20 * scale), (left + 200 * scale, top + 180 * scale))
    page.wait("box !== null && !running")
    np.testing.assert_allclose(page.evaluate("box"), [40, 20, 200, 180], atol=2)
    page.wait(RESULTS)
    assert rows(page) != whole
    assert page.evaluate("document.querySelectorAll('#history li').length") == 1
    page.evaluate("document.querySelector('#enlarge').click()")
    assert page.evaluate("document.querySelector('#preview').clientWidth") > 2 * width
    np.testing.assert_allclose(
        page.evaluate("document.querySelector('#box').offsetWidth / document.querySelector('#preview').clientWidth"), 0.4,
        atol=0.02,
    )  # fmt: skip
    page.evaluate("document.querySelector('#enlarge').click()")
    page.press("Escape")
    page.wait("box === null && !running")
    page.wait(RESULTS)
    assert rows(page) == whole
    page.evaluate("document.querySelectorAll('#pictures button')[3].click()")
    page.wait(f"query.kind === 'row' && {RESULTS} === 18")
    assert page.evaluate("document.querySelectorAll('#history li').length") == 2
    assert page.messages == []


def test_an_answer_that_comes_late_replaces_nothing(page, photo):
    page.choose("#file", photo)
    assert page.wait(RESULTS) == 19
    page.evaluate(
        """{
            const asked = fetch;
            window.late = 0;
            window.fetch = async (address, options) => {
                if (!address.startsWith('/api/images?')) return asked(address, options);
                await new Promise((resolve) => setTimeout(resolve, 100));
                return asked(address, options).finally(() => setTimeout(() => (window.late += 1)));
            };
            browse(0);
            setBox([10, 10, 90, 90]);
            search();
            setBox(null);
        }"""
    )
    page.wait("window.late === 1 && !running")
    assert page.evaluate("document.body.dataset.state") == "results"
    assert page.evaluate("kept[0].box") == [10, 10, 90, 90]
    assert page.messages == []


def test_dropped_and_pasted_images(page):
    made = """(kind) => new Promise((resolve) => {
        const canvas = document.createElement('canvas');
        canvas.width = 20; canvas.height = 40;
        canvas.toBlob((blob) => {
            const data = new DataTransfer();
            data.items.add(new File([blob], `${kind}ed.png`, {type: 'image/png'}));
            const options = {bubbles: true, cancelable: true};
            document.dispatchEvent(kind === 'drop' ? new DragEvent('drop', {...options, dataTransfer: data})
                                                   : new ClipboardEvent('paste', {...options, clipboardData: data}));
            resolve();
        });
    })"""
    for kind in ("drop", "paste"):
        page.evaluate(f"({made})('{kind}')")
        page.wait(f"query && query.name === '{kind}ed.png' && {RESULTS}")
    assert page.messages == []


def test_filters(page):
    page.evaluate("document.querySelectorAll('#cameras input')[0].click()")
    page.wait("document.querySelectorAll('#pictures li').length < 19")
    chosen = rows(page)
    page.evaluate("document.querySelector('#pictures button').click()")
    page.wait(RESULTS)
    assert {*rows(page)} == {*chosen[1:]}
    page.evaluate(
        "for (const [id, value] of [['after', '2024-01-01T02:00'], ['before', '2024-01-01T08:00']]) $(id).value = value"
    )
    page.evaluate("document.querySelector('#search').click()")
    page.wait(f"{RESULTS} < {len(chosen) - 1} && true")
    assert {*rows(page)} == {row for row in chosen[1:] if 2 <= row < 8}
    page.evaluate("$('after').value = '2030-01-01T00:00'; document.querySelector('#search').click()")
    page.wait("!document.querySelector('#nothing').hidden")
    assert rows(page) == []
    page.evaluate("document.querySelector('#show-all').click()")
    page.wait(f"{RESULTS} === 18")
    assert page.evaluate("document.querySelector('#nothing').hidden")


def test_keys(page):
    page.press("?", "?")
    assert not page.evaluate("document.querySelector('#help').hidden")
    page.press("ArrowRight")
    page.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.row") == "1"
    page.press("ArrowDown")
    below = int(page.evaluate("document.activeElement.dataset.row"))
    assert below > 2
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press("Enter", "\r")
    page.wait(f"query && query.row === {below} && {RESULTS}")
    page.press("g", "g")
    page.wait("document.body?.dataset.state === 'gallery'")
    page.evaluate("document.activeElement.blur()")
    page.press("f", "f")
    assert page.evaluate("document.activeElement.id") == "k"


CONTRAST = """(() => {
    const light = (text) => {
        const parts = text.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
            .map((part) => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
    };
    const behind = (node) => {
        const colour = getComputedStyle(node).backgroundColor;
        return /, 0\\)$/.test(colour) && node.parentElement ? behind(node.parentElement) : colour;
    };
    return Math.min(...[...document.querySelectorAll('h1, h2, p, label, button, a, span, legend, summary')]
        .filter((node) => node.offsetParent && node.textContent.trim())
        .map((node) => [light(getComputedStyle(node).color), light(behind(node))].sort())
        .map(([low, high]) => (high + 0.05) / (low + 0.05)));
})()"""


def test_light_and_dark_by_system_and_switch(page):
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    assert page.evaluate(CONTRAST) >= 4.5
    page.dark(True)
    dark = page.evaluate(ground)
    assert dark != light
    assert page.evaluate(CONTRAST) >= 4.5
    page.press("d", "d")
    assert page.evaluate(ground) == light
    page.open(page.evaluate("location.href"))
    page.wait("document.body?.dataset.state === 'gallery'")
    assert page.evaluate(ground) == light  # the choice is kept
    page.evaluate("document.querySelector('#theme').click()")
    assert page.evaluate(ground) == dark


def test_a_phone(page, photo):
    page.size(390, 740)
    page.open(page.evaluate("location.href"))
    page.wait("document.body?.dataset.state === 'gallery'")
    page.choose("#file", photo)
    page.wait(RESULTS)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert not page.evaluate("document.querySelector('#filters').open")
    assert 0 <= page.evaluate("document.querySelector('#heading').getBoundingClientRect().top") < 740


def test_everything_has_a_name(page, photo):
    page.choose("#file", photo)
    page.wait(RESULTS)
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "link", "textbox", "spinbutton", "combobox", "checkbox", "img", "image"}
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node.get("ignored") and node.get("role", {}).get("value") in roles
    ]
    assert len(named) > 30
    assert [role for role, name in named if not name.strip()] == []


def test_what_is_no_image_is_said_on_the_page(page, photo, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    page.choose("#file", tmp_path / "notes.txt")
    page.wait("!document.querySelector('#problem').hidden && !running")
    assert "notes.txt is not an image" in page.evaluate("document.querySelector('#problem').textContent")
    assert page.evaluate("query") is None  # no results are shown as those of a file that is no image
    page.choose("#file", photo)
    page.wait(RESULTS)
    page.choose("#file", tmp_path / "notes.txt")
    page.wait("document.body.dataset.state === 'error' && !running")
    assert page.evaluate("query.name") == "photo.png"
    assert len(rows(page)) == 19
    assert page.evaluate("document.querySelector('#status').textContent").startswith("19 images, euclidean distance")


def test_a_gallery_that_changes_while_the_page_is_open(page, folder):
    store = EmbeddingStore.open(folder)
    first, last = store.table["path"].iloc[[0, 18]]
    search = "document.querySelectorAll('#pictures button')[{}].click()"
    news = "document.querySelector('#news').textContent"
    store.remove([first])
    page.evaluate("$('k').value = 7")
    page.evaluate(search.format(5))  # row 5, which is row 4 now
    page.wait("!document.querySelector('#news').hidden && document.body.dataset.state === 'gallery' && query === null")
    assert page.evaluate(news).startswith("The gallery has changed: it has 18 images now, before 19. ")
    page.wait("document.querySelectorAll('#pictures li').length === 18")
    EmbeddingStore.open(folder).remove([last])
    page.evaluate(search.format(4))  # still row 4
    page.wait(f"query && query.row === 4 && {RESULTS} === 7")
    assert page.evaluate(news) == "The gallery has changed: it has 17 images now, before 18."
    assert page.evaluate("query.fingerprint === info.fingerprint")


def test_a_gallery_that_is_deleted_is_said_on_the_page(page, folder):
    moved = folder.with_name("moved")
    folder.rename(moved)
    try:
        page.evaluate("document.querySelector('#pictures button').click()")
        page.wait("!document.querySelector('#problem').hidden")
        assert "was deleted or moved" in page.evaluate("document.querySelector('#problem').textContent")
    finally:
        moved.rename(folder)


def test_without_the_token_there_is_a_field_for_it(browser, address):
    browser.call("Network.clearBrowserCookies")
    browser.open(address)
    assert browser.evaluate("document.querySelector('#token').type") == "password"
    browser.evaluate(f"document.querySelector('#token').value = '{TOKEN}'; document.querySelector('button').click()")
    browser.wait("document.body?.dataset.state === 'gallery'")
    assert browser.evaluate("location.href") == address


def test_waiting_goes_on_when_the_page_is_left(page):
    page.evaluate("window.old = true; setTimeout(() => location.reload(), 100)")
    assert page.wait("window.old ? window.kept = new Promise(() => {}) : 'new'") == "new"
