"""The page at `/` in a real browser, and the figures behind it."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from browser import CHROMIUM, Page, open_page
from serve_fixtures import REPLY, ScriptedEngine, Server, running_server, scripted_service

from engine.config import EngineConfig
from engine.core.request import StepOutput
from engine.serve.opening import open_service
from engine.serve.service import Service

MARKUP = "<img src=x onerror=\"document.title='broken'\"><b>bold</b> "

browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")


def service_that_writes_markup() -> Service:
    service = scripted_service()
    return replace(service, engine=ScriptedEngine(service.tokenizer, MARKUP))


class SteadyEngine(ScriptedEngine):
    """At most a thousand steps a second."""

    def step(self) -> list[StepOutput]:
        time.sleep(0.001)
        return super().step()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with open_page(tmp_path / "profile") as page:
        yield page


def visit(page: Page, server: Server) -> None:
    page.call("Page.navigate", url=f"{server.url}/")
    page.wait_for("document.readyState === 'complete' && document.getElementById('ask') !== null")


def ask(page: Page, text: str) -> None:
    """Type into the chat box and send with the keyboard, once the page lets one send."""
    page.wait_for("!document.getElementById('send').disabled")
    page.evaluate("document.getElementById('text').focus()")
    page.write(text)
    page.press("Enter")


def shown(page: Page, selector: str) -> str:
    found = page.evaluate(f"[...document.querySelectorAll({selector!r})].map(node => node.innerText).join('|')")
    assert isinstance(found, str)
    return found


def test_status_tells_what_is_loaded_and_what_it_holds() -> None:
    config = EngineConfig(num_blocks=64, max_running=4)
    with running_server(lambda: open_service("synthetic:tiny", "int8", config)) as server:
        server.wait_until(lambda: server.session.state == "ready")
        server.post("/v1/completions", {"prompt": "abcd" * 16, "max_tokens": 5, "temperature": 0})
        status = httpx.get(f"{server.url}/status").json()
    engine = server.session.service.engine  # type: ignore[union-attr]
    assert (status["state"], status["error"], status["name"]) == ("ready", None, "synthetic:tiny")
    assert status["identity"]["quant"] == "int8"
    stats = status["stats"]
    assert (stats["prompt_tokens"], stats["prefilled_tokens"]) == (64, 64)
    assert 1 <= stats["generated_tokens"] <= 5
    kv, state = engine._runner._cache.kv, engine._memory.slots.state  # type: ignore[attr-defined]
    assert stats["kv_bytes"] == sum(layer.keys.nbytes + layer.values.nbytes for layer in kv.values())
    assert stats["state_bytes"] == state.nbytes


def test_a_page_that_cannot_show_figures_says_why() -> None:
    def fail() -> Service:
        raise OSError("the disk is gone")

    with running_server(fail) as server:
        server.wait_until(lambda: server.session.state == "failed")
        assert httpx.get(f"{server.url}/").status_code == 200
        status = httpx.get(f"{server.url}/status").json()
    assert status.pop("seconds") >= 0
    assert status == {"state": "failed", "error": "the disk is gone"}


@browser
@pytest.mark.chromium
def test_the_page_shows_figures_and_a_streamed_answer_behind_a_key(page: Page) -> None:
    config = EngineConfig(num_blocks=256, max_running=4)
    with running_server(lambda: open_service("synthetic:tiny", "int8", config), api_keys=["secret"]) as server:
        server.wait_until(lambda: server.session.state == "ready")
        visit(page, server)
        page.wait_for("!document.getElementById('keys').hidden && document.activeElement.id === 'key'")
        page.write("secret")
        page.press("Enter")
        ask(page, "What is 7 times 6?")
        # The first answer also waits for kernels to be compiled, where that has not happened on this machine before.
        page.wait_for("document.querySelector('.assistant p').textContent.includes('prompt tokens')", seconds=200)
        page.wait_for("Number(document.getElementById('decode-text').textContent.match(/peak ([0-9.]+)/)?.[1]) > 0")
        assert "of them cached" in shown(page, ".assistant p")
        # Weights are random, and so is what they say: white space alone, now and then.
        assert page.evaluate("document.querySelectorAll('.assistant pre').length") > 0
        assert "synthetic:tiny" in shown(page, "h1")
        assert "level int8" in shown(page, "#facts")
        memory = shown(page, "#classes tr")
        assert all(word in memory for word in ("weights", "expert", "KV blocks", "of 256", "state slots", "snapshots"))
        assert "computed" in shown(page, "#sources tr")
        assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
    # The first request for the figures had no key, as it should.
    assert [message for message in page.messages if "401" not in message] == []


@browser
@pytest.mark.chromium
def test_what_a_model_writes_stays_text(page: Page) -> None:
    with running_server(service_that_writes_markup) as server:
        visit(page, server)
        page.evaluate("document.getElementById('limit').value = 2 * " + str(len(MARKUP)))
        ask(page, "<i>slanted</i>")
        page.wait_for("document.querySelector('.assistant p').textContent.includes('ended: length')")
        assert page.evaluate("document.querySelector('.assistant pre').textContent") == 2 * MARKUP
        assert page.evaluate("document.querySelectorAll('#log img, #log b, #log i').length") == 0
        assert page.evaluate("document.title") == "scripted"
    assert page.messages == []


@browser
@pytest.mark.chromium
def test_an_answer_can_be_stopped_and_errors_are_shown(page: Page) -> None:
    service = scripted_service()
    service = replace(service, engine=SteadyEngine(service.tokenizer, REPLY), max_context=100_000)
    with running_server(lambda: service) as server:
        visit(page, server)
        page.evaluate("document.getElementById('limit').value = 90000")
        ask(page, "go on for ever")
        page.wait_for("document.querySelector('.assistant pre').textContent.length > 10")
        page.evaluate("document.getElementById('stop').click()")
        page.wait_for("document.querySelector('.assistant p').textContent === 'stopped'")
        server.wait_until(lambda: not service.engine.has_work)
        ask(page, "refuse this")
        page.wait_for("document.querySelector('.assistant p.error') !== null")
        assert "the prompt does not fit the cache" in shown(page, ".assistant p.error")
        ask(page, "go on again")
        page.wait_for("[...document.querySelectorAll('.assistant pre')].at(-1).textContent.length > 10")
        page.evaluate("document.getElementById('clear').click()")
        page.wait_for("!document.getElementById('send').disabled")
        assert page.evaluate("[talk.length, document.getElementById('log').childNodes.length]") == [0, 0]


@browser
@pytest.mark.chromium
def test_a_model_without_a_template_continues_text(page: Page) -> None:
    with running_server(lambda: scripted_service(template=None)) as server:
        visit(page, server)
        ask(page, "once")
        page.wait_for(
            "document.querySelector('.assistant p').textContent.includes('4 prompt tokens, 3 of them cached')"
        )
        assert shown(page, ".assistant pre").startswith("héllo 🙂 world, ")
        assert "no chat template" in shown(page, "#hint")
