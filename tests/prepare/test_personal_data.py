# ruff: noqa: RUF001
"""What is personal in a text is masked, what only looks like it is not."""

import pytest

from emu3_megatron.prepare.personal_data import PLACEHOLDERS, mask

EMAIL, IP, PHONE = (PLACEHOLDERS[kind] for kind in ("email", "ip", "phone"))


def masked(text):
    return mask(text, ["email", "ip", "phone"])[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to jane.doe+news@mail.example.co.uk.", f"Write to {EMAIL}."),
        ("联系邮箱test@example.com谢谢", f"联系邮箱{EMAIL}谢谢"),
        ("<a href='mailto:a@b.org'>", f"<a href='mailto:{EMAIL}'>"),
        ("a_b@x-y.com, c@d.cn; e@f.io", f"{EMAIL}, {EMAIL}; {EMAIL}"),
        ("from 93.184.216.34:443, then", f"from {IP}:443, then"),
        ("地址为93.184.216.34。", f"地址为{IP}。"),
        ("at 2606:2800:220:1:248:1893:25c8:1946.", f"at {IP}."),
        ("2a00:1450:4001::8a: replied", f"{IP}: replied"),
        ("Call +1 (212) 555-0143 now", f"Call {PHONE} now"),
        ("Call (212) 555-0143.", f"Call {PHONE}."),
        ("212-555-0143, 212.555.0143", f"{PHONE}, {PHONE}"),
        ("+44 20 7946 0958 in London", f"{PHONE} in London"),
        ("+44 (0)20 7946 0958", PHONE),
        ("+49 170 1234567", PHONE),
        ("电话13812345678，或138-1234-5678", f"电话{PHONE}，或{PHONE}"),
        ("手机：+86 138 1234 5678", f"手机：{PHONE}"),
        ("总机010-62345678，0755-26712345", f"总机{PHONE}，{PHONE}"),
    ],
)
def test_personal_data_is_masked(text, expected):
    assert masked(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Version 1.2.3.4, v10.15.7.1 and section 12.3.4.5",
        "Chrome/120.0.6099.109 and 1.2.3.4.5",
        "hosts 127.0.0.1, 10.0.0.254, 192.168.1.100 and 300.1.1.100",
        "On 2024-01-02 at 12:30:45, 1990-2000, 02/03/2024",
        "It costs $1,234,567.89, ¥13812345678 or 1 000 000 000",
        "std::vector, A::B, 12:30:45:10, 2001:db8::1",
        "icon@2x.png, @someone, react@18.2.0, a @ b, user@localhost",
        "ISBN 978-7-111-12345-6, card 4111-1111-1111-1111, id 1381234567890",
        "timestamps 1700000000 and 1700000000123, pi 3.14159265358979",
        "id a3f13812345678, order-13812345678, 50% of 212-555-0143x",
        "图1-2-3：面积约12345678平方米，共20240102期",
        "x+12345678901 = y, clause 252.227-7013",
    ],
)
def test_what_only_looks_like_it_stays(text):
    assert masked(text) == text


def test_each_kind_is_counted_and_only_those_asked_for_are_masked():
    text = "a@b.org c@d.org 93.184.216.34 +1 212 555 0143"

    assert mask(text, ["email", "ip"]) == (
        f"{EMAIL} {EMAIL} {IP} +1 212 555 0143",
        {"email": 2, "ip": 1},
    )


@pytest.mark.parametrize("piece", ["a.", "a@", "a@a.", "+2 ", "1.", "22-", "2001:", "2222::", "(0"])
def test_long_texts_of_pieces_take_no_longer_for_it(piece):
    masked(piece * 20_000)  # quadratic patterns take minutes
