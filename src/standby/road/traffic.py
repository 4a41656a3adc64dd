"""The verbs by which the backup server tells a mover the traffic rules and lends it rates."""

from __future__ import annotations

from typing import Any

import msgspec

from standby.errors import ProtocolError
from standby.road.owners import current_owner
from standby.wire.throttle import Lease, RuleSpec, Throttles


class Rules(msgspec.Struct, frozen=True):
    """Arguments of `traffic_rules`: all rules there are, leases by rule, and the process that
    lends."""

    rules: list[RuleSpec]
    leases: dict[str, Lease]
    lender: str = ""


class TrafficVerbs:
    """`traffic_rules(rules, leases, lender)`: the rules of the lender, and leases for some of them;
    {"others": names of rules that hold because other lenders told them, and this one did not}.
    `traffic_demands(lender)`: {rule: Demand} since that lender asked last."""

    def __init__(self, throttles: Throttles) -> None:
        self._throttles = throttles

    def call(self, verb: str, arguments: dict[str, Any]) -> Any:
        """See Verbs; NotImplemented for any other."""
        if verb == "traffic_demands":
            return msgspec.to_builtins(self._throttles.demands(str(arguments.get("lender", ""))))
        if verb != "traffic_rules":
            return NotImplemented
        try:
            told = msgspec.convert(arguments, Rules)
        except msgspec.ValidationError as exc:
            raise ProtocolError("backup server", f"{verb}: {exc}") from exc
        owner = current_owner()
        others = self._throttles.configure(told.rules, told.lender, lambda: not owner.is_gone)
        for name, lease in told.leases.items():
            self._throttles.lend(name, lease, told.lender)
        return {"others": others}

    def close(self) -> None:
        """Nothing is open."""
