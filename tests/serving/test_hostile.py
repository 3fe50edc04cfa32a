"""What may come over the wire: each is refused with a sentence, and none reaches the model."""

import json
import socket

import pytest

from dit_cachegraph.serving.limits import Limits
from support.serving_runs import PROMPT, served

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def client(studio):
    limits = Limits(body_seconds=1.5, head_seconds=1.5, max_connections=8)
    with served(studio, limits=limits, num_workers=1) as client:
        client.wait_until_ready()
        yield client


@pytest.fixture(autouse=True)
def never_reaches_the_model(client, studio):
    before = studio.num_calls
    yield
    assert studio.num_calls == before
    assert client.ask("GET", "/readyz").status == 200


def refused(answer, status):
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/json"
    sentence = answer.json["error"]
    assert len(sentence) > 10 and sentence.isascii() and "Traceback" not in sentence
    return sentence


FIELDS = {
    "no prompt": ({"prompt": None}, "prompt must be text"),
    "a number as prompt": ({"prompt": 7}, "got 7"),
    "a list as prompt": ({"prompt": [PROMPT]}, "prompt must be text"),
    "an object as prompt": ({"prompt": {"a": 1}}, "prompt must be text"),
    "an empty prompt": ({"prompt": ""}, "prompt must be text"),
    "a blank prompt": ({"prompt": " \n\t"}, "prompt must be text"),
    "a long prompt": ({"prompt": "red " * 200}, "800 characters, at most 500"),
    "a prompt of NUL": ({"prompt": "red\0circle"}, "no character of a text"),
    "an escape in a prompt": ({"prompt": "red \x1b[2J"}, "no character of a text"),
    "half a surrogate pair": ({"prompt": "red \ud800"}, "no character of a text"),
    "a prompt turned round": ({"prompt": "red \u202e"}, "no character of a text"),
    "a prompt of other things": ({"prompt": "a cat"}, "names nothing that this model draws"),
    "a prompt of other letters": ({"prompt": "\u7ea2"}, "names nothing that this model draws"),
    "markup": ({"prompt": "<script>alert(1)</script>"}, "names nothing that this model draws"),
    "no steps": ({"num_steps": 0}, "num_steps must be an integer from 1 to 100, got 0"),
    "steps below none": ({"num_steps": -1}, "got -1"),
    "too many steps": ({"num_steps": 101}, "got 101"),
    "steps beyond any": ({"num_steps": 10**400}, "far too large"),
    "half a step": ({"num_steps": 2.5}, "got 2.5"),
    "steps as a float": ({"num_steps": 2.0}, "got 2.0"),
    "steps as text": ({"num_steps": "28"}, "got '28'"),
    "steps as a flag": ({"num_steps": True}, "got True"),
    "steps as a list": ({"num_steps": [1]}, "got [1]"),
    "steps as nothing": ({"num_steps": None}, "got None"),
    "a seed below none": ({"seed": -1}, "seed must be an integer from 0"),
    "a seed beyond 63 bits": ({"seed": 2**63}, "seed must be an integer from 0"),
    "a seed as a float": ({"seed": 1e3}, "got 1000.0"),
    "a seed as text": ({"seed": "0"}, "got '0'"),
    "another preset": ({"preset": "faster"}, "preset must be one of"),
    "a preset as a number": ({"preset": 1}, "preset must be one of"),
    "a preset as a list": ({"preset": ["fast"]}, "preset must be one of"),
    "a preset as a long text": ({"preset": "f" * 5000}, "preset must be one of"),
    "another size": ({"width": 128, "height": 128}, "128 x 128 isn't drawn here: 64 x 64 is"),
    "a size that is no square": ({"width": 64, "height": 128}, "64 x 128 isn't drawn here"),
    "a width alone": ({"width": 64}, "width and height go together"),
    "a height alone": ({"height": 64}, "width and height go together"),
    "no width": ({"width": 0, "height": 64}, "width must be an integer from 1"),
    "a width below none": ({"width": -64, "height": 64}, "got -64"),
    "a vast width": ({"width": 10**9, "height": 64}, "got 1000000000"),
    "a width as text": ({"width": "64", "height": 64}, "got '64'"),
    "stream as text": ({"stream": "yes"}, "stream must be true or false"),
    "stream as a number": ({"stream": 1}, "stream must be true or false"),
    "a setting of the cache": ({"error_tolerance": 9}, "unknown field 'error_tolerance'"),
    "an id": ({"id": "../../etc/passwd"}, "unknown field 'id'"),
    "a name of Python's": ({"__class__": "x"}, "unknown field '__class__'"),
    "a long name": ({"n" * 3000: 1}, "unknown field"),
    "a name of half a pair": ({"\udfff": 1}, "unknown field '\\udfff'"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields(client, name):
    fields, told = FIELDS[name]
    assert told in refused(client.generate(**fields), 422)


BODIES = {
    "nothing": (b"", 400, "no JSON"),
    "no JSON": (b"prompt=red", 400, "no JSON"),
    "half of it": (b'{"prompt": "red', 400, "no JSON"),
    "two of it": (b'{"prompt": "red"}{}', 400, "no JSON"),
    "no UTF-8": (b'{"prompt": "\xff\xfe"}', 400, "no JSON"),
    "UTF-16": ('{"prompt": "red"}'.encode("utf-16"), 400, "no JSON"),
    "NaN": (b'{"prompt": "red", "num_steps": NaN}', 400, "NaN is no number of JSON"),
    "infinity": (b'{"prompt": "red", "seed": Infinity}', 400, "Infinity is no number of JSON"),
    "less than any": (b'{"prompt": "red", "seed": -Infinity}', 400, "-Infinity is no number"),
    "a number out of range": (b'{"prompt": "red", "num_steps": 1e999}', 422, "got inf"),
    "a number of 5000 digits": (b'{"prompt": "red", "seed": ' + b"9" * 5000 + b"}", 400, "no JSON"),
    "a list": (b'["red"]', 400, "must be a JSON object"),
    "a text": (b'"red"', 400, "must be a JSON object"),
    "null": (b"null", 400, "must be a JSON object"),
    "an empty object": (b"{}", 422, "prompt is missing"),
    "a deep list": (b"[" * 8000, 400, "no JSON"),
    "deep objects": (b'{"a":' * 3000, 400, "no JSON"),
    "too much": (b'{"prompt": "' + b"r" * 20_000 + b'"}', 413, "larger than 16384 bytes"),
    "too much space": (b" " * 20_000 + b"{}", 413, "larger than 16384 bytes"),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies(client, name):
    body, status, told = BODIES[name]
    answer = client.ask("POST", "/generate", body, Content_Type="application/json")
    assert told in refused(answer, status)


HEADERS = {
    "no type": {},
    "a form": {"Content_Type": "application/x-www-form-urlencoded"},
    "parts": {"Content_Type": "multipart/form-data; boundary=x"},
    "text": {"Content_Type": "text/plain"},
    "a type that begins like it": {"Content_Type": "application/jsonp"},
    "packed": {"Content_Type": "application/json", "Content_Encoding": "gzip"},
}


@pytest.mark.parametrize("name", HEADERS)
def test_types(client, name):
    body = json.dumps({"prompt": PROMPT}).encode()
    refused(client.ask("POST", "/generate", body, **HEADERS[name]), 415)


PATHS = {
    "a file": ("GET", "/../../etc/passwd", 404),
    "a file, encoded": ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
    "a source": ("GET", "/page.html", 404),
    "docs from elsewhere": ("GET", "/docs", 404),
    "a description that asks for no key": ("GET", "/openapi.json", 404),
    "the head of what is written": ("HEAD", "/generate", 405),
    "two slashes": ("GET", "//generate", 404),
    "a way up in an id": ("DELETE", "/requests/..%2f..%2fetc", 404),
    "no id": ("DELETE", "/requests/", 404),
    "another id": ("DELETE", "/requests/0", 404),
    "a long id": ("DELETE", "/requests/" + "a" * 4000, 404),
    "an id of no text": ("DELETE", "/requests/%ff%00", 404),
    "another method": ("PUT", "/generate", 405),
    "reading what is written": ("GET", "/generate", 405),
    "writing the page": ("POST", "/", 405),
}


@pytest.mark.parametrize("name", PATHS)
def test_paths(client, name):
    method, path, status = PATHS[name]
    answer = client.ask(method, path)
    if method == "HEAD":
        assert (answer.status, answer.body) == (status, b"")
    else:
        refused(answer, status)


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/metrics"])
def test_the_head_of_what_is_read(client, path):
    """Some probes ask for no more."""
    answer = client.ask("HEAD", path)
    assert (answer.status, answer.body) == (200, b"")


def spoken(client, *parts):
    """What a client gets that writes these bytes, and then nothing."""
    with socket.create_connection(("127.0.0.1", client.port), timeout=30) as connection:
        for part in parts:
            connection.sendall(part)
        return connection.recv(65536).decode()


HEAD = b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ((HEAD + b"Content-Length: 40\r\n\r\n", b'{"prompt": '), 408),
        ((HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n"), 408),
        ((HEAD + b"Content-Length: 999999999999\r\n\r\n", b"{"), 413),
        ((HEAD + b"Content-Length: -1\r\n\r\n{}",), 400),
        ((HEAD + b"Content-Length: 1e3\r\n\r\n{}",), 400),
        ((HEAD + b"Content-Length: 2\r\nContent-Length: 9\r\n\r\n{}",), 400),
        ((HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",), 400),
        ((b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",), 400),
        ((b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",), 400),
    ],
    ids=["slow", "slow chunks", "a vast length", "a length below none", "a length as a float",
         "two lengths", "a broken chunk", "a vast header", "TLS"],
)  # fmt: skip
def test_what_is_hardly_http(client, parts, status):
    assert spoken(client, *parts).startswith(f"HTTP/1.1 {status} ")


@pytest.mark.parametrize(
    "begun", [b"", b"GET / HTTP/1.1\r\nHost: a\r\n", b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET"]
)
def test_connections_that_say_nothing_keep_nobody_out(client, begun):
    """Nor do those that say nothing more: each is closed."""
    held = [socket.create_connection(("127.0.0.1", client.port), timeout=30) for _ in range(8)]
    for connection in held:
        connection.sendall(begun)
    for connection in held:
        while connection.recv(65536):
            pass
        connection.close()
    assert client.ask("GET", "/healthz").status == 200
