"""The page at /: it comes without a key, from this server alone, and may run no foreign script."""

import re

import httpx
import pytest
from support.serving import make_service, running

HEADER = "content-security-policy"


@pytest.fixture(scope="module")
def guarded(decoder, tokenizer):
    with running(make_service(decoder, tokenizer, key="secret")) as client:
        yield client


def test_the_page_needs_no_key_and_what_it_calls_does(guarded):
    page = guarded.get("/")

    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert 'data-factor="8" data-most-pixels="40000000"' in page.text
    assert guarded.get("/v1/models").status_code == 401


def test_all_that_the_page_needs_is_here(guarded):
    addresses = re.findall(r'(?:src|href)="([^"]*)"', guarded.get("/").text)

    assert addresses == ["data:,", "/static/page.css", "/static/page.js"]
    for address in addresses[1:]:
        content = guarded.get(address)
        assert content.status_code == 200
        assert not re.search(r"https?:", content.text)


@pytest.mark.parametrize("path", ["/", "/static/page.js"])
def test_only_scripts_of_the_server_run(path, guarded):
    response = guarded.get(path)

    policy = dict(rule.split(" ", 1) for rule in response.headers[HEADER].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["form-action"] == policy["base-uri"] == "'none'"
    assert response.headers["x-content-type-options"] == "nosniff"


def test_the_page_has_no_script_or_style_of_its_own(guarded):
    page = guarded.get("/").text

    assert re.findall(r"<script(?![^>]*src=)|<style|\sstyle=|\son[a-z]+=", page) == []


@pytest.mark.parametrize("name", ["page.html", "other.js", "..%2fapp.py", "%2e%2e/app.py"])
def test_no_other_files_are_served(name, guarded):
    url = httpx.URL(str(guarded.base_url), raw_path=f"/static/{name}".encode())

    assert guarded.get(url).status_code == 404
