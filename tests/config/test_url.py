"""Addresses of servers: their normal form, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_agent.config.url import ServerUrl, parse_server_url


@pytest.mark.parametrize(
    ("text", "url", "normal", "health"),
    [
        (
            "http://127.0.0.1:8000",
            ServerUrl("http", "127.0.0.1", 8000),
            "http://127.0.0.1:8000",
            "http://127.0.0.1:8000/health",
        ),
        (
            "HTTPS://GPU7.Example.org:443/Qwen/",
            ServerUrl("https", "gpu7.example.org", 443, "/Qwen"),
            "https://gpu7.example.org/Qwen",
            "https://gpu7.example.org/Qwen/health",
        ),
        (
            "http://[0:0::1]:8000",
            ServerUrl("http", "::1", 8000),
            "http://[::1]:8000",
            "http://[::1]:8000/health",
        ),
        ("http://h", ServerUrl("http", "h", 80), "http://h", "http://h/health"),
        ("https://h/", ServerUrl("https", "h", 443), "https://h", "https://h/health"),
        (
            "unix:///run/user@1000/vllm.sock",
            ServerUrl("unix", socket_path=Path("/run/user@1000/vllm.sock")),
            "unix:///run/user@1000/vllm.sock",
            "http://localhost/health",
        ),
        (
            "unix:////run/vllm.sock",
            ServerUrl("unix", socket_path=Path("/run/vllm.sock")),
            "unix:///run/vllm.sock",
            "http://localhost/health",
        ),
    ],
)
def test_an_address_has_one_normal_form(text: str, url: ServerUrl, normal: str, health: str):
    parsed = parse_server_url(text)

    assert (parsed, str(parsed), parsed.endpoint("/health")) == (url, normal, health)


SCHEME = "must begin with http://, https:// or unix://"
PASSWORD = "must not contain a user or password: use api_key_file"
QUERY = "must not contain '\\?' or '#'"
PORT = "must have a port from 1 to 65535, or none"
BRACKETS = r"must have an IPv6 address in brackets: http://\[::1\]:8000"
HOST = "must name a host by its name or IP address"
ADDRESS = "must name a valid IP address"
SOCKET = "must give a socket by its absolute path: unix:///run/vllm.sock"
ASCII = "must be visible ASCII without spaces"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", SCHEME),
        ("127.0.0.1:8000", SCHEME),
        ("gpu7:8000", SCHEME),
        ("http://", SCHEME),
        ("http:/gpu7", SCHEME),
        ("ftp://gpu7", SCHEME),
        ("http+unix://%2Frun%2Fvllm.sock", SCHEME),
        ("http://user:password@gpu7", PASSWORD),
        ("user:password@gpu7:80", PASSWORD),
        ("http:/user:password@gpu7", PASSWORD),
        ("unix://user@gpu7/run/vllm.sock", PASSWORD),
        ("http://gpu7?key=x", QUERY),
        ("http://gpu7#x", QUERY),
        ("http://gpu7:", PORT),
        ("http://gpu7:0", PORT),
        ("http://gpu7:65536", PORT),
        ("http://gpu7:http", PORT),
        ("http://gpu7:-1", PORT),
        ("http://[::1", BRACKETS),
        ("http://[v1.x]", BRACKETS),
        ("http://[127.0.0.1]", BRACKETS),
        ("http://::1", f"{BRACKETS}|{HOST}|{PORT}"),
        ("http://[fe80::1%25eth0]", HOST),
        ("http://gpu..x", HOST),
        ("http://-gpu7", HOST),
        ("http://gpu%377", HOST),
        ("http://" + "a." * 127 + "b", HOST),
        ("http://1.2.3", ADDRESS),
        ("http://1.2.3.999", ADDRESS),
        ("http://[:::1]", f"{ADDRESS}|{BRACKETS}"),
        ("http://gpu7/a%zz", "percent-encode special characters"),
        ("http://gpu7/{a}", "percent-encode special characters"),
        ("http://gpu7/v1", "must end before /v1"),
        ("http://gpu7/qwen/v1/", "must end before /v1"),
        ("http://gpu7/metrics", "must end before /metrics"),
        ("http://gpu7/health", "must end before /health"),
        ("unix:run/vllm.sock", SOCKET),
        ("unix://run/vllm.sock", SOCKET),
        ("unix:///", SOCKET),
        ("unix:///" + "a" * 107, "must name a socket in at most 107 bytes"),
        ("http://gpu7 ", ASCII),
        ("http://gpü7", ASCII),
        ("http://gpu7/\n", ASCII),
        ("http://gpu7/" + "a" * 512, "must be at most 512 characters long"),
    ],
)
def test_what_is_no_address_of_a_server_is_refused_with_what_to_write(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse_server_url(text)


@given(text=st.text(max_size=30), scheme=st.sampled_from(["", "http://", "https://", "unix:///"]))
def test_a_normal_form_is_its_own_normal_form(text: str, scheme: str):
    try:
        url = parse_server_url(scheme + text)
    except ValueError:
        return

    assert parse_server_url(str(url)) == url
