from collections.abc import Iterator

import httpx
import pytest
from support.serving import SMALL, make_service, running, tiny_tokenizer

from emu3_megatron.model import Decoder, build_decoder
from emu3_megatron.serving.service import Service
from emu3_megatron.vision.tokenizer import VisionTokenizer


@pytest.fixture(scope="session")
def decoder(mesh) -> Decoder:
    return build_decoder(SMALL).eval()


@pytest.fixture(scope="session")
def tokenizer() -> VisionTokenizer:
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def service(decoder, tokenizer) -> Service:
    return make_service(decoder, tokenizer)


@pytest.fixture(scope="session")
def client(service) -> Iterator[httpx.Client]:
    with running(service) as client:
        yield client
