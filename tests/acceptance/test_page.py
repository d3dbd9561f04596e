"""The page in a real browser: live, with charts, without scripts, on a small screen, by keyboard, with hostile content."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Literal, NamedTuple
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, expect

from tests.browsing import FAINT, INK, PATIENCE_MS, Seen, chromium, visit
from tests.servers import RedisServer, redis_binaries
from tests.serving import Served, served, settings_for
from thermocline.archiver.worker import Worker
from thermocline.ingest.append import Client
from thermocline.serve.access import COOKIE
from thermocline.serve.tokens import create
from thermocline.tiers.opening import open_tiers

DAY_US = 86_400_000_000
SCRIPT = "<script>window.hacked=1</script><img src=x onerror='window.hacked=2'><svg onload=alert(3)>"
HOSTILE = (
    SCRIPT,
    "javascript:alert(1) [click](javascript:alert(2)) <a href='javascript:alert(4)'>x</a>",
    "\x1b[2J\x1b]0;title\x07\x1b[31mred",
    "abc\u202egnp.exe\u202c \u2066x\u2069 \u200b שלום",
    '{"a": [1, 2, {"b": ',
    "y" * 1_000_000,
    "</pre></li></ol><h1>broken out</h1>{{ 7 * 7 }}<!--",
)
HOSTILE_NAME = "evil\"'><img src=x>/..?&#%"

expect.set_options(timeout=PATIENCE_MS)


class Site(NamedTuple):
    """What the tests look at."""

    server: Served
    browser: Browser

    def append(self, *events: dict[str, object]) -> None:
        self.server.service.client.append_many(list(events))

    def address(self, conversation: str, more: str = "") -> str:
        return f"{self.server.url}/conversation?id={quote(conversation, safe='')}{more}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A store with events in all three tiers, served, and one browser for all tests."""
    folder = tmp_path_factory.mktemp("page")
    redis = RedisServer(redis_binaries()[-1], folder / "redis")
    redis.start()
    settings = settings_for(redis.url, folder / "data")
    now_us = time.time_ns() // 1000
    try:
        with open_tiers(settings) as tiers, Client(settings, tiers=tiers) as client:
            old = [event("old", "message.user", f"said {n}", timestamp=now_us - 30 * DAY_US + n) for n in range(60)]
            client.append_many([*old, event("old", "error", "it broke", timestamp=now_us - 30 * DAY_US + 99)])
            client.append_many([event("warm", "message.user", f"word {n}") for n in range(3)])
            Worker(tiers).once()
        with served(settings) as server, chromium() as browser:
            found = Site(server, browser)
            found.append(*talk("talk"))
            found.append(
                *(event(HOSTILE_NAME, "message.user", text, metadata={"x": text[:900]}) for text in HOSTILE),
                event(HOSTILE_NAME, "note", "t", tool_name=SCRIPT[:90], status=SCRIPT[:90], agent_id=SCRIPT[:90]),
            )
            yield found
    finally:
        redis.stop()


@pytest.fixture
def seen(site: Site) -> Iterator[Seen]:
    """A window in which nothing may go wrong."""
    with visit(site.browser, site.server.url) as found:
        yield found
    assert found.problems == []
    assert [answer for answer in found.answers if answer[0] >= 400] == []


def event(conversation: str, event_type: str, content: str, **more: object) -> dict[str, object]:
    return {"conversation_id": conversation, "event_type": event_type, "content": content, **more}


def talk(name: str) -> list[dict[str, object]]:
    return [
        event(name, "message.user", "Please cancel reservation 8JX2WO"),
        event(name, "message.assistant", "One moment.", model="m-1", input_tokens=120, output_tokens=8, cost_usd=0.25),
        event(name, "tool.call", '{"reservation_id":"8JX2WO","deep":{"n":17}}', tool_name="cancel_reservation"),
        event(name, "tool.result", "Error: not refundable", tool_name="cancel_reservation", status="error", duration_ms=1250.0),
    ]


def test_the_overview_counts_tiers_and_follows_appends_without_being_loaded_again(site: Site, seen: Seen) -> None:
    page = seen.page
    page.goto(site.server.url)
    hot = page.locator("#tier-hot [data-events]")
    before = int(hot.get_attribute("data-events") or "")
    assert before >= 4
    expect(page.locator("#tier-warm [data-events]")).to_have_text("3")
    assert 0 < int(page.locator("#tier-cold [data-events]").get_attribute("data-events") or "") < 61
    page.evaluate("window.sameDocument = true")
    site.append(event("counted", "t", "1"), event("counted", "t", "2"))
    expect(hot).to_have_attribute("data-events", str(before + 2))
    assert page.evaluate("window.sameDocument")
    sums = page.locator("section", has=page.get_by_role("heading", name="Conservation"))
    expect(sums).to_contain_text("adds up")
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
    expect(page.locator("section", has=page.get_by_role("heading", name="Cost"))).to_contain_text("$0.2500")


def test_the_chart_of_events_is_drawn_in_light_and_dark(site: Site, seen: Seen) -> None:
    page = seen.page
    page.goto(f"{site.server.url}/?span=minutes")
    canvas = page.locator("#events-chart canvas")
    expect(canvas).to_be_visible()
    assert canvas.evaluate(INK) > 2
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Change between light and dark").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    assert page.locator("#events-chart canvas").evaluate(INK) > 2
    page.reload()
    assert page.locator("html").get_attribute("data-theme") == "dark"


def test_events_of_a_conversation_appear_as_they_are_appended(site: Site, seen: Seen) -> None:
    page = seen.page
    page.goto(site.address("talk"))
    expect(page.locator("#seq-3 pre")).to_contain_text('"reservation_id": "8JX2WO"')
    expect(page.locator("#seq-4")).to_contain_text("1.2 s")
    expect(page.locator("#following")).to_contain_text("follows live")
    site.append(event("talk", "message.assistant", "I am sorry, it cannot be cancelled."))
    expect(page.locator("#seq-5")).to_contain_text("cannot be cancelled")
    expect(page.locator("#seq-5 .tier-name")).to_have_text("hot")
    expect(page.locator("#total")).to_have_text("5")
    assert page.locator("#entries > li").count() == 5


def test_an_archived_conversation_shows_its_tiers_and_what_was_sampled_out(site: Site, seen: Seen) -> None:
    page = seen.page
    page.goto(site.address("old"))
    there, gone = page.locator(".entry.t-cold").count(), page.locator(".gap").all_inner_texts()
    assert there > 0
    assert gone
    assert all("sampled out" in text for text in gone)
    rows = site.server.service.store.sql("SELECT count(*) FROM events WHERE conversation_id = 'old'").fetchone()
    assert rows == (there,)
    expect(page.locator("#total")).to_have_text("61")
    expect(page.locator("#seq-61")).to_contain_text("it broke")


def test_hostile_content_is_shown_and_does_nothing(site: Site, seen: Seen) -> None:
    page = seen.page
    page.goto(site.address(HOSTILE_NAME))
    expect(page.locator("#seq-1")).to_contain_text("<script>window.hacked=1</script>")
    expect(page.locator("#seq-3")).to_contain_text("␛[2J")
    expect(page.locator("#seq-4")).to_contain_text("⟨U+202E⟩gnp.exe")
    expect(page.locator("#seq-6")).to_contain_text("980,000 more characters")
    expect(page.locator("#seq-7")).to_contain_text("{{ 7 * 7 }}")
    for other in ("/conversations", "/conversations?within=content&q=hacked", "/"):
        page.goto(site.server.url + other)
    page.get_by_role("link", name="Conversations").click()
    page.get_by_role("link", name="evil").click()
    expect(page.locator("#seq-8")).to_be_visible()
    site.append(event(HOSTILE_NAME, "message.user", SCRIPT))
    expect(page.locator("#seq-9")).to_contain_text("onerror")
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img, main script, a[href^='javascript']").count() == 0


def test_sql_runs_by_keyboard_with_its_coverage_a_chart_and_errors_as_text(site: Site, seen: Seen) -> None:
    page = seen.page
    page.goto(f"{site.server.url}/sql")
    page.keyboard.press("/")
    page.keyboard.type("SELECT event_type, count(*) AS events FROM events GROUP BY ALL ORDER BY events DESC")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#coverage")).to_contain_text("hot")
    expect(page.locator("#result")).to_contain_text("message.user")
    assert page.locator("#result-chart canvas").evaluate(INK) > 2
    for sql, told in (("SELECT <b>nothing</b>", "Error"), ("SELECT * FROM read_csv('/etc/passwd')", "")):
        page.fill("#sql", sql)
        page.keyboard.press("Control+Enter")
        expect(page.get_by_role("alert")).to_contain_text(told)
        assert "root:" not in page.content()
        page.fill("#sql", "SELECT 42 AS answer")
        page.keyboard.press("Control+Enter")
        expect(page.locator("#result td")).to_have_text("42")


def test_everything_can_be_reached_by_keyboard_and_shows_its_focus(site: Site, seen: Seen) -> None:
    page = seen.page
    page.goto(f"{site.server.url}/conversations")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("tal")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=tal*")
    page.keyboard.press("j")
    expect(page.get_by_role("link", name="talk")).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url("**/conversation?*")
    page.keyboard.press("j")
    expect(page.locator("#seq-1")).to_be_focused()


def test_without_scripts_every_view_can_be_read_and_sql_be_asked(site: Site) -> None:
    with visit(site.browser, site.server.url, java_script_enabled=False) as seen:
        page = seen.page
        page.goto(site.server.url)
        expect(page.locator("#tier-cold")).to_contain_text("events")
        page.get_by_role("link", name="Conversations").click()
        page.get_by_role("searchbox").fill("refundable")
        page.get_by_label("what was said").check()
        page.get_by_role("button", name="Search").click()
        expect(page.locator("mark")).to_have_text("refundable")
        page.get_by_role("link", name="talk").click()
        expect(page.locator("#seq-4")).to_contain_text("not refundable")
        page.get_by_role("link", name="SQL").click()
        columns = page.locator("#relations dd").first
        expect(columns).to_be_hidden()
        page.get_by_text("relations and their columns").click()
        expect(columns).to_contain_text("sample_rate double")
        expect(page.locator("#relations")).to_contain_text("tool_stats")
        page.locator("#sql").fill("SELECT 6 * 7 AS answer")
        page.get_by_role("button", name="Run").click()
        expect(page.locator("#result td")).to_have_text("42")
        assert seen.problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_in_light_and_dark(site: Site, scheme: Literal["light", "dark"]) -> None:
    with visit(site.browser, site.server.url, color_scheme=scheme) as seen:
        views = ("/", "/conversations", "/conversations?within=content&q=reservation", "/sql?q=SELECT%201", "/login", "/sql?q=")
        for address in (*(f"{site.server.url}{view}" for view in views), site.address("talk"), site.address("old")):
            seen.page.goto(address)
            if "/sql" in address:
                seen.page.locator("#relations summary").click()
            assert seen.page.evaluate(FAINT) == [], address


def test_no_view_scrolls_sideways_on_a_small_screen(site: Site) -> None:
    with visit(site.browser, site.server.url, viewport={"width": 400, "height": 800}, color_scheme="dark") as seen:
        page = seen.page
        views = ("/", "/conversations", "/conversations?within=content&q=reservation", "/sql?q=SELECT%201", "/login")
        for address in (*(site.server.url + view for view in views), site.address("talk"), site.address(HOSTILE_NAME)):
            page.goto(address)
            assert page.evaluate("document.documentElement.scrollWidth") <= 400, address
        assert seen.problems == []


def test_with_tokens_the_page_asks_for_one_and_keeps_it_from_scripts(
    site: Site, tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = site.server.service.settings
    other = settings.model_copy(update={"namespace": "closed", "data_dir": tmp_path_factory.mktemp("closed")})
    may = create(other.data_dir, "reader", ["query"]).text
    may_not = create(other.data_dir, "writer", ["append"]).text
    with served(other) as server, visit(site.browser, server.url) as seen:
        page = seen.page
        page.goto(f"{server.url}/sql?q=SELECT+1")
        assert page.url.startswith(f"{server.url}/login")
        for wrong, told in (("tc_wrong", "unknown"), (may_not, "needs the scope"), ("  ", "no token was given")):
            page.get_by_label("A token").fill(wrong)
            page.get_by_role("button", name="Sign in").click()
            expect(page.get_by_role("alert")).to_contain_text(told)
        page.get_by_label("A token").fill(may)
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator("#sql")).to_have_value("SELECT 1")
        [cookie] = seen.context.cookies()
        assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"]) == (COOKIE, True, "Strict")
        assert page.evaluate("document.cookie") == ""
        page.get_by_role("button", name="Run").click()
        expect(page.locator("#result td")).to_have_text("1")
        audit = (other.namespace_dir / "audit.ndjson").read_text()
        assert "SELECT 1" in audit
        assert not any(one in audit for one in (may, may_not))
        page.get_by_role("button", name="Sign out").click()
        page.goto(server.url)
        assert page.url.startswith(f"{server.url}/login")
