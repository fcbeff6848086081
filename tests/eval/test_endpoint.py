"""The chat endpoint against a real server on this machine."""

import socket

import pytest

from adapt.errors import EnvironmentFault, UsageError
from adapt.eval.endpoint import Endpoint, EndpointOptions, chat_targets

MESSAGES = [{"role": "user", "content": "hello"}]


def options(url, **changes):
    return EndpointOptions(url=url, model="tiny", backoff_s=0.001, **changes)


@pytest.fixture
def closed_port():
    """A port of this machine that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.mark.parametrize(
    ("url", "targets"),
    [
        ("http://host:8000", ("/v1/chat/completions", "/chat/completions")),
        ("http://host:8000/", ("/v1/chat/completions", "/chat/completions")),
        ("http://host:8000/v1", ("/v1/chat/completions",)),
        ("http://host:8000/v1/", ("/v1/chat/completions",)),
        ("http://host:8000/x/chat/completions", ("/x/chat/completions",)),
        ("http://host:8000/x?version=2", ("/x/chat/completions?version=2",)),
    ],
)
def test_targets(url, targets):
    assert chat_targets(url) == tuple(f"http://host:8000{target}" for target in targets)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "file:///etc/passwd",
        "ftp://host/v1",
        "http://",
        "http://host:port/v1",
        "http://[::1/v1",
        "http://host/a b",
        "http://host/\n",
        "http://hóst/v1",
    ],
)
def test_a_url_that_cannot_be_asked_is_refused(url):
    with pytest.raises(UsageError, match="--judge-url"):
        chat_targets(url)


def test_a_user_name_in_the_url_is_refused_without_showing_it():
    with pytest.raises(UsageError, match="ADAPT_JUDGE_KEY") as caught:
        chat_targets("http://me:secret@host/v1")
    assert "secret" not in str(caught.value)


def test_the_request_holds_model_messages_temperature_and_key(judge_server):
    reply = Endpoint(options(f"{judge_server.url}/v1", key="secret")).ask(MESSAGES)
    assert reply == "50"
    [(path, body, headers)] = judge_server.requests
    assert path == "/v1/chat/completions"
    assert body == {"model": "tiny", "messages": MESSAGES, "temperature": 0}
    assert headers["Authorization"] == "Bearer secret"
    assert headers["Content-Type"] == "application/json"


def test_without_a_key_no_authorization_is_sent(judge_server):
    Endpoint(options(judge_server.url)).ask(MESSAGES)
    assert "Authorization" not in judge_server.requests[0][2]


def test_the_key_is_not_in_the_options_text():
    assert "secret" not in repr(options("http://host", key="secret"))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
def test_a_passing_failure_is_tried_again(judge_server, status):
    judge_server.answer = lambda path, request: judge_server.reply(
        status=status if len(judge_server.requests) < 3 else 200
    )
    assert Endpoint(options(f"{judge_server.url}/v1", retries=2)).ask(MESSAGES) == "50"
    assert len(judge_server.requests) == 3


def test_retry_after_is_waited_for(judge_server, monkeypatch):
    waits = []
    judge_server.answer = lambda path, request: (
        judge_server.reply(status=429, headers={"Retry-After": "7"})
        if len(judge_server.requests) < 2
        else judge_server.reply()
    )
    endpoint = Endpoint(options(f"{judge_server.url}/v1"))
    monkeypatch.setattr(endpoint._stopped, "wait", lambda seconds: waits.append(seconds))
    assert endpoint.ask(MESSAGES) == "50"
    assert waits == [7.0]


def test_waits_double_and_a_date_in_retry_after_is_passed_over(judge_server, monkeypatch):
    waits = []
    date = {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}
    judge_server.answer = lambda path, request: judge_server.reply(status=503, headers=date)
    endpoint = Endpoint(EndpointOptions(f"{judge_server.url}/v1", "m", retries=3, backoff_s=0.5))
    monkeypatch.setattr(endpoint._stopped, "wait", lambda seconds: waits.append(seconds))
    with pytest.raises(EnvironmentFault, match=r"after 4 tries: status 503"):
        endpoint.ask(MESSAGES)
    assert waits == [0.5, 1.0, 2.0]


def test_a_refusal_is_not_tried_again_and_keeps_the_servers_words(judge_server):
    judge_server.answer = lambda path, request: judge_server.reply(
        status=401, raw=b'{"error": "bad\n key"}'
    )
    with pytest.raises(EnvironmentFault, match=r'401 .*"bad key".*ADAPT_JUDGE_KEY'):
        Endpoint(options(f"{judge_server.url}/v1")).ask(MESSAGES)
    assert len(judge_server.requests) == 1


def test_a_base_url_falls_back_to_the_path_without_v1(judge_server):
    judge_server.answer = lambda path, request: judge_server.reply(
        status=404 if path.startswith("/v1") else 200
    )
    assert Endpoint(options(judge_server.url)).ask(MESSAGES) == "50"
    assert [path for path, _, _ in judge_server.requests] == [
        "/v1/chat/completions",
        "/chat/completions",
    ]


def test_a_path_that_is_not_there(judge_server):
    judge_server.answer = lambda path, request: judge_server.reply(status=404)
    with pytest.raises(EnvironmentFault, match=r"404 .*check --judge-url"):
        Endpoint(options(judge_server.url)).ask(MESSAGES)
    assert len(judge_server.requests) == 2


def test_a_redirect_is_not_followed(judge_server):
    elsewhere = {"Location": f"{judge_server.url}/elsewhere"}
    judge_server.answer = lambda path, request: judge_server.reply(status=302, headers=elsewhere)
    with pytest.raises(EnvironmentFault, match="302"):
        Endpoint(options(f"{judge_server.url}/v1", key="secret")).ask(MESSAGES)
    assert [path for path, _, _ in judge_server.requests] == ["/v1/chat/completions"]


@pytest.mark.parametrize("raw", [b"", b"hello", b"[]", b'{"choices": []}', b'{"choices": [{}]}'])
def test_something_else_than_a_chat_completion(judge_server, raw):
    judge_server.answer = lambda path, request: judge_server.reply(status=200, raw=raw)
    with pytest.raises(EnvironmentFault, match="OpenAI-compatible"):
        Endpoint(options(f"{judge_server.url}/v1")).ask(MESSAGES)


def test_a_reply_without_content_is_an_empty_text(judge_server):
    raw = b'{"choices": [{"message": {"content": null}}]}'
    judge_server.answer = lambda path, request: judge_server.reply(status=200, raw=raw)
    assert Endpoint(options(f"{judge_server.url}/v1")).ask(MESSAGES) == ""


def test_a_broken_reply_is_tried_again(judge_server):
    cut = {"Content-Length": "1000"}
    judge_server.answer = lambda path, request: (
        judge_server.reply(status=200, headers=cut, raw=b"{")
        if len(judge_server.requests) < 2
        else judge_server.reply()
    )
    assert Endpoint(options(f"{judge_server.url}/v1")).ask(MESSAGES) == "50"


def test_nobody_listens(closed_port):
    with pytest.raises(EnvironmentFault, match=r"out of reach after 2 tries: .*refused") as caught:
        Endpoint(options(f"http://127.0.0.1:{closed_port}", retries=1)).ask(MESSAGES)
    assert caught.value.exit_status == 4


def test_a_silent_server_times_out():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(EnvironmentFault, match=r"after 1 try: timed out"):
            Endpoint(options(url, retries=0, timeout_s=0.05)).ask(MESSAGES)


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    judge_server, monkeypatch, closed_port
):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert Endpoint(options(judge_server.url)).ask(MESSAGES) == "50"
