"""Customer messages to JSON orders."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pydantic import Field

from luthier.datasets._order_words import MONTHS, NUMBERS, TEST, TRAIN, Words
from luthier.datasets.base import Dataset, Split, draw_records
from luthier.types import Record

INSTRUCTION = "Reply in JSON: name, items (product, count, price), currency, due (MM-DD), express."
SETS = {2: "a pair of", 6: "half a dozen", 12: "a dozen"}


@dataclass(frozen=True)
class OrderItem:
    """One line of an order; `price` in hundredths."""

    product: str
    count: int
    price: int


@dataclass(frozen=True)
class Order:
    """The content of a message and of its JSON."""

    name: str
    items: tuple[OrderItem, ...]
    currency: str
    month: int
    day: int
    express: bool

    def as_json(self) -> str:
        """The answer: one line, product names in the singular, prices as numbers."""
        items = []
        for ordered in self.items:
            items.append({"product": ordered.product, "count": ordered.count, "price": number(ordered.price)})
        return json.dumps(
            {
                "name": self.name,
                "items": items,
                "currency": self.currency,
                "due": f"{self.month:02}-{self.day:02}",
                "express": self.express,
            },
            ensure_ascii=False,
        )


class Orders(Dataset):
    """Customer messages to JSON orders: names, items with counts and prices, a date, express or not.

    The split `test` has other wordings, layouts and number forms than `train` ("a dozen", "1.250,00 €", "the 3rd of
    May", changed minds, misleading numbers), so its score measures the task rather than the memory of sentences.
    """

    SETTINGS: ClassVar = ({"count": 40}, {"count": 30}, {"count": 40, "seed": 1}, {"count": 40, "split": "test"})

    count: int = Field(
        400,
        ge=1,
        description="Number of records drawn; a smaller number gives the first of a larger one.",
    )
    seed: int = Field(
        0,
        description="Seed of the draw: each seed gives its own records, the same on every machine.",
    )
    split: Split = Field(
        "train",
        description="`train`, or `test`, whose messages have other wordings, layouts and number forms than any of "
        "`train`.",
    )

    def records(self) -> list[Record]:
        """Conversations of three turns: system (the schema), user (the message) and assistant (the JSON)."""
        return draw_records(self.kind, self.draw, self.count, self.seed, self.split)

    def draw(self, generator: random.Random) -> dict[str, Any]:
        """The columns of one record: `messages`."""
        words = TRAIN if self.split == "train" else TEST
        order = draw_order(generator, words)
        return {
            "messages": [
                {"role": "system", "content": INSTRUCTION},
                {"role": "user", "content": write_message(generator, words, order)},
                {"role": "assistant", "content": order.as_json()},
            ]
        }


def draw_order(generator: random.Random, words: Words) -> Order:
    """A random order of one or two items, without any wording."""
    amount = generator.choice((1, 1, 2))
    items = []
    for product in generator.sample(words.products, amount):
        count = generator.choice((1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 40))
        items.append(OrderItem(product, count, draw_price(generator)))
    return Order(
        name=f"{generator.choice(words.first)} {generator.choice(words.last)}",
        items=tuple(items),
        currency=generator.choice(("EUR", "USD", "GBP")),
        month=generator.randint(1, 12),
        day=generator.randint(1, 28),
        express=generator.random() < 0.5,
    )


def draw_price(generator: random.Random) -> int:
    """A price in hundredths: whole numbers, halves and odd cents; one in eight is above a thousand."""
    # Above a thousand, so that the form `{comma}` of `test` has a thousands separator.
    if generator.random() < 0.125:
        return 5000 * generator.randint(21, 80)
    whole = generator.randint(2, 99)
    return 100 * whole + generator.choice((0, 0, 50, 20, 95, generator.randint(1, 99)))


def number(price: int) -> int | float:
    """A price in hundredths as a JSON number: 1250 → 12.5, 800 → 8."""
    return price // 100 if price % 100 == 0 else price / 100


def write_message(generator: random.Random, words: Words, order: Order) -> str:
    """A message that says who orders what, when and how fast, sometimes with an irrelevant sentence."""
    name = order.name
    before = generator.random() < 0.5
    body, correction = write_items(generator, words, order)
    parts = [generator.choice(words.names_before).format(name=name)] if before else []
    parts.append(body)
    if correction:
        parts.append(correction)
    tail = [
        generator.choice(words.due).format(date=write_date(generator, words, order)),
        generator.choice(words.express if order.express else words.relaxed),
    ]
    if generator.random() < 0.3:
        tail.append(generator.choice(words.distractors).format(k=generator.randint(10, 999)))
    generator.shuffle(tail)
    parts += [part for part in tail if part]
    if not before:
        parts.append(generator.choice(words.names_after).format(name=name))
    return " ".join(parts).replace("\n ", "\n")


def write_items(generator: random.Random, words: Words, order: Order) -> tuple[str, str]:
    """The items as prose or as a list, and the sentence that corrects a count (empty for most messages)."""
    written, correction = list(order.items), ""
    as_list = generator.random() < 0.35
    if not as_list and generator.random() < 0.12:
        # The customer changes their mind: the items state a wrong count, and only the correction has the right one.
        index = generator.randrange(len(written))
        right = written[index]
        wrong = right.count + generator.randint(1, 4)
        written[index] = replace(right, count=wrong)
        correction = generator.choice(words.corrections).format(
            n=right.count, items=plural(right.product, right.count), wrong=wrong
        )
    template = generator.choice(words.bullets if as_list else words.lines)
    texts = []
    for position, ordered in enumerate(written, 1):
        text = template.format(
            n=write_count(generator, words, ordered.count, digits=as_list or bool(correction)),
            item=ordered.product,
            items=plural(ordered.product, ordered.count),
            price=write_price(generator, words, ordered.price, order.currency),
            k=position,
        )
        texts.append(text)
    opening = generator.choice(words.openings)
    if as_list:
        return f"{opening.rstrip(':')}:\n" + "\n".join(texts) + "\n", correction
    return f"{opening} {' and '.join(texts)}.", correction


def plural(product: str, count: int) -> str:
    """The product in the plural, where the count asks for it: every product name forms it with an s."""
    return product if count == 1 else f"{product}s"


def write_count(generator: random.Random, words: Words, count: int, digits: bool) -> str:
    """A count in digits if `digits`, else half the time in words; `test` also has sets such as "a dozen"."""
    if digits or generator.random() < 0.5:
        return str(count)
    if words is TEST and count in SETS:
        return SETS[count]
    return NUMBERS[count] if count < len(NUMBERS) and (words is TEST or count <= 10) else str(count)


def write_price(generator: random.Random, words: Words, price: int, currency: str) -> str:
    """A price by one of the split's templates; `{comma}` stands for 1.250,00, as much of Europe writes it."""
    amount = number(price)
    point = str(amount) if isinstance(amount, int) else f"{amount:.2f}"
    comma = f"{price / 100:,.2f}".translate(str.maketrans(",.", ".,"))
    return generator.choice(words.prices[currency]).format(p=point, comma=comma)


def write_date(generator: random.Random, words: Words, order: Order) -> str:
    """The due date by one of the split's templates."""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(order.day % 10, "th") if order.day not in (11, 12, 13) else "th"
    return generator.choice(words.dates).format(
        month=MONTHS[order.month - 1],
        day=order.day,
        ordinal=f"{order.day}{ending}",
        mm=f"{order.month:02}",
        dd=f"{order.day:02}",
    )
