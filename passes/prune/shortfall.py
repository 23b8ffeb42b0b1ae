"""What the user asked for and cannot have, in words: an amount, or the share of a group, beyond what may go."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from .amount import Amount, by_family
from .grouping import Groups
from .order import Order
from .overrides import makers


def of_amount(
    groups: Groups, order: Order, amount: Amount, shares: Mapping[int, float], gone: Sequence[int]
) -> list[str]:
    """A line where the units that go at full strength are less than the amount, and why; none where they are enough."""
    found, wanted, least = f"{amount.share(groups, gone):.1%}", f"{amount.wanted:.1%}", groups.ledger.least
    if not len(groups.units) and len(groups.ledger.vital) and least > 1:  # any share of no channels is none
        return [f"prune: nothing may go (asked for {wanted}): min_channels={least} keeps every channel that might"]
    if found == wanted or amount.met(groups, gone, 1.0):
        return []
    if amount.met(groups, order.units, 1.0):
        why = "channel counts are kept round (round_to=1 takes more)"
    elif shares and len(shares) == len(groups.families):
        why = "shares decides for every group"
    else:  # of channels only those that may go count, so that pins take nothing from it
        why = "" if amount.counts == "channels" else "the rest is pinned or excluded (inspect --groups says why), or "
        why += "the few that every layer keeps" + (f" (min_channels={least})" if least > 1 else "")
        why += ", and shares decides for some groups" if shares else ""
    return [f"prune: all that may go removes only {found} of the {amount.counts} (asked for {wanted}): {why}"]


def of_shares(groups: Groups, order: Order, shares: Mapping[int, float], gone: Sequence[int]) -> list[str]:
    """A line for each group that loses less than its own share, by more than rounding explains."""
    settled, lost = by_family(groups, order.units[: order.settled]), by_family(groups, gone)
    lines, first = [], makers(groups)
    for k, share in shares.items():
        family = groups.families[k]
        due, left = round(share * len(family.units)), lost.get(k, 0)
        if due and (settled.get(k, 0) < due or not left):
            name = first[k][0]
            lines.append(
                f"prune: shares: of the {len(family.units)} channels that {name} makes only {left} may go "
                f"(asked for {due}): min_channels or round_to keeps the others"
            )
    return lines


def of_nothing(groups: Groups) -> str:
    """Why nothing goes: where nothing may, with the commonest reasons, each without the names of its many nodes."""
    nothing = "nothing that may go was found"
    if len(groups.units):
        return nothing
    rows = groups.describe()
    if not rows:
        return f"{nothing}: no constant has channels"
    kinds: Counter[str] = Counter()
    reasons: dict[str, set[str]] = {}
    for row in rows:
        kind = re.sub(r"'[^']*'", "'…'", row.pinned or "")
        kinds[kind] += row.channels
        reasons.setdefault(kind, set()).add(row.pinned or "")
    said = []
    for kind, count in (+kinds).most_common(2):
        text = next(iter(reasons[kind])) if len(reasons[kind]) == 1 else kind
        said.append(f"{count:,} of {kinds.total():,} channels: {text}")
    layers = Counter(row.pinned for row in rows if not row.channels)  # whose channels nobody looked at
    said += [f"{count:,} layers: {why}" for why, count in layers.most_common(1)]
    advice = "inspect --groups lists all reasons"
    if groups.flow.norms != "allow" and any(kind.startswith("statistics of") for kind in kinds):
        advice += ", norms=allow lets norms see fewer channels"
    return f"{nothing} ({'; '.join(said)}; {advice})"
