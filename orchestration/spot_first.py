"""Which kind of machine Ray's autoscaler asks for: spot machines first, others while spot ones are refused.

    export RAY_enable_autoscaler_v2=0 RAY_AUTOSCALER_UTILIZATION_SCORER=orchestration.spot_first.score

Decisions
- Neither autoscaler of Ray 2.60 turns to another kind by itself when a cloud refuses one. The newer one
  lowers a kind only when machines that it got never join; a refused request is forgotten and made again
  seconds later, for hours if need be, however the priorities are set. The older one remembers refusals for
  half an hour, hands them to whoever scores the kinds, and its own scorer does not look. This is a scorer
  that does, in the place that Ray keeps for one.
- How well a machine fits what waits is judged by Ray's own scorer, and first: a refused small machine is not
  replaced by a large one as long as there is another small kind. Then a kind that was not refused wins; among
  refused ones that of the longest ago, so that they are tried in turn; among equals the spot kind.
- A kind is a spot kind by its name, `..._spot`: a scorer is shown nothing else of it.
"""

from __future__ import annotations

from typing import Any

SPOT = "_spot"
"""How the names of spot kinds end in `available_node_types`."""


def score(
    node_resources: dict[str, float],
    resources: list[dict[str, float]],
    node_type: str,
    *,
    node_availability_summary: Any,
) -> tuple[Any, ...] | None:
    """How gladly a machine of this kind is added for what waits; the greatest wins, None: it is of no use.

    The arguments are those of Ray's scorers: the machine's resources, the waiting requests, the kind, and
    what is known of refusals in the last half hour.
    """
    from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer

    fit = _default_utilization_scorer(
        node_resources, resources, node_type, node_availability_summary=node_availability_summary
    )
    if fit is None:
        return None
    record = node_availability_summary.node_availabilities.get(node_type)
    refused_at = 0.0 if record is None or record.is_available else float(record.last_checked_timestamp)
    return (*fit, -refused_at, node_type.endswith(SPOT))
