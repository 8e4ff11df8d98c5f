"""The page in a real browser: a click, a drawn picture, a cancelled one, a killed cloud; its weight."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import device_client
from device_client import jobs
from device_client.draw import Upstream
from device_client.gateway import create_app
from device_client.progress import Source
from device_client.render import CHUNK, COLOURS
from shared.models.zoo import DevicePackage
from tests.device_client.browser import Browser, CloudProcess, behind_a_socket, chromium
from tests.device_client.rig import GRID, Pace

WEB = Path(device_client.__file__).parent / "web"
TOKENS = GRID * GRID


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("downloads")) as browser:
        yield browser


@pytest.fixture(scope="module")
def distant(folder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CloudProcess]:
    process = CloudProcess(folder, tmp_path_factory.mktemp("log") / "server.log")
    yield process
    process.kill()


@pytest.fixture(scope="module")
def page(browser: Browser, package: DevicePackage, distant: CloudProcess) -> Iterator[str]:
    """The address of the page. `browser` comes first: without one nothing else is started."""
    upstream = Upstream(distant.target, connect_s=5.0, retry_s=0.3)
    with behind_a_socket(create_app(package, upstream)) as address:
        yield address


def picture(page: str, **wish: object) -> Image.Image:
    """What the service draws without a browser."""
    answer = httpx.post(f"{page}/generate", json=wish, headers={"accept": "image/png"}, timeout=60)
    return Image.open(BytesIO(answer.raise_for_status().content)).convert("RGB")


def test_a_click_draws_a_picture(browser: Browser, page: str) -> None:
    browser.open(page)
    browser.until(lambda: browser.text("cloud").startswith("the cloud answers: 127.0.0.1:"))
    browser.draw("a red cat", 5, compare=True)
    browser.until(lambda: browser.at("comparison").is_displayed())
    browser.until_idle()
    wish = {"prompt": "a red cat", "seed": 5}
    assert browser.canvas("picture").convert("RGB").tobytes() == picture(page, **wish).tobytes()
    counts = [int(count) for count in re.findall(r"\d+$", browser.text("legend"), re.MULTILINE)]
    assert sum(counts) == TOKENS and len(counts) == len(Source)
    for name in ("cloud calls", "bytes up", "bytes down", "seconds", "accepted", "rounds"):
        assert name in browser.text("counters")
    assert len(browser.driver.find_elements(By.CSS_SELECTOR, "#timeline .accepted")) > 2
    who, unsure = browser.canvas("who"), browser.canvas("unsure")
    assert len(who.convert("RGB").getcolors() or []) > 2 and len(unsure.convert("RGB").getcolors() or []) > 3
    assert "The picture: a red cat, seed 5, ciar" in (browser.at("picture").get_attribute("aria-label") or "")
    assert browser.complaints() == []


def test_it_is_compared_with_the_cloud_alone(browser: Browser, page: str) -> None:
    browser.open(page)
    browser.draw("a dog", 6, compare=True)
    browser.until(lambda: browser.at("comparison").is_displayed())
    browser.until_idle()
    theirs = httpx.post(f"{page}/generate", json={"prompt": "a dog", "seed": 6, "mode": "cloud-only"}).json()
    mine = httpx.post(f"{page}/generate", json={"prompt": "a dog", "seed": 6}).json()
    differing = sum(a != b for a, b in zip(mine["tokens"], theirs["tokens"], strict=True))
    words = f"{differing} of {TOKENS} tokens differ" if differing else "The same picture, token for token"
    assert browser.text("verdict").startswith(words)
    marked = browser.canvas("theirs").tobytes()
    browser.at("marks").click()
    plain = picture(page, prompt="a dog", seed=6, mode="cloud-only").tobytes()
    browser.until(lambda: browser.canvas("theirs").convert("RGB").tobytes() == plain)
    assert (marked != browser.canvas("theirs").tobytes()) == bool(differing)
    before = browser.at("slide-over").value_of_css_property("clip-path")
    browser.at("slider").send_keys(Keys.ARROW_RIGHT)
    assert browser.at("slide-over").value_of_css_property("clip-path") != before
    assert f"{theirs['counters']['cloud_forwards']} (" in browser.text("costs")


def test_a_drawing_is_stopped(browser: Browser, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace(0.05)
    monkeypatch.setattr(jobs, "steps", pace.steps)
    browser.open(page)
    browser.draw("a cat", 1, "exact")
    browser.until(lambda: float(str(browser.run("return document.getElementById('bar').value"))) > 0.1)
    grown = browser.canvas("picture").getcolors() or []
    assert len(grown) > 2 and (0, 0, 0, 0) in {colour for _, colour in grown}
    browser.at("stop").click()
    browser.until_idle()
    assert re.fullmatch(r"Stopped after \d+ tokens\.", browser.text("status"))
    browser.until(pace.ended.is_set)
    assert pace.seen[-1] < TOKENS and not browser.at("actions").is_displayed()
    assert not browser.at("alert").is_displayed() and browser.complaints() == []


def test_a_link_draws_the_picture_again(browser: Browser, page: str) -> None:
    seed = 2**64 - 1  # more digits than a number of JavaScript keeps
    browser.open(f"{page}/#prompt={quote('a green apple')}&seed={seed}&mode=exact&span=3&in_flight=2")
    browser.until(lambda: browser.at("actions").is_displayed())
    want = picture(page, prompt="a green apple", seed=seed, mode="exact", span=3, in_flight=2)
    assert browser.canvas("picture").convert("RGB").tobytes() == want.tobytes()
    assert browser.at("seed").get_property("value") == str(seed)
    assert browser.at("in_flight").get_property("value") == "2"
    assert not browser.at("policy").is_enabled(), "nothing is gated in this mode"
    browser.until_idle()
    browser.at("link").click()
    browser.until(
        lambda: f"seed={seed}" in browser.driver.current_url and "model=" in browser.driver.current_url
    )


def test_the_download_says_how_it_was_made(browser: Browser, page: str) -> None:
    browser.open(page)
    browser.draw("a house", 9, "device-only")
    browser.until(lambda: browser.at("actions").is_displayed())
    browser.at("download").click()
    file = browser.downloads / "a-house-9-device-only.png"
    browser.until(file.exists)
    with Image.open(file) as image:
        settings = json.loads(str(image.info[CHUNK]))
    assert (settings["prompt"], settings["seed"], settings["mode"]) == ("a house", 9, "device-only")


def test_the_session_is_remembered(browser: Browser, page: str) -> None:
    browser.open(page)
    for seed in (1, 2):
        browser.draw("a cat", seed, "device-only")
        browser.until(
            lambda seed=seed: len(browser.driver.find_elements(By.CSS_SELECTOR, "#gallery img")) == seed
        )  # type: ignore[misc]
        browser.until_idle()
    browser.driver.find_elements(By.CSS_SELECTOR, "#gallery button")[1].click()
    browser.until(lambda: browser.text("status") == "Showing a cat, seed 1.")
    want = picture(page, prompt="a cat", seed=1, mode="device-only")
    browser.until(lambda: browser.canvas("picture").convert("RGB").tobytes() == want.tobytes())


def test_a_keyboard_is_enough_and_everything_has_a_name(browser: Browser, page: str) -> None:
    browser.open(page)
    body = browser.driver.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB)
    assert browser.driver.switch_to.active_element.get_attribute("id") == "prompt"
    browser.driver.switch_to.active_element.send_keys(
        Keys.CONTROL + "a" + Keys.NULL + "a banana" + Keys.ENTER
    )
    browser.until(lambda: browser.at("actions").is_displayed())
    browser.until_idle()
    assert "The picture: a banana" in (browser.at("picture").get_attribute("aria-label") or "")
    for tag in ("input", "select", "button", "canvas", "progress", "a", "summary"):
        for element in browser.driver.find_elements(By.TAG_NAME, tag):
            assert not element.is_displayed() or element.accessible_name, element.get_attribute("outerHTML")
    assert browser.at("status").aria_role == "status" and browser.run("return document.documentElement.lang")


@pytest.mark.parametrize(
    ("words", "says"), [("zzz", "No word of 'zzz' is known"), ("cat " * 249, "The prompt has")]
)
def test_an_impossible_wish_is_refused_in_words(browser: Browser, page: str, words: str, says: str) -> None:
    browser.open(page)
    browser.draw(words, 0)
    browser.until(lambda: browser.at("alert").is_displayed())
    assert says.lower()[:12] in browser.text("alert-what").lower()
    assert not browser.at("offline").is_displayed(), "no cloud is missing"


def test_nothing_comes_from_elsewhere(browser: Browser, page: str) -> None:
    browser.open(page)
    names = browser.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert isinstance(names, list) and len(names) > 8
    assert all(str(name).startswith(page) for name in names)


def test_a_killed_cloud_is_said_and_the_device_goes_on_alone(
    browser: Browser, page: str, distant: CloudProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one: the cloud stays away."""
    pace = Pace(0.05)
    monkeypatch.setattr(jobs, "steps", pace.steps)
    browser.open(page)
    browser.draw("a white house", 4, "exact")
    browser.until(lambda: float(str(browser.run("return document.getElementById('bar').value"))) > 0.1)
    distant.kill()
    browser.until(lambda: browser.at("alert").is_displayed())
    assert f"No cloud server at {distant.target}" in browser.text("alert-what")
    assert "cloud-server --model" in browser.text("alert-next")
    browser.until(lambda: browser.text("cloud").startswith("the cloud is away"))
    pace.pause_s = 0.0
    browser.at("offline").click()
    browser.until(lambda: browser.at("badge").is_displayed())
    assert browser.text("badge").startswith("Offline: drawn on the device alone")
    want = picture(page, prompt="a white house", seed=4, mode="device-only")
    assert browser.canvas("picture").convert("RGB").tobytes() == want.tobytes()
    assert "offline" in browser.text("gallery")


def test_the_page_is_light_and_names_no_other_place() -> None:
    files = sorted(WEB.iterdir())
    assert sum(file.stat().st_size for file in files) < 100_000
    text = "".join(file.read_text() for file in files).replace("http://www.w3.org/2000/svg", "")
    assert not re.findall(r"https?://|//cdn|@import", text)


def test_its_colours_are_those_of_the_maps() -> None:
    style = (WEB / "style.css").read_text().lower()
    for source, colour in COLOURS.items():
        (found,) = re.findall(rf"--{source.name.lower()}: (#[0-9a-f]+)", style)
        assert found in (colour.lower(), "#" + colour.lower()[1::2])


@pytest.mark.parametrize("scheme", [0, 1])
def test_its_words_stand_out(scheme: int) -> None:
    """WCAG's AA: 4.5 to 1 for text, on every ground it stands on."""
    blocks = re.findall(r":root \{(.*?)\}", (WEB / "style.css").read_text(), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w+);", blocks[0]))
    colours.update(re.findall(r"--([\w-]+): (#\w+);", blocks[scheme]))
    pairs = [(ink, ground) for ink in ("ink", "soft") for ground in ("paper", "card")]
    for ink, ground in [*pairs, ("ink", "alert"), ("on-accent", "accent"), ("accent", "card")]:
        light, dark = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


def luminance(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
