import json
import random
import re

import pytest

from luthier.datasets._order_words import NUMBERS, TEST, TRAIN, Words
from luthier.datasets.orders import (
    Order,
    OrderItem,
    Orders,
    draw_order,
    write_count,
    write_date,
    write_items,
    write_message,
    write_price,
)

ORDER = Order("Mara Lindt", (OrderItem("oak board", 12, 125000),), "EUR", 5, 3, True)


def written(write, words: Words, *rest: object) -> set[str]:
    return {write(random.Random(seed), words, *rest) for seed in range(60)}


def test_the_answer_is_the_order():
    assert json.loads(ORDER.as_json()) == {
        "name": "Mara Lindt",
        "items": [{"product": "oak board", "count": 12, "price": 1250}],
        "currency": "EUR",
        "due": "05-03",
        "express": True,
    }


def test_test_messages_use_number_forms_that_training_never_shows():
    assert written(write_price, TEST, 125050, "EUR") == {"1.250,50 €", "EUR 1250.50", "1.250,50 euro"}
    assert written(write_date, TEST, ORDER) == {"the 3rd of May", "May 3rd", "3. May", "2026-05-03"}
    assert written(write_count, TEST, 12, False) == {"12", "a dozen"}
    assert written(write_count, TRAIN, 12, False) == {"12"}
    for forms in (written(write_price, TRAIN, 125050, "EUR"), written(write_date, TRAIN, ORDER)):
        assert not any(mark in form for form in forms for mark in ("rd", "1.250", "2026"))


@pytest.mark.parametrize(("day", "ordinal"), [(1, "1st"), (2, "2nd"), (3, "3rd"), (11, "11th"), (22, "22nd")])
def test_ordinals(day: int, ordinal: str):
    order = Order("A B", ORDER.items, "EUR", 5, day, True)
    assert f"May {ordinal}" in written(write_date, TEST, order)


def test_no_template_is_shared_between_the_splits():
    for name in ("lines", "bullets", "dates", "openings", "due", "names_before", "names_after", "corrections"):
        assert not set(getattr(TRAIN, name)) & set(getattr(TEST, name)), name
    assert not set(TRAIN.express) & set(TEST.express)
    assert not set(TRAIN.first) & set(TEST.first)


@pytest.mark.parametrize("words", [TRAIN, TEST])
def test_every_message_says_what_its_answer_holds(words: Words):
    for seed in range(300):
        generator = random.Random(seed)
        order = draw_order(generator, words)
        message = write_message(generator, words, order)
        assert order.name in message
        assert all(item.product in message for item in order.items)
        spelled = {str(order.items[0].count), NUMBERS[min(order.items[0].count, 12)], "a pair", "dozen"}
        assert any(form in message for form in spelled)
        assert "{" not in message
        assert "  " not in message


def test_a_correction_replaces_the_count_first_said():
    for seed in range(400):
        text, correction = write_items(random.Random(seed), TEST, ORDER)
        if correction:
            wrong = re.search(r"\b(1[3-6])\b", text)
            assert wrong and "12" in correction
            return
    raise AssertionError("no correction in 400 messages")


def test_records_are_conversations_with_the_schema_first():
    roles = [message["role"] for message in Orders(count=1).records()[0].fields["messages"]]
    assert roles == ["system", "user", "assistant"]
