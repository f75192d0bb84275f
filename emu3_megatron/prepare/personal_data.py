"""Masks personal data in texts: e-mail addresses, IP addresses, phone numbers.

By regular expressions, as Dolma and DataTrove do it, with Dolma's placeholders. Letters and digits
are those of ASCII, so that Chinese right beside an address is no part of it.
"""

import ipaddress
import re
from collections.abc import Callable, Sequence

from emu3_megatron.config.filters import PersonalData

MASKED_BY = "personal data/1"  # changes where what is masked does
PLACEHOLDERS: dict[PersonalData, str] = {
    "email": "|||EMAIL_ADDRESS|||",
    "ip": "|||IP_ADDRESS|||",
    "phone": "|||PHONE_NUMBER|||",
}

# Not names of pictures, as icon@2x.png.
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9](?:[A-Za-z0-9._%+'-]{0,62}[A-Za-z0-9_+-])?"
    r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+"
    r"(?!(?:png|jpe?g|gif|webp|svg|pdf)(?![A-Za-z0-9.]))"
    r"(?:[A-Za-z]{2,24}|xn--[A-Za-z0-9-]{2,59})(?![A-Za-z0-9]|-[A-Za-z0-9])"
)
_QUAD = re.compile(r"(?<![A-Za-z0-9_.])(?:\d{1,3}\.){3}\d{1,3}(?![A-Za-z0-9_]|\.\d)", re.ASCII)
# Global addresses begin with 2 or 3 and three more digits; times and C++ names do not.
_V6 = re.compile(
    r"(?<![A-Za-z0-9_:.])[23][0-9A-Fa-f]{3}(?:::?[0-9A-Fa-f]{1,4}){1,7}(?:::)?(?![A-Za-z0-9_])"
)
_SEP = r"[ .\-]?"
_PHONE = re.compile(
    r"(?<![A-Za-z0-9_+$€£¥￥-])(?<!\d[.,])(?:"
    rf"\+1{_SEP}\(?\d{{3}}\)?{_SEP}\d{{3}}{_SEP}\d{{4}}"
    rf"|\+86{_SEP}(?:1[3-9]\d{_SEP}\d{{4}}{_SEP}\d{{4}}|\(?0?\d{{2,3}}\)?{_SEP}\d{{7,8}})"
    r"|\+(?!86)[2-9](?:[ .()\-]{0,2}\d){7,12}"
    r"|(?:1[ .-])?(?:\([2-9]\d{2}\) ?[2-9]\d{2}[.-]|[2-9]\d{2}([.-])[2-9]\d{2}\1)\d{4}"
    r"|1[3-9]\d(?:\d{8}|-\d{4}-\d{4}| \d{4} \d{4})"
    r"|(?:\(0\d{2,3}\) ?|0\d{2,3}-)[2-9]\d{6,7}"
    r")(?![A-Za-z0-9_%]|[.,-]\d)",
    re.ASCII,
)


def mask(text: str, kinds: Sequence[PersonalData]) -> tuple[str, dict[PersonalData, int]]:
    """The text with placeholders, and how many of each kind; nothing else changes."""
    counts: dict[PersonalData, int] = {}
    for kind in kinds:
        text, counts[kind] = _MASKS[kind](text)
    return text, counts


def _emails(text: str) -> tuple[str, int]:
    return _EMAIL.subn(PLACEHOLDERS["email"], text) if "@" in text else (text, 0)


def _addresses(text: str) -> tuple[str, int]:
    text, quads = _replace(_QUAD, text, _is_public_quad, PLACEHOLDERS["ip"])
    text, others = _replace(_V6, text, _is_public, PLACEHOLDERS["ip"])
    return text, quads + others


def _phones(text: str) -> tuple[str, int]:
    return _PHONE.subn(PLACEHOLDERS["phone"], text)


_MASKS: dict[PersonalData, Callable[[str], tuple[str, int]]] = {
    "email": _emails,
    "ip": _addresses,
    "phone": _phones,
}


def _replace(
    pattern: re.Pattern[str], text: str, is_one: Callable[[str], bool], placeholder: str
) -> tuple[str, int]:
    count = 0

    def replaced(match: re.Match[str]) -> str:
        nonlocal count
        if not is_one(match.group()):
            return match.group()
        count += 1
        return placeholder

    return pattern.sub(replaced, text), count


def _is_public_quad(found: str) -> bool:
    """Versions and numbers of sections have small numbers alone."""
    return max(map(int, found.split("."))) > 99 and _is_public(found)


def _is_public(found: str) -> bool:
    try:
        return ipaddress.ip_address(found).is_global
    except ValueError:
        return False
