"""Fields of multipart forms, which OpenAI's client sends for videos."""

from email import message_from_bytes
from email.message import Message
from email.policy import HTTP

from emu3_megatron.serving.errors import wrong

_PARTS = 32


def read_form(kind: str, body: bytes) -> dict[str, str]:
    """The fields of a form without files; raises Refused.

    Args:
        kind: the media type, with its boundary.
    """
    if body.count(b"\n--") > _PARTS:
        raise wrong("a form has few fields")
    head = b"Content-Type: " + kind.encode("latin-1", "replace") + b"\r\n\r\n"
    form = message_from_bytes(head + body, policy=HTTP)
    if not form.is_multipart():
        raise wrong("the body is not a form")
    return dict(_field(part) for part in form.get_payload() if isinstance(part, Message))


def _field(part: Message) -> tuple[str, str]:
    name = part.get_param("name", header="content-disposition")
    if not isinstance(name, str):
        raise wrong("a field of the form has no name")
    content = part.get_payload(decode=True)
    if part.get_filename() is not None or not isinstance(content, bytes):
        raise wrong(f"{name}: files are not supported", name)
    try:
        return name, content.decode()
    except UnicodeDecodeError:
        raise wrong(f"{name}: not UTF-8", name) from None
