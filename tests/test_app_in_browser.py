import shutil
import zipfile

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageChops

from erase.app import build
from erase.app.settings import AppConfig
from erase.app.studio import shown
from erase.bundled import EMOJI
from erase.prompts.catalogue import Catalogue

CHROMIUM = shutil.which("chromium")
QUIET = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
SECONDS = 40_000
STEPS = Catalogue.of_model(EMOJI).sampling.steps
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium"),
    pytest.mark.xdist_group("browser"),  # opened once
]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("served")))
        with build.served(AppConfig(), quiet=True) as (address, _):
            yield address


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address, request):
    """A fresh page; whatever it logs as an error, or asks of another host, fails the test.

    A test may ask for a width and a theme.
    """
    wrong = []
    width, theme = getattr(request, "param", (1280, "light"))
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:"))
            else wrong.append(r.url))  # fmt: skip
    page.goto(f"{address}?__theme={theme}")
    page.locator("#generate").wait_for()
    yield page
    context.close()
    assert wrong == []


def generated(page, prompt, folder):
    """Paths of the base's and the erased picture of a prompt."""
    before = pictures(page)
    page.locator("#prompt textarea").fill(prompt)
    page.locator("#generate").click()
    return saved(page, before, folder)


def pictures(page):
    return page.locator("#compared img").evaluate_all("all => all.map(one => one.src)")


def saved(page, before, folder):
    page.wait_for_function(
        """before => {
            const now = [...document.querySelectorAll('#compared img')].map(one => one.src);
            return now.length >= 2 && JSON.stringify(now) !== JSON.stringify(before);
        }""",
        arg=before,
    )
    paths = []
    for source in pictures(page)[:2]:
        path = folder / f"{len(list(folder.iterdir()))}.png"
        path.write_bytes(page.request.get(source).body())
        paths.append(path)
    return paths


def apart(one, other):
    difference = ImageChops.difference(*(Image.open(p).convert("RGB") for p in (one, other)))
    return torch.tensor(list(difference.tobytes()), dtype=torch.float32).mean().item()


def test_erase_compare_scale_and_take_home(page, tmp_path):
    page.get_by_role("tab", name="Erase").click()
    page.locator("#erase").click()
    page.get_by_text("ghost, projection: done").wait_for()

    page.get_by_role("tab", name="Erase").click()
    with page.expect_download() as download:
        page.locator("#download").click()
    archive = tmp_path / "erasure.zip"
    download.value.save_as(archive)

    page.get_by_role("tab", name="Compare").click()
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    base, erased = generated(page, "a ghost in noto style", drawn)
    whole = apart(base, erased)
    assert whole > 10
    kept_base, kept = generated(page, "a pizza in noto style", drawn)
    assert apart(kept_base, kept) < whole / 2

    before = pictures(page)
    slider = page.locator("#strength input[type=range]")
    slider.focus()
    page.keyboard.press("Home")
    unchanged_base, unchanged = saved(page, before, drawn)
    assert apart(unchanged_base, unchanged) == 0
    page.locator("#nearby img").nth(3).wait_for()

    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path / "home")
    plain = DiffusionPipeline.from_pretrained(EMOJI, safety_checker=None)
    plain.set_progress_bar_config(disable=True)
    plain.load_lora_weights(tmp_path / "home")
    picture = plain(
        "a ghost in noto style", generator=torch.Generator().manual_seed(0),
        num_inference_steps=STEPS, guidance_scale=4.0, output_type="pt",
    ).images[0]  # fmt: skip
    shown(picture).save(tmp_path / "plain.png")
    assert apart(tmp_path / "plain.png", erased) < 0.5


def test_bad_input_is_said_on_the_page_and_the_page_goes_on(page, tmp_path):
    page.locator("#prompt textarea").fill("")
    page.locator("#generate").click()
    page.get_by_text("The prompt is empty").wait_for()
    page.locator("#chosen input").first.uncheck()  # the ready erasure that is in force at first
    base, erased = generated(page, "a camera in flat style", tmp_path)
    assert apart(base, erased) == 0


@pytest.mark.parametrize(
    "page", [(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")], indirect=True
)
def test_no_tab_makes_the_page_scroll_sideways(page):
    sideways = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(sideways) <= 1
    for tab in page.get_by_role("tab").all():
        if tab.is_visible():
            tab.click()
            assert page.evaluate(sideways) <= 1


@pytest.mark.parametrize("page", [(390, "light")], indirect=True)
def test_a_visitor_with_a_phone_sees_the_first_pair_without_scrolling(page):
    box = page.locator("#compared").bounding_box()
    assert box["y"] + box["height"] <= page.viewport_size["height"]


def test_everything_on_the_first_tab_has_a_name_and_can_be_reached_by_keyboard(page):
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('input:not([type=hidden]), textarea, button')]
            .filter(e => e.offsetParent !== null)
            .filter(e => !(e.ariaLabel || e.title || e.textContent.trim() || e.labels?.length
                           || e.getAttribute('aria-labelledby')))
            .map(e => e.outerHTML.slice(0, 120))"""
    )
    assert nameless == []
    page.locator("#prompt textarea").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement !== document.body")
