"""What `adapt mix` is asked to do: its options as given, and as understood."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from adapt.errors import UsageError, nearest
from adapt.mix_draw import MOST_COPIES, round_half_up

_MOST_DIGITS = 18


@dataclass(frozen=True, slots=True)
class MixOptions:
    """The options of `adapt mix`.

    Args:
        ratio: general:domain, such as `1:4`; or else fraction_of_general.
        fraction_of_general: Share of the general side to take, 0 to 1.
        domain: Domain datasets; empty is every one in data/domain.
        general: General datasets; empty is every one in data/general.
        take: NAME=N: rows to sample of a dataset before anything else.
        repeat: NAME=K: times to repeat a dataset's rows, a fraction by sampling.
        allow_repeat: Repeat general rows when there are too few.
        seed: Seed of every draw.
        out: Folder of mix.json and mix.parquet.
    """

    ratio: str | None = None
    fraction_of_general: float | None = None
    domain: tuple[Path, ...] = ()
    general: tuple[Path, ...] = ()
    take: tuple[str, ...] = ()
    repeat: tuple[str, ...] = ()
    allow_repeat: bool = False
    seed: int = 42
    out: Path = Path("data/mix")


@dataclass(frozen=True, slots=True)
class Goal:
    """How much general data is wanted: a ratio, or a share of the general side.

    Args:
        ratio: The ratio as given, None for a share.
        general: General side of the ratio, or the share.
        domain: Domain side of the ratio, None for a share.
    """

    ratio: str | None
    general: Fraction
    domain: Fraction | None

    def rows(self, domain_rows: int, general_rows: int) -> int:
        """Return how many general rows to draw, halves up."""
        if self.domain is None:
            return round_half_up(self.general * general_rows)
        return round_half_up(domain_rows * self.general / self.domain)

    def words(self) -> str:
        """Say what was asked for."""
        share = f"{decimal_text(self.general)} of the general side"
        return f"asked {self.ratio}" if self.ratio else f"asked for {share}"


@dataclass(frozen=True, slots=True)
class Request:
    """The options, understood."""

    goal: Goal
    take: dict[str, int]
    repeat: dict[str, Fraction]
    allow_repeat: bool
    seed: int
    out: Path

    def require_names(self, names: Iterable[str]) -> None:
        """Make sure that every dataset named in --take and --repeat is in the mix.

        Raises:
            UsageError: One is not, with the nearest name.
        """
        known = list(names)
        for option, asked in (("take", self.take), ("repeat", self.repeat)):
            for name in asked:
                if name not in known:
                    raise UsageError(f"--{option} {name}: no such dataset{nearest(name, known)}")


def read_request(options: MixOptions) -> Request:
    """Understand the options.

    Raises:
        UsageError: One is malformed, or they contradict each other.
    """
    return Request(
        goal=_read_goal(options),
        take={name: _read_take(name, text) for name, text in _pairs("take", options.take)},
        repeat={name: _read_repeat(name, text) for name, text in _pairs("repeat", options.repeat)},
        allow_repeat=options.allow_repeat,
        seed=options.seed,
        out=options.out,
    )


def decimal_text(value: Fraction) -> str:
    """Return a decimal fraction in digits.

    >>> decimal_text(Fraction("2.50")), decimal_text(Fraction("1e-7"))
    ('2.5', '0.0000001')
    """
    return format(Decimal(value.numerator) / Decimal(value.denominator), "f")


def _read_goal(options: MixOptions) -> Goal:
    share = options.fraction_of_general
    if (options.ratio is None) == (share is None):
        raise UsageError(
            "give either --ratio general:domain, such as --ratio 1:4, or --fraction-of-general, "
            "such as --fraction-of-general 0.2"
        )
    if share is not None:
        if not (math.isfinite(share) and 0 <= share <= 1):
            raise UsageError(
                f"--fraction-of-general {share}: expected a share from 0 to 1; "
                f"--repeat NAME=K makes more of a dataset"
            )
        return Goal(None, Fraction(str(share)), None)
    ratio = str(options.ratio)
    parts = [_decimal(part) for part in ratio.split(":")]
    if len(parts) != 2 or parts[0] is None or not parts[1]:
        raise UsageError(
            f"--ratio {ratio}: expected general:domain, two numbers, such as 1:4 for four "
            f"domain rows to each general one; the first may be 0, the second not"
        )
    return Goal(ratio, parts[0], parts[1])


def _decimal(text: str) -> Fraction | None:
    """Read a number of digits and at most one point; None for anything else."""
    whole, point, part = text.partition(".")
    digits = whole + part
    sound = whole and (part or not point) and digits.isascii() and digits.isdigit()
    sound = sound and len(digits) <= _MOST_DIGITS
    return Fraction(text) if sound else None


def _pairs(option: str, texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for text in texts:
        name, sign, value = text.rpartition("=")
        if not sign or not name:
            raise UsageError(f"--{option} {text}: expected NAME=NUMBER, such as drivelm=2")
        if name in seen:
            raise UsageError(f"--{option} {name}: is given twice; give one number for each dataset")
        seen.add(name)
        yield name, value


def _read_take(name: str, text: str) -> int:
    digits = text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS
    if not digits or int(text) < 1:
        raise UsageError(f"--take {name}={text}: expected a whole number of rows, 1 or more")
    return int(text)


def _read_repeat(name: str, text: str) -> Fraction:
    times = _decimal(text)
    if not times or times > MOST_COPIES:
        raise UsageError(
            f"--repeat {name}={text}: expected a number above 0, at most {MOST_COPIES}, "
            f"such as 2 or 0.5"
        )
    return times
