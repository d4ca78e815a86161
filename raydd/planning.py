"""One prediction for any method: over expert trajectories (`raydd.plan`), or with networks that train (`raydd.plan_networks`)."""

from dataclasses import replace

from rich.table import Table

from raydd.config import Config, Execution
from raydd.methods import method
from raydd.models import FlatModel
from raydd.plan import Plan, plan_rows, predict, refuse_what_cannot_fit
from raydd.plan_networks import NetworkPlan, network_rows, predict_networks, refuse_networks
from raydd.plan_stages import transition_rows, transitions


def predicted(config: Config, execution: Execution, model: FlatModel, train_images: int, timed: bool = True) -> Plan | NetworkPlan:
    """The plan of a run on `train_images` real images; `timed` also measures its parts, in seconds.

    With several stages memory and steps are those of the last one. Raises `ConfigError` for settings with which later stages could
    not begin.
    """
    later = transitions(config, execution, model, train_images, timed)
    if method(config.method).networks is None:
        return replace(predict(config, execution, model, timed), transitions=later)
    return replace(predict_networks(config, execution, model, train_images, timed), transitions=later)


def refuse(plan: Plan | NetworkPlan) -> None:
    """Raise `ResourceError` with the numbers, and with settings that fit, when the workers exceed the free memory."""
    if isinstance(plan, NetworkPlan):
        refuse_networks(plan)
    else:
        refuse_what_cannot_fit(plan)


def refuse_run(config: Config, execution: Execution, model: FlatModel, train_images: int) -> None:
    """Refuse a run whose workers exceed the free memory here. The machines of a cluster that is joined are not known."""
    if execution.address == "local" or execution.workers == 0:
        refuse(predicted(config, execution, model, train_images, timed=False))


def plan_table(config: Config, plan: Plan | NetworkPlan) -> Table:
    """The prediction for people, within 80 columns."""
    table = Table(box=None, show_header=False)
    rows = network_rows(config, plan) if isinstance(plan, NetworkPlan) else plan_rows(config, plan)
    for row in [*rows, *transition_rows(plan.transitions)]:
        table.add_row(*row)
    return table
