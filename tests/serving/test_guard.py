"""What stands before every request: token, host, origin, rate, time; and the work behind it."""

import asyncio
import threading

import pytest
import uvicorn
from uvicorn.server import ServerState

from bdbnet.serving.errors import RequestError
from bdbnet.serving.guard import Guard, Limits
from bdbnet.serving.protocol import TimedProtocol
from bdbnet.serving.work import WorkPool

TOKEN = "correct horse battery"
HTML = {"Accept": "text/html,*/*"}


@pytest.fixture(scope="module")
def guarded(make_client, stored):
    """A client without a token of a server that has one, under a name that is not this machine's."""
    return make_client(stored, token=TOKEN, host="http://gallery.example")


@pytest.fixture(autouse=True)
def no_cookies(guarded):
    guarded.cookies.clear()


# Token


@pytest.mark.parametrize("path", ["/", "/api/info", "/image/0", "/openapi.json", "/docs", "/static/app.js", "/nothing"])
def test_nothing_is_given_without_the_token(guarded, path):
    answer = guarded.get(path)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json() == {"error": "a token is needed: Authorization: Bearer TOKEN"}


@pytest.mark.parametrize("given", ["wrong", TOKEN[:-1], f"{TOKEN}x", TOKEN.upper(), "", "ü"])
def test_a_wrong_token(guarded, given):
    for answer in (
        guarded.get("/api/info", headers={"Authorization": f"Bearer {given}".encode()}),
        guarded.get("/api/info", params={"token": given}),
        guarded.post("/api/search", data={"row": 0}, headers={"Authorization": f"Bearer {given}".encode()}),
        guarded.get("/api/info", headers={"Cookie": f"bdbnet={given}".encode()}),
        guarded.get("/api/info", headers={"Authorization": f"Basic {TOKEN}"}),
    ):
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers


def test_the_token_as_a_header(guarded):
    answer = guarded.post("/api/search", data={"row": 0}, headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers


def test_the_token_in_the_address_becomes_a_cookie_that_scripts_do_not_see(guarded):
    answer = guarded.get("/", params={"token": TOKEN})
    assert answer.status_code == 200
    cookie = answer.headers["set-cookie"]
    assert cookie.endswith("; HttpOnly; SameSite=Strict; Path=/")
    assert TOKEN not in cookie
    assert guarded.get("/api/info").status_code == 200
    assert guarded.post("/api/search", data={"row": 0}).status_code == 200


def test_the_token_in_the_address_is_for_opening_the_page_alone(guarded):
    assert guarded.post("/api/search", data={"row": 0}, params={"token": TOKEN}).status_code == 401


def test_a_browser_without_the_token_gets_a_page_that_asks_for_it(guarded):
    page = guarded.get("/", headers=HTML).text
    assert "A token is needed." in page
    assert '<input id="token" name="token" type="password"' in page
    assert "The token is wrong." in guarded.get("/?token=no", headers=HTML).text


def test_the_page_that_asks_for_the_token_has_its_style(guarded):
    for name in ("style.css", "icon.svg"):
        assert f'href="/static/{name}"' in guarded.get("/", headers=HTML).text
        assert guarded.get(f"/static/{name}").status_code == 200


# Host, origin, headers


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "", "10.0.0.1", "localhost@evil.example"]
)
def test_without_a_token_only_names_of_this_machine_are_hosts(client, host):
    answer = client.get("/api/info", headers={"Host": host})
    assert answer.status_code == 421


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9000", "[::1]:8765", "LOCALHOST:1"])
def test_names_of_this_machine(client, host):
    assert client.get("/api/info", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://127.0.0.1:1"},
    ],
)
def test_pages_of_other_sites_can_not_search(client, headers):
    assert client.post("/api/search", data={"row": 0}, headers=headers).status_code == 403
    own = {"Origin": "http://127.0.0.1:8765", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/api/search", data={"row": 0}, headers=own).status_code == 200


@pytest.mark.parametrize("path", ["/", "/api/info", "/image/0", "/nothing", "/image/99", "/static/app.js"])
def test_every_answer_has_the_strict_headers(guarded, path):
    for headers in ({"Authorization": f"Bearer {TOKEN}"}, {}):
        answer = guarded.get(path, headers=headers)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; ")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_what_is_searched_for_is_not_kept_by_caches(guarded):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    assert guarded.get("/api/images", headers=headers).headers["cache-control"] == "no-store"
    assert guarded.get("/image/0", headers=headers).headers["cache-control"].startswith("private")


# Rate, time, work


def test_the_rate_of_an_address_is_limited(make_client, stored):
    client = make_client(stored, "requests_per_second=0.5")
    answers = [client.post("/api/search", data={"row": 0}) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert "more than 0.5 searches a second" in answers[-1].json()["error"]


class Clock:
    """An application behind a guard, with messages that come when the test says so."""

    def __init__(self, **limits: object) -> None:
        values = {"upload_bytes": 1000, "upload_seconds": 0.05, "rate": None, "open_requests": 2} | limits
        self.bodies: list[bytes] = []
        self.guard = Guard(self._read, None, Limits(**values))

    async def _read(self, scope, receive, send) -> None:
        more = True
        while more:
            message = await receive()
            self.bodies.append(message.get("body", b""))
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def request(self, receive, client: str = "10.0.0.1") -> tuple[int, dict[bytes, bytes]]:
        sent = []

        async def send(message) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/api/search",
            "headers": [(b"host", b"localhost")],
            "client": (client, 1),
        }
        await self.guard(scope, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"])


def test_a_body_that_trickles_in_is_given_up():
    async def trickle():
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    status, headers = asyncio.run(Clock().request(trickle))
    assert (status, headers[b"connection"]) == (408, b"close")


def test_many_open_requests_of_one_address_do_not_shut_out_others():
    async def run() -> list[int]:
        clock, go = Clock(upload_seconds=5), asyncio.Event()

        async def wait():
            await go.wait()
            return {"type": "http.request", "body": b"", "more_body": False}

        held = [asyncio.create_task(clock.request(wait)) for _ in range(2)]
        await asyncio.sleep(0)
        third = await clock.request(wait)
        other = asyncio.create_task(clock.request(wait, client="10.0.0.2"))
        await asyncio.sleep(0)
        go.set()
        return [third[0], (await other)[0], *[(await task)[0] for task in held]]

    assert asyncio.run(run()) == [429, 200, 200, 200]


def test_connections_of_one_address_do_not_shut_out_others(monkeypatch):
    monkeypatch.setattr("bdbnet.serving.protocol.PEER_CONNECTIONS", 2)

    class Transport(asyncio.Transport):
        def close(self):
            self.closed = True

        def is_closing(self):
            return hasattr(self, "closed")

    async def run() -> None:
        async def app(scope, receive, send):
            raise AssertionError

        config, state = uvicorn.Config(app, http=TimedProtocol), ServerState()
        config.load()

        def connect(peer: str) -> tuple[TimedProtocol, Transport]:
            transport, protocol = Transport({"peername": (peer, 4000)}), TimedProtocol(config, state, {})
            protocol.connection_made(transport)
            return protocol, transport

        (first, _), *others = [connect(peer) for peer in ("10.0.0.1", "10.0.0.1", "10.0.0.1", "10.0.0.2")]
        assert [transport.is_closing() for _, transport in others] == [False, True, False]
        for protocol in (first, others[1][0]):
            protocol.connection_lost(None)
        assert not connect("10.0.0.1")[1].is_closing()

    asyncio.run(run())


def test_the_kept_rates_are_bounded(monkeypatch):
    monkeypatch.setattr("bdbnet.serving.guard._MOST_CLIENTS", 3)
    clock = Clock(rate=1.0)

    async def body():
        return {"type": "http.request", "body": b"", "more_body": False}

    for number in range(9):
        assert asyncio.run(clock.request(body, client=f"10.0.0.{number}"))[0] == 200
    assert len(clock.guard._rates) == 3
    assert not clock.guard._open


def test_work_is_refused_where_too_much_waits_and_the_loop_goes_on():
    async def run() -> None:
        pool, go = WorkPool("test", 1, 1, 5), threading.Event()
        running = [asyncio.create_task(pool.run(go.wait, 5)) for _ in range(2)]
        await asyncio.sleep(0.01)
        with pytest.raises(RequestError, match="too many requests") as refused:
            await pool.run(int)
        assert (refused.value.status_code, refused.value.retry_after) == (503, 1)
        go.set()
        assert await asyncio.gather(*running) == [True, True]
        assert await asyncio.gather(pool.run(int), pool.run(int)) == [0, 0]
        pool.close()
        with pytest.raises(RequestError, match="is ending"):
            await pool.run(int)

    asyncio.run(run())


def test_work_that_takes_too_long_is_told_and_counts_until_it_ends():
    async def run() -> None:
        pool, go = WorkPool("test", 1, 0, 0.02), threading.Event()
        with pytest.raises(RequestError, match=r"no result within 0\.02 s") as late:
            await pool.run(go.wait, 5)
        assert late.value.status_code == 504
        with pytest.raises(RequestError, match="too many requests"):
            await pool.run(int)
        go.set()
        pool._executor.shutdown()  # waits for it
        with pytest.raises(RequestError, match="is ending"):  # not that too many wait
            await pool.run(int)

    asyncio.run(run())
