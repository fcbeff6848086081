"""The ledger: every raw unit ends as used, skipped or not in this split.

    units_in = used + skipped + not_in_split

`units_in` is counted by the converter where it reads; the other three by the runner from what the
converter yields. The paths are separate, so that the equation can fail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Ledger:
    """Counts of one split, or of a part of it; `add` sums them.

    Args:
        units_in: Raw units read, before any filter.
        used: Raw units that stand in one record or more.
        skipped: Raw units lost, each with a reason in skipped.jsonl.
        not_in_split: Raw units that belong to another split.
        records: Records written.
        skip_reasons: Skipped units by reason.
        drop_reasons: Objects left out of lists inside records, by reason.
        notes: What the converter wants counted without loss, by reason.
    """

    units_in: int = 0
    used: int = 0
    skipped: int = 0
    not_in_split: int = 0
    records: int = 0
    skip_reasons: Counter[str] = field(default_factory=Counter)
    drop_reasons: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, other: Ledger) -> None:
        """Add the counts of another part."""
        self.units_in += other.units_in
        self.used += other.used
        self.skipped += other.skipped
        self.not_in_split += other.not_in_split
        self.records += other.records
        self.skip_reasons += other.skip_reasons
        self.drop_reasons += other.drop_reasons
        self.notes += other.notes

    @property
    def dropped(self) -> int:
        """Objects left out of lists inside records."""
        return self.drop_reasons.total()

    def balances(self) -> bool:
        """Return whether the equation holds."""
        return self.units_in == self.used + self.skipped + self.not_in_split

    def as_dict(self) -> dict[str, Any]:
        """Return the ledger as it stands in dataset.json."""
        return {
            "units_in": self.units_in,
            "used": self.used,
            "skipped": self.skipped,
            "not_in_split": self.not_in_split,
            "records": self.records,
            "objects_dropped": self.dropped,
            "skip_reasons": dict(sorted(self.skip_reasons.items())),
            "drop_reasons": dict(sorted(self.drop_reasons.items())),
            "notes": dict(sorted(self.notes.items())),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Ledger:
        """Read what `as_dict` wrote."""
        return cls(
            units_in=value["units_in"],
            used=value["used"],
            skipped=value["skipped"],
            not_in_split=value["not_in_split"],
            records=value["records"],
            skip_reasons=Counter(value["skip_reasons"]),
            drop_reasons=Counter(value["drop_reasons"]),
            notes=Counter(value["notes"]),
        )

    def lines(self) -> list[str]:
        """Return the ledger as it is shown on screen.

        >>> Ledger(units_in=3, used=2, skipped=1, records=2,
        ...        skip_reasons=Counter({"image-missing": 1})).lines()
        ['3 read = 2 used + 1 skipped + 0 not in this split; 2 records',
         '  skipped: 1 image-missing']
        """
        lines = [
            f"{self.units_in} read = {self.used} used + {self.skipped} skipped + "
            f"{self.not_in_split} not in this split; {self.records} records"
        ]
        for title, counts in (
            ("skipped", self.skip_reasons),
            ("objects dropped", self.drop_reasons),
            ("noted", self.notes),
        ):
            if counts:
                listed = ", ".join(
                    f"{number} {reason}" for reason, number in sorted(counts.items())
                )
                lines.append(f"  {title}: {listed}")
        return lines
