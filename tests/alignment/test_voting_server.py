"""The server of the voting page: blind order, durable votes, and whom it refuses."""

import http.client
import json
import re
import shutil
import threading
from contextlib import contextmanager

import pytest
from support.preferences import make_samples

from emu3_megatron.alignment.samples import Samples
from emu3_megatron.alignment.votes import VoteLog, read_votes
from emu3_megatron.alignment.voting.server import TOKEN_HEADER, VotingServer
from emu3_megatron.alignment.voting.session import Session
from emu3_megatron.cli import main
from emu3_megatron.errors import InputError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three prompts with four samples each."""
    return make_samples(tmp_path_factory.mktemp("made"))


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "samples")


@contextmanager
def serving(folder, *voters):
    server = VotingServer(Samples(folder), voters or ("ann",), port=0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def server(folder):
    with serving(folder, "ann", "ben") as server:
        yield server


def request(server, method, path, body=None, **headers):
    """Status, headers and content of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


def get(server, path, **headers):
    return request(server, "GET", path, **headers)


def post(server, path, body, **headers):
    status, _, content = request(
        server, "POST", path, body, **{TOKEN_HEADER: server.token, **headers}
    )
    return status, json.loads(content)


def state(server, voter="ann"):
    return json.loads(get(server, f"/{voter}/state")[2])


def vote(server, prompt, best, worst, voter="ann"):
    return post(server, f"/{voter}/vote", {"prompt": prompt, "best": best, "worst": worst})


def votes(folder):
    return read_votes(Samples(folder))


# Voting


def test_the_first_prompt(server):
    assert state(server) == {
        "done": 0,
        "total": 3,
        "can_undo": False,
        "prompt": {"number": 0, "text": "a cat 0", "kind": "image", "samples": 4},
    }


def test_a_vote_is_stored_by_sample_and_the_next_prompt_follows(server, folder):
    order = server.sessions["ann"].order(0)

    status, answer = vote(server, 0, best=2, worst=0)

    assert (status, answer["done"], answer["prompt"]["number"]) == (200, 1, 1)
    expected = {**dict.fromkeys(range(4), 0.0), order[2]: 1.0, order[0]: -1.0}
    assert votes(folder) == {"ann": {0: expected}}


def test_no_difference(server, folder):
    post(server, "/ann/vote", {"prompt": 0, "no_difference": True})

    assert votes(folder) == {"ann": {0: dict.fromkeys(range(4), 0.0)}}


def test_undo_goes_back_to_the_newest_vote(server, folder):
    vote(server, 0, 2, 0)
    vote(server, 1, 2, 0)

    _, answer = post(server, "/ann/undo", {})

    assert (answer["done"], answer["prompt"]["number"]) == (1, 1)
    assert votes(folder)["ann"].keys() == {0}


def test_undo_without_a_vote_changes_nothing(server, folder):
    _, answer = post(server, "/ann/undo", {})

    assert answer == state(server)
    assert votes(folder) == {}


def test_at_the_end_there_is_no_prompt(server):
    for prompt in range(3):
        _, answer = vote(server, prompt, 0, 1)

    assert answer["prompt"] is None
    assert answer["done"] == 3


def test_voters_do_not_see_each_other(server, folder):
    vote(server, 0, 2, 0, voter="ann")

    assert state(server, "ben")["done"] == 0
    vote(server, 0, 2, 0, voter="ben")
    assert votes(folder).keys() == {"ann", "ben"}


def test_a_voter_goes_on_after_a_restart(folder):
    with serving(folder) as first:
        vote(first, 0, 2, 0)
    with serving(folder) as second:
        assert state(second)["prompt"]["number"] == 1


def test_two_servers_on_one_folder(folder):
    with serving(folder) as one, serving(folder) as other:
        vote(one, 0, 2, 0)
        vote(other, 1, 2, 0)

        assert state(one) == state(other)
        assert state(one)["done"] == 2


def test_the_order_differs_between_voters_and_prompts_and_stays(folder):
    samples = Samples(make_samples(folder / "more", prompts=20, each=8, media=False))
    orders = {
        (voter, prompt): Session(samples, voter).order(prompt)
        for voter in ("ann", "ben")
        for prompt in range(20)
    }

    assert all(sorted(order) == list(range(8)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) > 35
    assert Session(samples, "ann").order(7) == orders["ann", 7]


# What is shown


def test_media_are_found_by_position(server, folder):
    number = server.sessions["ben"].order(1)[3]

    status, headers, content = get(server, "/ben/media/1/3")

    assert (status, headers["Content-Type"]) == (200, "image/png")
    assert content == (folder / f"media/1-{number}.png").read_bytes()


def test_players_of_clips_ask_for_parts(server):
    whole = get(server, "/ann/media/0/0")[2]

    status, headers, part = get(server, "/ann/media/0/0", Range="bytes=5-9")

    assert (status, part) == (206, whole[5:10])
    assert headers["Content-Range"] == f"bytes 5-9/{len(whole)}"


@pytest.mark.parametrize("path", ["/ann/media/0/4", "/ann/media/3/0", "/ann/media/0/x"])
def test_media_that_are_not_there(path, server):
    assert get(server, path)[0] == 404


def test_the_page_needs_nothing_from_elsewhere(server):
    page = get(server, "/ann")[2].decode()

    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert addresses == ["data:,", "/static/page.css", "/static/page.js"]
    for address in addresses[1:]:
        status, _, content = get(server, address)
        assert status == 200
        assert b"http:" not in content
        assert b"https:" not in content


def test_names_are_escaped(folder):
    session = VotingServer(Samples(folder), ["ann"], 0)
    session.server_close()

    page = session.template.render(voter='"><script>', token="x")

    assert "<script>" not in page.replace("<script src", "")


# Who is refused


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "10.0.0.5", ""])
def test_another_host(host, server):
    """A foreign name that was pointed at this machine: DNS rebinding."""
    for path in ("/ann", "/ann/state", "/ann/media/0/0"):
        assert get(server, path, Host=host)[0] == 403


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1:9000", "[::1]:9000"])
def test_our_names_behind_a_tunnel(host, server):
    assert get(server, "/ann/state", Host=host)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {TOKEN_HEADER: "guessed"},
        {TOKEN_HEADER: ""},
    ],
)
def test_a_vote_from_another_page(headers, server, folder):
    body = {"prompt": 0, "best": 1, "worst": 2}

    status, _ = post(server, "/ann/vote", body, **headers)

    assert status == 403
    assert not list(folder.glob("votes-*"))


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://evil.example"}, {"Sec_Fetch_Site": "cross-site"}]
)
def test_what_another_page_would_read(headers, server):
    for path in ("/ann/state", "/ann/media/0/0"):
        assert get(server, path, **headers)[0] == 403


@pytest.mark.parametrize("path", ["/", "/eve", "/eve/state", "/ann/../samples.bin", "/static/x.py"])
def test_pages_that_are_not_there(path, server):
    assert get(server, path)[0] == 404


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"prompt": 9, "best": 0, "worst": 1}, "there is no such prompt"),
        ({"prompt": 0, "best": 9, "worst": 1}, "there is no such sample"),
        ({"prompt": 0, "best": 1, "worst": 1}, "best and worst at once"),
        ({"prompt": "0", "best": 1, "worst": 2}, "there is no such prompt"),
        ({"prompt": 9, "no_difference": True}, "prompt 9, these samples have 3"),
        ({}, "there is no such prompt"),
        ([], "a body of JSON is needed"),
    ],
)
def test_votes_that_make_no_sense(body, reason, server, folder):
    status, answer = post(server, "/ann/vote", body)

    assert status == 400
    assert reason in answer["error"]
    assert not list(folder.glob("votes-*"))


def test_a_long_body_is_not_read(server):
    assert post(server, "/ann/vote", {"prompt": "x" * 5000})[0] == 400


# The file of votes


def test_a_line_that_a_crash_cut_off_is_replaced(folder):
    log = VoteLog(Samples(folder), "ann")
    log.append(0, best=1, worst=2)
    with log.path.open("a", encoding="utf-8") as file:
        file.write('{"time": 5, "vot')

    log.append(1, best=1, worst=2)

    assert log.votes().keys() == {0, 1}
    assert len(log.path.read_text(encoding="utf-8").splitlines()) == 2


def test_votes_at_the_same_time_are_all_kept(folder):
    samples = Samples(make_samples(folder / "more", prompts=40, media=False))

    def half(first):
        log = VoteLog(samples, "ann")
        for prompt in range(first, 40, 2):
            log.append(prompt, best=1, worst=2)

    threads = [threading.Thread(target=half, args=(first,)) for first in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert VoteLog(samples, "ann").votes().keys() == set(range(40))


# The command


@pytest.mark.parametrize("name", ["../ann", "a/b", "", ".ann", "x" * 81])
def test_names_that_cannot_be_used(name, folder):
    with pytest.raises(InputError, match="no name for a voter"):
        VotingServer(Samples(folder), [name], 0)


def test_a_port_that_is_taken(server, folder, capsys):
    with pytest.raises(SystemExit):
        main(
            [
                "preferences",
                "vote",
                str(folder),
                "--voter",
                "ann",
                "--port",
                str(server.server_port),
            ]
        )

    assert f"--port {server.server_port}: Address already in use; give" in capsys.readouterr().err


def test_the_command_names_each_voters_page(folder, capsys, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(VotingServer, "serve_forever", interrupted)

    main(["preferences", "vote", str(folder), "--voter", "ann", "--voter", "björn", "--port", "0"])

    ann, bjoern, end = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"ann: http://127\.0\.0\.1:\d+/ann \(0 of 3 prompts done\)", ann)
    assert "/bj%C3%B6rn " in bjoern
    assert end == "Ctrl-C ends it; every vote is stored"
