"""The page in headless Chromium, against a real server with the default model."""

import json
import re
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from types import SimpleNamespace

import pytest

from lightvllm.config import DEFAULT_MODEL, ServerConfig
from lightvllm.engine.trace import StepTrace
from tests.server.web.serving import CHROMIUM, free_port, is_listening, serving, wait_until

if CHROMIUM is None:
    pytest.skip("no Chromium on this machine", allow_module_level=True)
playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import Browser, Page, expect  # noqa: E402


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving() as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens pages that may not complain: every console error and every exception fails the test."""
    complaints: list[str] = []
    contexts = []

    def open_at(address: str, **options: object) -> Page:
        context = browser.new_context(**options)  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.goto(address)
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture
def page(server: str, open_page: Callable[..., Page]) -> Page:
    page = open_page(server)
    expect(page.locator("#demo")).to_be_visible()
    return page


def ask(page: Page, question: str) -> None:
    page.fill("#prompt", question)
    page.click("#send")


def set_slider(page: Page, name: str, value: float) -> None:
    page.eval_on_selector(
        f"#slider-{name}", "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }", value
    )


def test_a_question_is_answered_with_sql_and_its_rows(page: Page) -> None:
    assert page.locator("#model option").count() == 1
    ask(page, "How many cheeses are there?")
    expect(page.locator("table.rows td")).to_have_text("18")
    expect(page.locator("article .text")).to_have_text(re.compile(r"^SELECT COUNT\(\*\) FROM cheeses$"))
    expect(page.locator(".answer-figures")).to_have_text(
        re.compile(r"first token after \d+ ms · \d+ tokens/s · \d+ prompt.* \d+ answer tokens · ended by itself")
    )
    assert page.eval_on_selector(".answer .swatch", "dot => dot.style.background").startswith(("hsl", "rgb"))


def test_tokens_show_what_else_they_could_have_been(page: Page) -> None:
    ask(page, "How many cheeses are there?")
    expect(page.locator("table.rows")).to_be_visible()
    tokens = page.locator(".tokens .token")
    assert "".join(tokens.all_text_contents()).startswith("SELECT COUNT(*) FROM cheeses")
    tokens.nth(0).hover()
    alternatives = page.locator("#alternatives li")
    expect(alternatives).to_have_count(5)
    expect(page.locator("#alternatives .chosen")).to_contain_text("SELECT")
    tokens.nth(0).focus()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(page.locator("#alternatives .chosen")).to_contain_text("COUNT")
    page.keyboard.press("Escape")
    expect(page.locator("#alternatives")).to_be_hidden()


def test_stop_ends_the_answer_and_the_engine_s_work(page: Page) -> None:
    page.check("input[value=completion]")
    set_slider(page, "temperature", 2)  # what it says then has no end
    set_slider(page, "max_tokens", 1024)
    ask(page, "SELECT")
    tokens = page.locator(".tokens .token")
    expect(tokens.nth(5)).to_be_attached()
    expect(page.locator("#num-running")).to_have_text("1")
    in_engine = page.locator("#running .swatch").evaluate("dot => dot.style.background")
    assert page.locator(".answer .swatch").evaluate("dot => dot.style.background") == in_engine
    page.click("#stop")
    expect(page.locator(".answer-figures")).to_contain_text("stopped")
    expect(page.locator("#num-running")).to_have_text("0", timeout=3000)
    expect(page.locator("#events li").first).to_contain_text("aborted")
    expect(page.locator("#send")).to_be_enabled()
    assert tokens.count() < 1000


def test_a_schema_shapes_the_answer_and_a_bad_one_is_said(page: Page) -> None:
    page.click("#schema-box summary")
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    page.fill("#schema", json.dumps(schema))
    ask(page, "How many cheeses are there?")
    expect(page.locator(".answer-figures")).to_contain_text("ended by itself")
    assert isinstance(json.loads(page.locator("article .text").text_content() or "")["n"], int)
    page.fill("#schema", "{")
    ask(page, "How many cheeses are there?")
    expect(page.locator("article .error").first).to_contain_text("The schema is not JSON")


def test_what_is_written_stays_text(page: Page) -> None:
    nasty = "<img src=x onerror='document.title=1'><script>document.title=2</script>"
    ask(page, nasty)
    expect(page.locator(".answer-figures")).not_to_be_empty()
    expect(page.locator(".question")).to_have_text(nasty)
    assert page.locator("#conversation img, #conversation script").count() == 0
    assert page.title() == "LightvLLM"


def test_the_engine_is_seen_at_work(page: Page) -> None:
    steps, blocks = page.locator("#steps"), page.locator("#blocks")
    page.click("#load")
    expect(steps).to_have_attribute("aria-label", re.compile(r"^Step \d+, [\d.]+ ms: .*the next token of [2-8]$"))
    expect(blocks).to_have_attribute(
        "aria-label", re.compile(r"^[1-9]\d* of 91 blocks in use, [1-9]\d* of them shared")
    )
    assert page.locator("#running li").count() >= 2
    assert num_colors(page, "#steps") > 3
    expect(page.locator("#events")).to_contain_text("were cached")
    blocks.hover(position={"x": 3, "y": 3})
    expect(page.locator("#block-text")).to_have_text(re.compile(r"^Block 0: "))
    expect(page.locator("#load")).to_be_enabled(timeout=30_000)
    expect(blocks).to_have_attribute("aria-label", re.compile(r"^0 of 91 blocks in use.* [1-9]\d* kept for later"))
    expect(page.locator("#figures")).to_contain_text("found in the prefix cache")
    assert num_colors(page, "#blocks") > 1


def num_colors(page: Page, canvas: str) -> int:
    script = """canvas => {
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return new Set(new Uint32Array(data.buffer)).size;
    }"""
    return page.eval_on_selector(canvas, script)


def test_slow_motion_shows_every_step_and_a_pause_none(page: Page) -> None:
    page.click("#speed-slow")
    expect(page.locator("#speed-slow")).to_have_attribute("aria-pressed", "true")
    page.click("#load")
    # Recorded in the page, where no change goes by unseen.
    page.evaluate(
        """() => {
            const steps = document.querySelector("#steps");
            const record = () => {
                const step = /^Step (\\d+),/.exec(steps.ariaLabel);
                if (step) shown.push(Number(step[1]));
            };
            window.shown = [];
            new MutationObserver(record).observe(steps, { attributeFilter: ["aria-label"] });
        }"""
    )

    def shown() -> list[int]:
        return list(page.evaluate("shown"))

    wait_until(lambda: len(set(shown())) > 5, 30)
    first, *others = dict.fromkeys(shown())
    assert others == list(range(first + 1, first + 1 + len(others))), "one after the other"
    page.click("#speed-pause")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")  # draw the last
    frozen = shown()[-1]
    page.wait_for_timeout(600)
    assert shown()[-1] == frozen
    page.click("#speed-live")
    expect(page.locator("#load")).to_be_enabled(timeout=30_000)
    page.click("#load")
    wait_until(lambda: shown()[-1] > frozen + 3, 15)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(server: str, open_page: Callable[..., Page], scheme: str) -> None:
    page = open_page(server, viewport={"width": 390, "height": 800}, color_scheme=scheme)
    expect(page.locator("#demo")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(255, 255, 255)") == (scheme == "light")
    unlabelled = (
        "[...document.querySelectorAll('input, select, textarea')].filter(e => !e.labels.length && !e.ariaLabel)"
    )
    assert page.evaluate(f"{unlabelled}.length") == 0


class Idle:
    """An engine that does nothing, which can be watched all the same."""

    config = SimpleNamespace(model=str(DEFAULT_MODEL), enable_sleep_mode=False)
    max_model_len = 4096

    async def watch(self) -> AsyncGenerator[StepTrace, None]:
        return
        yield


def test_a_key_is_asked_for_and_kept_for_the_session(browser: Browser) -> None:
    import uvicorn

    from lightvllm.server.app import build_app

    port = free_port()
    config = ServerConfig(port=port, api_key=["open sesame"])
    app = build_app(Idle(), config, model_names=["some-model"])  # type: ignore[arg-type]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    context = browser.new_context()
    try:
        wait_until(lambda: is_listening(port), 20)
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        expect(page.locator("#server-error")).to_have_text("This server asks for an API key.")
        page.fill("#api-key", "open sesame")
        page.keyboard.press("Tab")
        expect(page.locator("#model")).to_have_text("some-model")
        expect(page.locator("#server-error")).to_be_hidden()
        page.reload()
        expect(page.locator("#model")).to_have_text("some-model")
        assert page.evaluate("localStorage.length") == 0
    finally:
        context.close()
        server.should_exit = True
        thread.join(10)
