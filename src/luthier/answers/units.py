"""What stands around a number: currency, percent, degrees, units, and words that multiply."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

CURRENCY = r"(?:US\$|\\?\$|[€£¥₹]|\\(?:euro|pounds)(?![a-z]))"
MULTIPLES = {
    "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
}  # fmt: skip
_UNITS: Mapping[str, tuple[str, str]] = {
    # dimension, and scale → names
    "length": ("m", "nm 1e-9 μm 1e-6 um 1e-6 mm 0.001 cm 0.01 dm 0.1 m 1 km 1000 millimeter 0.001 millimetre 0.001"
               " centimeter 0.01 centimetre 0.01 meter 1 metre 1 kilometer 1000 kilometre 1000 inch 0.0254 in 0.0254"
               " foot 0.3048 feet 0.3048 ft 0.3048 yard 0.9144 yd 0.9144 mile 1609.344 mi 1609.344"),
    "mass": ("g", "mg 0.001 g 1 kg 1000 gram 1 kilogram 1000 milligram 0.001 pound 453.59237 lb 453.59237"
             " ounce 28.349523125 oz 28.349523125 tonne 1e6"),
    "time": ("s", "ms 0.001 s 1 sec 1 second 1 min 60 minute 60 h 3600 hr 3600 hour 3600 day 86400 week 604800"),
    "volume": ("l", "ml 0.001 mL 0.001 cl 0.01 dl 0.1 l 1 L 1 liter 1 litre 1 milliliter 0.001 millilitre 0.001"),
    "dollar": ("$", "$ 1 dollar 1 USD 1 cent 0.01"),
    "euro": ("€", "€ 1 euro 1 EUR 1"),
    "pound sterling": ("£", "£ 1 GBP 1 pence 0.01"),
    "yen": ("¥", "¥ 1 yen 1 JPY 1"),
    "rupee": ("₹", "₹ 1 rupee 1"),
}  # fmt: skip
_SCALES: Mapping[str, tuple[str, Fraction]] = {
    name: (dimension, Fraction(scale))
    for dimension, (_, listed) in _UNITS.items()
    for name, scale in zip(listed.split()[::2], listed.split()[1::2], strict=True)
}
_POWERS = {"square ": 2, "sq ": 2, "cubic ": 3}


@dataclass(frozen=True)
class Unit:
    """A unit: powers of dimensions, and its size in their base units."""

    dimensions: tuple[tuple[str, int], ...]
    scale: Fraction


def read_unit(text: str) -> Unit | None:
    """The unit that a text names, such as cm^2 or miles per hour; None if it names something else."""
    dimensions: Counter[str] = Counter()
    scale = Fraction(1)
    for index, piece in enumerate(re.split(r"\s*/\s*|\s+per\s+", text.strip())):
        single = _single(piece.strip(" .{}"))
        if single is None:
            return None
        dimension, size, power = single
        power = -power if index else power
        dimensions[dimension] += power
        scale *= size**power
    return Unit(tuple(sorted((name, power) for name, power in dimensions.items() if power)), scale)


def _single(name: str) -> tuple[str, Fraction, int] | None:
    power = 1
    for word, exponent in _POWERS.items():
        if name.startswith(word):
            name, power = name.removeprefix(word), exponent
    if match := re.fullmatch(r"(.*?)\s*\}?\^\{?([23])\}?", name):
        name, power = match[1], int(match[2])
    plain = name.strip()
    for spelling in (plain, plain.removesuffix("s"), plain.removesuffix("es"), plain.lower().removesuffix("s")):
        if spelling in _SCALES:
            return (*_SCALES[spelling], power)
    return None
