"""The page of `vizsla serve` in a real browser, with the answers of a real server."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import Request, urlopen

import pytest
from PIL import Image

from vizsla.data.synthetic import DrawnDataset
from vizsla.runs.folder import RunFolder

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Route

pytest.importorskip("uvicorn", reason="the extra serve is not installed")
expect = pytest.importorskip("playwright.sync_api").expect

TOKEN = "a-token-of-sixteen"
WIDE, PHONE = 1280, 390
MOST_BYTES = 30_000


@contextmanager
def _serving(
    bundle: Path, *flags: str, port: str = "0"
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server's address, which ends in a slash, and its process."""
    command = [sys.executable, "-m", "vizsla.cli", "serve", str(bundle), "--port", port, *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        said = ""
        for line in process.stdout:
            said += line
            if found := re.match(r"address\s+(http://\S+)", line):
                yield found[1] + "/", process
                return
        raise AssertionError(f"the server gave no address: {said}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def address(finished_run: RunFolder) -> Iterator[str]:
    """A server that all may use. Its requests are at most MOST_BYTES."""
    with _serving(finished_run.bundle, "--body-mb", str(MOST_BYTES / 2**20)) as (address, _):
        yield address


@pytest.fixture(scope="module")
def pictures(dogs: DrawnDataset) -> list[Path]:
    return sorted((dogs.folder / "test").rglob("*.jpg"))


def _asked(address: str, picture: Path) -> dict[str, Any]:
    """What the API answers for a picture."""
    headers = {"Content-Type": "image/jpeg"}
    request = Request(f"{address}v1/predict?top_k=5", picture.read_bytes(), headers)
    with urlopen(request) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def _choose(page: Page, *paths: Path) -> None:
    page.locator("#files").set_input_files([*paths])


def _catch_choosers(page: Page) -> None:
    """From now on; `expect_file_chooser` alone may begin after a key that is pressed at once."""
    page.on("filechooser", lambda chooser: None)


def _over(page: Page, progress: str) -> None:
    expect(page.locator("#progress")).to_have_text(progress)


def _card(page: Page, name: str) -> Locator:
    return page.locator(".card", has=page.get_by_role("heading", name=name, exact=True))


def _shown(card: Locator) -> list[tuple[str, float]]:
    """Exact class and percentage of each of a card's bars."""
    return [
        (
            str(bar.locator(".class").get_attribute("title")),
            float(bar.locator(".percent").inner_text().strip("<>%")),
        )
        for bar in card.locator(".bars > li").all()
    ]


def _overflow_px(page: Page) -> int:
    return int(page.evaluate("() => document.documentElement.scrollWidth - innerWidth"))


def test_a_chosen_picture_shows_the_answer_of_the_api(
    open_page: Any, address: str, pictures: list[Path]
) -> None:
    page = open_page.at(address)
    answer = _asked(address, pictures[0])
    _choose(page, pictures[0])
    _over(page, "1 of 1")
    card = _card(page, pictures[0].name)
    shown = _shown(card)
    assert [name for name, _ in shown] == [one["class_name"] for one in answer["top_k"]]
    for (_, percent), one in zip(shown, answer["top_k"], strict=True):
        assert percent == pytest.approx(100 * one["confidence"], abs=0.06)
    widths = card.locator(".track span").evaluate_all(
        "(all) => all.map((one) => one.offsetWidth / one.parentElement.offsetWidth)"
    )
    assert widths == pytest.approx([one["confidence"] for one in answer["top_k"]], abs=0.02)
    best = card.locator(".bars .class").first
    expect(best).to_contain_text(answer["class_name"].replace("_", " "))
    expect(best.locator(".unsure")).to_have_count(int(answer["confidence"] < 0.5))
    expect(card.locator(".times")).to_have_text(re.compile(r"^\d+ ms in the server, \d+ ms in all"))
    expect(card.locator("img")).to_have_js_property("naturalWidth", 64)


def test_several_pictures_keep_their_order_and_go_out_four_at_a_time(
    open_page: Any, address: str, pictures: list[Path]
) -> None:
    page = open_page.at(address)
    expect(page.locator("#facts")).to_be_visible()
    held: list[Route] = []
    page.route("**/v1/predict*", lambda route: held.append(route))
    chosen = [*reversed(pictures[:7])]
    _choose(page, *chosen)
    page.wait_for_timeout(300)
    assert len(held) == 4
    _over(page, "0 of 7")
    for done in range(1, 8):
        held.pop().continue_()  # the last is answered first
        _over(page, f"{done} of 7")
        page.wait_for_timeout(20)
        assert len(held) == min(4, 7 - done)
    assert page.locator(".card h3").all_inner_texts() == [path.name for path in chosen]
    for path in chosen:
        assert _shown(_card(page, path.name))[0][0] == _asked(address, path)["class_name"]


IN_A_TRANSFER = """([encoded, name, type]) => {
    const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, { type }));
    return transfer;
}"""


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_pictures_can_be_dropped_anywhere_and_pasted(
    open_page: Any, address: str, pictures: list[Path], way: str
) -> None:
    page = open_page.at(address)
    encoded = base64.b64encode(pictures[3].read_bytes()).decode()
    transfer = page.evaluate_handle(IN_A_TRANSFER, [encoded, "from outside.jpg", "image/jpeg"])
    if way == "drop":
        page.dispatch_event("#honesty", "dragover", {"dataTransfer": transfer})
        expect(page.locator("html")).to_have_class("dragging")
        page.dispatch_event("#honesty", "drop", {"dataTransfer": transfer})
        expect(page.locator("html")).not_to_have_class("dragging")
    else:
        page.evaluate(
            """(clipboardData) => document.body.dispatchEvent(new ClipboardEvent(
                "paste", { clipboardData, bubbles: true, cancelable: true }))""",
            transfer,
        )
    _over(page, "1 of 1")
    answer = _asked(address, pictures[3])
    assert _shown(_card(page, "from outside.jpg"))[0][0] == answer["class_name"]


def test_what_is_no_picture_gets_the_words_of_the_server_and_costs_no_other_its_answer(
    open_page: Any, address: str, pictures: list[Path], tmp_path: Path
) -> None:
    text, phone, empty = (tmp_path / name for name in ("notes.txt", "IMG_1.HEIC", "empty.png"))
    text.write_text('{"images": ["no picture"]}')
    phone.write_bytes(b"\0\0\0\x18ftypheic" + bytes(300))
    empty.touch()
    open_page.expected += ["status of 415", "status of 422", "status of 400"]
    page = open_page.at(address)
    answers: dict[str, str] = {}

    def note(response: Any) -> None:
        if response.status >= 400:
            answers[response.request.headers["content-type"]] = response.json()["error"]["message"]

    page.on("response", note)
    _choose(page, text, pictures[0], phone, empty)
    _over(page, "4 of 4, 3 failed")
    assert len(_shown(_card(page, pictures[0].name))) == 3
    said = [_card(page, path.name).locator(".state").inner_text() for path in (text, phone, empty)]
    for message in answers.values():
        assert any(words.startswith(message) for words in said)
    assert "JPEG or PNG" in said[0]
    assert "JPEG or PNG" in said[1]
    expect(_card(page, text.name).locator(".thumb")).to_have_text("TXT")
    expect(page.get_by_role("button", name="Try again")).to_have_count(0)  # it would not help


def test_a_file_over_the_limit_is_scaled_down_before_it_is_sent(
    open_page: Any, address: str, pictures: list[Path], tmp_path: Path
) -> None:
    large, text = tmp_path / "large.png", tmp_path / "large.txt"
    with Image.open(pictures[0]) as picture:
        picture.resize((3200, 1600)).save(large)
    text.write_text("no picture " * MOST_BYTES)
    assert large.stat().st_size > MOST_BYTES
    page = open_page.at(address)
    sent: list[bytes] = []

    def look(route: Route) -> None:
        body = route.request.post_data_buffer
        assert body is not None
        sent.append(body)
        small = json.dumps(_asked(address, pictures[0]))
        route.fulfill(status=200, content_type="application/json", body=small)

    page.route("**/v1/predict*", look)
    _choose(page, large, text)
    _over(page, "2 of 2, 1 failed")
    expect(_card(page, "large.png").locator(".shrunk")).to_contain_text(
        "scaled down from 3200 × 1600 to 1600 × 800 pixels before it was sent"
    )
    (tmp_path / "sent").write_bytes(sent[0])
    with Image.open(tmp_path / "sent") as picture:
        assert (picture.format, picture.size) == ("JPEG", (1600, 800))
    assert len(sent) == 1
    expect(_card(page, "large.txt")).to_contain_text("the server takes at most 30 KB")


def test_all_can_be_done_by_keyboard(open_page: Any, address: str, pictures: list[Path]) -> None:
    page = open_page.at(address)
    _catch_choosers(page)
    for key in ("Enter", "Space"):
        page.reload()
        expect(page.locator("#facts")).to_be_visible()
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        expect(focused).to_have_attribute("id", "choose")
        assert focused.evaluate("(one) => getComputedStyle(one).outlineStyle") == "solid"
        with page.expect_file_chooser() as chooser:
            page.keyboard.press(key)
        chooser.value.set_files(pictures[0])
        _over(page, "1 of 1")
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name="Clear all")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator(".card")).to_have_count(0)
        expect(page.locator("#choose")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_text("The 3 classes")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#class-list li")).to_have_count(3)
    expect(page.locator("#class-list li").first).to_be_visible()


def test_a_server_that_is_gone_is_told_of_and_asked_again_by_keyboard(
    open_page: Any, finished_run: RunFolder, pictures: list[Path]
) -> None:
    open_page.expected += ["net::ERR_"]
    with ExitStack() as stack:
        address, process = stack.enter_context(_serving(finished_run.bundle))
        page = open_page.at(address)
        expect(page.locator("#facts")).to_be_visible()
        process.kill()
        process.wait()
        _choose(page, pictures[0])
        _over(page, "1 of 1, 1 failed")
        card = _card(page, pictures[0].name)
        expect(card.locator(".state")).to_contain_text("The server does not answer.")
        port = address.rstrip("/").rpartition(":")[2]
        stack.enter_context(_serving(finished_run.bundle, port=port))
        card.get_by_role("button", name="Try again").focus()
        page.keyboard.press("Enter")
        _over(page, "1 of 1")
        assert _shown(card)[0][0] == _asked(address, pictures[0])["class_name"]
        expect(card.get_by_role("button")).to_have_count(0)


@pytest.mark.parametrize("busy", [3, 4])
def test_a_busy_server_is_asked_again_three_times(
    open_page: Any, address: str, pictures: list[Path], busy: int
) -> None:
    open_page.expected.append("status of 503")
    page = open_page.at(address)
    expect(page.locator("#facts")).to_be_visible()
    page.clock.install()
    requests: list[Route] = []
    message = "256 pictures are waiting already. Try again in a second."

    def refuse(route: Route) -> None:
        requests.append(route)
        if len(requests) > busy:
            route.continue_()
            return
        body = json.dumps({"error": {"code": "overloaded", "message": message}})
        route.fulfill(status=503, headers={"Retry-After": "1"}, body=body)

    page.route("**/v1/predict*", refuse)
    _choose(page, pictures[0])
    state = _card(page, pictures[0].name).locator(".state")
    for asked in range(1, 4):
        expect(state).to_contain_text("The server is busy. Trying again in 1")
        assert len(requests) == asked
        page.clock.run_for(1000)
        page.wait_for_timeout(100)
    if busy == 4:
        expect(state).to_have_text(message)
        _over(page, "1 of 1, 1 failed")
        page.get_by_role("button", name="Try again").click()
    _over(page, "1 of 1")
    assert len(requests) == busy + 1


def test_a_token_is_asked_for_and_kept_in_the_tab_alone(
    open_page: Any, finished_run: RunFolder, pictures: list[Path], tmp_path: Path
) -> None:
    open_page.expected.append("status of 401")
    (tmp_path / "token").write_text(TOKEN)
    token_file = str(tmp_path / "token")
    with _serving(finished_run.bundle, "--token-file", token_file) as (address, _):
        page = open_page.at(address)
        field = page.get_by_label("The server wants a token")
        expect(field).to_be_focused()
        _choose(page, pictures[0])
        for wrong in ("wrong", "not Latin: ⌘"):
            field.fill(wrong)
            field.press("Enter")
            expect(page.get_by_text("The server does not know this token.")).to_be_visible()
        _over(page, "0 of 1")
        field.fill(TOKEN)
        field.press("Enter")
        _over(page, "1 of 1")
        expect(field).to_be_hidden()
        expect(page.locator("#name")).to_have_text(finished_run.path.name)
        expect(page.locator("#curl")).to_contain_text("Bearer $TOKEN")
        assert TOKEN not in page.content()
        assert page.evaluate("() => [localStorage.length, document.cookie]") == [0, ""]
        page.reload()
        _choose(page, pictures[0])
        _over(page, "1 of 1")
        other = open_page.at(address)
        expect(other.get_by_label("The server wants a token")).to_be_visible()


def test_the_head_says_what_is_served(
    open_page: Any, address: str, finished_run: RunFolder
) -> None:
    facts = json.loads((finished_run.bundle / "bundle.json").read_text())
    page = open_page.at(address)
    expect(page.locator("#name")).to_have_text(finished_run.path.name)
    expect(page).to_have_title(finished_run.path.name)
    told = page.locator("#facts").inner_text()
    test = facts["metrics"]["test"]
    for part in (
        "test_resnet", f"{100 * test['accuracy']:.1f}%", f"on {test['pictures']} pictures",
        "Test accuracy",
    ):  # fmt: skip
        assert part in told
    expect(page.locator("#honesty")).to_contain_text("to any picture whatever")
    page.get_by_text("The 3 classes").click()
    expect(page.get_by_label("Filter")).to_be_hidden()
    names = [label["name"] for label in facts["classes"]]
    items = page.locator("#class-list li").all()
    assert [item.get_attribute("title") for item in items] == names
    assert [item.inner_text() for item in items] == [
        f"{label['code']}{label['name'].replace('_', ' ')}" for label in facts["classes"]
    ]


def test_a_model_without_figures_and_with_many_classes_has_a_filter_for_them(
    open_page: Any, address: str
) -> None:
    page = open_page.at(address)

    def many(route: Route) -> None:
        content = route.fetch().json()
        content["metrics"] = {}
        content["classes"] = [
            {"label": f"{number:03d}", "class_name": f"Breed_{number}"} for number in range(21)
        ]
        route.fulfill(json=content)

    page.route("**/v1/model", many)
    page.reload()
    page.get_by_text("The 21 classes").click()
    assert "ccuracy" not in page.locator("#facts").inner_text()
    page.get_by_label("Filter").fill("breed_1")
    expect(page.locator("#filtered")).to_have_text("11 of 21")
    expect(page.locator("#class-list li:visible")).to_have_count(11)
    page.get_by_label("Filter").fill("")
    expect(page.locator("#class-list li:visible")).to_have_count(21)


def test_the_lines_for_programs_work_as_they_are(
    open_page: Any, address: str, pictures: list[Path], tmp_path: Path
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    shutil.copy(pictures[0], tmp_path / "picture.jpg")
    answer = _asked(address, pictures[0])
    page = open_page.at(address)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_text("Use it from a program").click()
    lines = []
    for button in page.locator("[data-copies]").all():
        button.click()
        expect(button).to_have_text("Copied")
        lines.append(page.evaluate("() => navigator.clipboard.readText()"))
    curl, python = lines
    done = subprocess.run(shlex.split(curl) + ["-s"], cwd=tmp_path, capture_output=True, check=True)
    assert json.loads(done.stdout)["top_k"] == answer["top_k"]
    command = [sys.executable, "-c", python]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, env=os.environ)
    assert done.stdout.decode().strip() == answer["class_name"]


def test_a_screen_reader_hears_each_answer(
    open_page: Any, address: str, pictures: list[Path]
) -> None:
    page = open_page.at(address)
    _choose(page, *pictures[:3])
    _over(page, "3 of 3")
    log = page.get_by_role("log")
    expect(log).to_have_attribute("aria-live", "polite")
    expect(page.locator("#progress")).to_have_attribute("aria-live", "polite")
    heard = log.locator("p").all_inner_texts()
    for path in pictures[:3]:
        answer = _asked(address, path)
        name = answer["class_name"].replace("_", " ")
        unsure = ", unsure" if answer["confidence"] < 0.5 else ""
        percent = f"{int(100 * answer['confidence'] + 0.5)} percent{unsure}"
        assert f"{path.name}: {name}, {percent}" in heard
    entry = _card(page, pictures[0].name).locator(".bars > li").nth(1).aria_snapshot()
    assert re.search(r"listitem: \S.* [\d.]+%", entry), entry


LUMINANCE = """(one) => {
    const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    const of = (colour) => {
        const [red, green, blue] = colour.match(/[\\d.]+/g).map((part) => linear(part / 255));
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    let ground = one;
    while (getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") {
        ground = ground.parentElement;
    }
    return [of(getComputedStyle(one).color), of(getComputedStyle(ground).backgroundColor)];
}"""
TEXTS = (
    "h1", "dt", "dd", "#choose strong", "#choose span", "#honesty", "#progress", "#clear", "h3",
    ".class", ".percent", ".unsure", ".times", ".failed .state", "summary", "#curl",
    "#class-list li", "#openapi a",
)  # fmt: skip


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_can_be_read_by_day_and_by_night(
    open_page: Any, address: str, pictures: list[Path], tmp_path: Path, dark: bool
) -> None:
    open_page.expected.append("status of 422")
    page = open_page.at(address, dark=dark)
    (tmp_path / "no.txt").write_text("no picture")
    _choose(page, pictures[0], tmp_path / "no.txt")
    _over(page, "2 of 2, 1 failed")
    # Where the model is sure of itself, the mark is put there all the same.
    page.locator(".bars .class").first.evaluate(
        """(place) => place.append(Object.assign(document.createElement("span"),
            { className: "unsure", textContent: "unsure" }))"""
    )
    for summary in page.locator("summary").all():
        summary.click()
    for selector in TEXTS:
        text, ground = page.locator(selector).first.evaluate(LUMINANCE)
        contrast = (max(text, ground) + 0.05) / (min(text, ground) + 0.05)
        assert contrast >= 4.5, f"{selector}: {contrast:.2f}"
        assert (ground < 0.05) == dark


def test_a_phone_scrolls_down_only_and_has_its_camera(
    open_page: Any, address: str, pictures: list[Path], tmp_path: Path
) -> None:
    open_page.expected.append("status of 422")
    page = open_page.at(address, PHONE, touch=True)
    _catch_choosers(page)
    long = tmp_path / f"{'a-photograph-whose-name-has-no-end' * 4}.jpg"
    shutil.copy(pictures[0], long)
    broken = tmp_path / ("z" * 120 + ".txt")
    broken.write_text("no picture")
    _choose(page, pictures[1], long, broken)
    _over(page, "3 of 3, 1 failed")
    for summary in page.locator("summary").all():
        summary.click()
    assert _overflow_px(page) == 0
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Take a photograph").click()
    camera = chooser.value.element
    assert camera.get_attribute("capture") == "environment"
    assert camera.get_attribute("accept") == "image/*"
    chooser.value.set_files(pictures[2])
    _over(page, "4 of 4, 1 failed")
    desk = open_page.at(address, WIDE)
    expect(desk.locator("#choose")).to_be_visible()
    expect(desk.locator("#photograph")).to_be_hidden()
    assert _overflow_px(desk) == 0


def test_what_is_cleared_stays_away_when_its_answer_comes(
    open_page: Any, address: str, pictures: list[Path]
) -> None:
    page = open_page.at(address)
    expect(page.locator("#facts")).to_be_visible()
    held: list[Route] = []
    page.route("**/v1/predict*", lambda route: held.append(route))
    _choose(page, *pictures[:6])
    page.wait_for_timeout(200)
    page.get_by_role("button", name="Clear all").click()
    page.unroute("**/v1/predict*")
    _choose(page, pictures[7])
    _over(page, "1 of 1")
    expect(page.locator(".card")).to_have_count(1)
    expect(page.get_by_role("log").locator("p")).to_have_count(1)
    assert len(held) == 4


def test_a_page_that_came_before_its_server_could_answer_goes_on_later(
    open_page: Any, address: str, pictures: list[Path]
) -> None:
    open_page.expected.append("net::ERR_")
    page = open_page.at(address)
    page.route("**/v1/model", lambda route: route.abort())
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer.")
    page.unroute("**/v1/model")
    page.get_by_role("alert").get_by_role("button", name="Try again").click()
    expect(page.locator("#facts")).to_be_visible()
    expect(page.get_by_role("alert")).to_be_hidden()


def test_the_page_is_small() -> None:
    import vizsla.serving

    folder = Path(vizsla.serving.__path__[0]) / "page"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 30_000
