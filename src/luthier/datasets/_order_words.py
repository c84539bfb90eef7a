"""The words of `orders`, for each split its own.

Wordings, layouts and number forms of `test` never occur in `train`: a model that learned the sentences of `train`
instead of the task fails.
"""

from __future__ import annotations

from dataclasses import dataclass

MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip


@dataclass(frozen=True)
class Words:
    """Vocabulary and sentence templates of one split. Templates name their fields in braces."""

    first: tuple[str, ...]
    last: tuple[str, ...]
    products: tuple[str, ...]
    prices: dict[str, tuple[str, ...]]  # currency → templates of a price {p}
    dates: tuple[str, ...]
    lines: tuple[str, ...]  # an item in prose
    bullets: tuple[str, ...]  # an item in a list
    openings: tuple[str, ...]
    due: tuple[str, ...]
    express: tuple[str, ...]
    relaxed: tuple[str, ...]
    names_before: tuple[str, ...]
    names_after: tuple[str, ...]
    corrections: tuple[str, ...]
    distractors: tuple[str, ...]


TRAIN = Words(
    first=(
        "Mara", "Jon", "Aisha", "Peter", "Lena", "Carlos", "Nina", "Omar", "Ruth", "Ivan", "Sofia", "Karl",
        "Emma", "Raj", "Clara", "Hugo", "Zoe", "Adam", "Fatima", "Leo",
    ),
    last=(
        "Lindt", "Moreau", "Khan", "Novak", "Silva", "Braun", "Okafor", "Rossi", "Meyer", "Dahl", "Costa", "Weber",
        "Ferrari", "Singh", "Keller", "Duval", "Santos", "Berger", "Hall", "Iversen",
    ),
    products=(
        "desk lamp", "oak shelf board", "steel bolt", "coffee mug", "garden chair", "paint roller", "wool blanket",
        "door handle", "paper roll", "rubber mat", "glass jar", "wall clock", "office chair", "water filter",
        "tool bag", "floor tile", "cotton towel", "picture frame", "bike pump", "tea pot", "wood plank", "soup bowl",
        "power cable", "note book", "trash can", "plant pot",
    ),
    prices={
        "EUR": ("€{p}", "{p} EUR", "{p} euros"),
        "USD": ("${p}", "{p} USD", "{p} dollars"),
        "GBP": ("£{p}", "{p} GBP", "{p} pounds"),
    },
    dates=("{month} {day}", "{day} {month}"),
    lines=("{n} {items} at {price} each", "{n} {items} for {price} each", "{n} {items} ({price} each)"),
    bullets=("- {n} {items}, {price} each", "- {n} x {item} at {price}", "* {n} {items}: {price} each"),
    openings=(
        "I would like to order", "Please send me", "We need", "I want to buy", "Please ship", "Order:",
        "Can I have", "My shop is short of",
    ),
    due=(
        "Please deliver by {date}.", "We need it on {date}.", "Delivery on {date} please.", "Due date: {date}.",
        "Bring it {date}.", "It should come before {date}.",
    ),
    express=(
        "Please use express shipping.", "Express please.", "It is urgent.", "We are in a hurry.",
        "Send it as fast as you can.", "Quick delivery, whatever it costs.",
    ),
    relaxed=(
        "Standard shipping is fine.", "No express needed.", "Normal delivery.", "Take your time.", "It is not urgent.",
        "", "",
    ),
    names_before=(
        "This is {name}.", "{name} here.", "Hello, I am {name}.", "From: {name}.", "Customer: {name}.",
        "{name} would like to order.",
    ),
    names_after=("Regards, {name}", "Thank you, {name}", "Best, {name}", "Yours, {name}", "(written by {name})"),
    corrections=("Correction: {n} {items}, not {wrong}.", "Sorry, I meant {n} {items}, not {wrong}."),
    distractors=(
        "My customer number is {k}.", "The last order came on time.", "The invoice can follow later.",
        "I was customer {k} in your shop.", "Our phone is {k}.",
    ),
)  # fmt: skip

TEST = Words(
    first=(
        "Greta", "Tomas", "Yara", "Felix", "Ingrid", "Malik", "Helen", "Pablo", "Mina", "Viktor", "Anna", "Samir",
        "Judith", "Marco", "Lucy", "Erik",
    ),
    last=(
        "Hansen", "Ortiz", "Becker", "Laurent", "Petrov", "Suzuki", "Walsh", "Conti", "Yilmaz", "Fischer", "Mensah",
        "Novotny", "Blake", "Ramos", "Vogel", "Lund",
    ),
    products=(
        "table leg", "copper pipe", "kitchen scale", "linen curtain", "ceramic vase", "camping tent", "bath sponge",
        "brass hook", "candle holder", "pine bench", "travel pillow", "salad plate", "garden hose", "key ring",
        "desk lamp", "coffee mug", "wall clock", "plant pot",
    ),
    prices={
        "EUR": ("{comma} €", "EUR {p}", "{comma} euro"),
        "USD": ("USD {p}", "US${p}", "{p} bucks"),
        "GBP": ("GBP {p}", "{p} quid", "{p} pounds sterling"),
    },
    dates=("the {ordinal} of {month}", "{month} {ordinal}", "{day}. {month}", "2026-{mm}-{dd}"),
    lines=(
        "{n} of the {items} you sell for {price}", "{n} {items}, {price} apiece", "{n} {items} ({price} per unit)",
    ),
    bullets=("{n} | {item} | {price}", "{item} - qty {n} - {price} a piece", "{k}) {item}: {n} pcs, {price}"),
    openings=(
        "Could you get us", "We're running out again, so put down", "Time to restock:", "Let's go with",
        "Same as always, but this time",
    ),
    due=(
        "It has to be here {date} at the latest.", "We open on {date}, so that is when we want it.",
        "Drop it off {date}.", "Arrival: {date}.",
    ),
    express=(
        "We can't wait, take the fastest service you have.", "Rush it, we pay the extra fee.", "Fast track, please!",
        "Priority courier.",
    ),
    relaxed=("Take the slow and cheap way.", "There is no hurry at all.", "Regular post will do.", ""),
    names_before=("Put this on the account of {name}.", "My name's {name}.", "Order for {name}:", "[{name}]"),
    names_after=("-- {name}", "Cheers from {name}", "Signed: {name}", "{name}, purchasing"),
    corrections=("Oh no wait, make that {n} {items}.", "Hmm, scratch {wrong}: I'll take {n} {items}."),
    distractors=(
        "Ring me at {k} if the gate is shut.", "Last year we paid {k} in total.", "Our old reference was {k}.",
        "The blue van can park behind house {k}.",
    ),
)  # fmt: skip
