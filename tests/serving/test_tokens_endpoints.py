"""/tokenize, /detokenize, /tokenizer_info and /v1/models."""

from support.serving import VOCABULARY


def test_text_to_tokens_and_back(client):
    answer = client.post("/tokenize", json={"prompt": "käse", "add_special_tokens": False}).json()

    assert answer["tokens"] == VOCABULARY.encode("käse").tolist()
    assert answer["count"] == 5
    back = client.post("/detokenize", json={"tokens": [VOCABULARY.bos, *answer["tokens"]]}).json()
    assert back["prompt"] == "käse"


def test_bos_stands_in_front_as_in_training(client):
    assert client.post("/tokenize", json={"prompt": "a"}).json()["tokens"] == [
        *(VOCABULARY.bos, ord("a"))
    ]


def test_names_of_special_tokens_stay_text_but_alone(client):
    tokens = lambda text: client.post(
        "/tokenize", json={"prompt": text, "add_special_tokens": False}
    ).json()["tokens"]
    info = client.get("/tokenizer_info").json()

    assert tokens(info["eos_token"]) == [VOCABULARY.eos]
    assert tokens(f"a{info['eos_token']}") == list(f"a{info['eos_token']}".encode())


def test_the_model_says_what_clients_need(client):
    (model,) = client.get("/v1/models").json()["data"]

    assert model["id"] == "tiny"
    assert model["max_model_len"] == 400
    assert model["default_size"] == "32x24"
    assert client.get("/v1/models/tiny").json() == model
    assert client.get("/v1/models/another").status_code == 404
