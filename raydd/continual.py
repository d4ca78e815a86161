"""Class-incremental learning from distilled sets: distil each phase's classes, keep the images, train on what is kept.

    RUN/phase_01 ..         the run of each phase, an ordinary one
    RUN/baselines/herding/  rows of real images that were chosen instead, by phase
    RUN/networks.jsonl      accuracies of each network, as it is done
    RUN/continual.json      the result
    RUN/order_02/ ..        the same for further orders of the classes

The whole command may be repeated: what is finished is kept, and an interrupted phase goes on from its checkpoint. Sources: PDD, section
5.5; specs/dc_dsa_dm_cafe_selection_cl.md section 10.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from raydd.config import Config, Execution, fingerprint, to_dict
from raydd.continual_config import ContinualConfig, check_continual, classes_per_phase
from raydd.continual_kept import DISTILLED, Order, Source, kept_images, order_of
from raydd.continual_result import matrix_table, seen_table, summary
from raydd.continual_training import ContinualWorker, LearnedNetwork, passes, split_test
from raydd.data import load
from raydd.errors import ConfigError
from raydd.files import append_line, atomic_write_bytes, atomic_write_json, read_lines
from raydd.launch import Report, absolute, services_for, silent, stop_on_signals
from raydd.methods.base import check
from raydd.models import build
from raydd.places import is_uri
from raydd.select_config import SelectConfig, resolved
from raydd.setup import protocol
from raydd.transition import Stopped

RESULT = "continual.json"
_RECORDS = "networks.jsonl"


def continual_learning(
    config: Config,
    execution: Execution | None = None,
    settings: ContinualConfig | None = None,
    select: SelectConfig | None = None,
    report: Report = silent,
) -> dict[str, Any]:
    """Distil the phases, train on what is kept, and return the content of continual.json with `run`, the folder.

    `select` says how networks are trained for baselines that need any. Raises `RayddError`s, and `KeyboardInterrupt` when stopped; the
    same call then carries on.
    """
    settings, select = settings or ContinualConfig(), select or SelectConfig()
    config, execution = absolute(config), execution or Execution()
    check_continual(settings)
    check(config, execution)
    for method in settings.baseline_methods:
        resolved(method, select)
    if is_uri(execution.run):
        raise ConfigError(
            [f"--run={execution.run}: a continual run is a folder of runs on this machine; copy it to a storage when it is done."]
        )
    run = Path(execution.run or f"runs/{config.recipe or config.method}-continual-{config.seed}").resolve()
    dataset = load(config.data, lambda done, total: report({"phase": "data", "done": done, "total": total}))
    classes_per_phase(settings, len(dataset.classes))
    orders = [order_of(config, execution, settings, run, dataset, place) for place in range(settings.orders)]
    learned = [_learned(order, select, report) for order in orders]
    result = _result(orders, learned)
    atomic_write_json(run / RESULT, result)
    return {**result, "run": str(run)}


@dataclass(frozen=True)
class Learned:
    """What came of a source in one order of the classes: its memory, and the networks in their order."""

    source: Source
    networks: list[LearnedNetwork]


def _learned(order: Order, select: SelectConfig, report: Report) -> dict[str, Learned]:
    """Every source of an order by name, with what networks learned from it; those that are recorded are not trained again."""
    sources = kept_images(order, select, report)
    path = order.folder / _RECORDS
    known = {entry["key"]: entry for entry in read_lines(path)}
    _mend(path)
    jobs = [(name, net) for name in sources for net in range(order.config.evaluation.nets)]
    keys = {(name, net): _key(order, sources[name], net) for name, net in jobs}
    found = {job: _entry(known[keys[job]]) for job in jobs if keys[job] in known}

    def on_result(network: LearnedNetwork) -> None:
        job = (network.source, network.net)
        append_line(path, {"key": keys[job], **asdict(network)})
        found[job] = network

    left = [job for job in jobs if job not in found]
    if left:
        _train(order, sources, left, on_result, report)
    return {name: Learned(source, [found[job] for job in jobs if job[0] == name]) for name, source in sources.items()}


def _mend(path: Path) -> None:
    """Take away the last line if a crash tore it, so that the next one starts on a line of its own."""
    if path.exists():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            atomic_write_bytes(path, content[: content.rfind(b"\n") + 1])


def _entry(values: dict[str, Any]) -> LearnedNetwork:
    return LearnedNetwork(**{name: value for name, value in values.items() if name != "key"})


def _key(order: Order, source: Source, net: int) -> str:
    """What decides the accuracies of a network: equal keys, equal numbers."""
    digest = hashlib.sha256()
    for own in source.of(net):
        for tensor in (own.images, own.labels, own.stages):
            digest.update(tensor.contiguous().numpy().tobytes())
        digest.update(repr((own.rates, own.stored)).encode())
    config, settings = order.config, order.settings
    values = {name: to_dict(getattr(config, name)) for name in ("model", "augment")}
    values |= {"evaluation": {**protocol(config), "nets": None}, "settings": {**asdict(settings), "orders": None, "baselines": None}}
    data = {"fingerprint": order.dataset.fingerprint, "order": order.numbers, "tf32": config.tf32}
    return fingerprint({**values, **data, "images": digest.hexdigest(), "seed": config.seed, "net": net})


def _train(
    order: Order,
    sources: dict[str, Source],
    jobs: Sequence[tuple[str, int]],
    on_result: Callable[[LearnedNetwork], None],
    report: Report,
) -> None:
    """Have networks trained by the services; an interrupted call keeps those that are done."""
    config, execution = order.config, order.execution
    model = build(config.model, order.dataset.shape, len(order.dataset.classes))
    each = {name: passes(config, model, source.of(0)) for name, source in sources.items()}
    total, done, finished = sum(each[name] for name, _ in jobs), 0, 0

    def tell(count: int) -> None:
        report({"phase": "continual", "done": count, "total": total})

    with services_for(config, execution, report) as services, stop_on_signals(report) as should_stop:

        def heed() -> None:
            if should_stop():
                raise Stopped

        def on_pass() -> None:
            nonlocal done
            done += 1
            tell(done)
            heed()

        def heard(network: LearnedNetwork) -> None:
            nonlocal done, finished
            finished += each[network.source]
            if finished > done:  # passes on another machine are heard of only here
                done = finished
                tell(done)
            on_result(network)

        worker = ContinualWorker(
            config=config,
            settings=order.settings,
            execution=execution,
            order=order.numbers,
            fingerprint=order.dataset.fingerprint,
            transform=order.transform,
            kept={name: source.draws for name, source in sources.items()},
            dataset=order.dataset,
            on_pass=on_pass,
        )
        try:
            services.run_jobs(worker, list(jobs), heard, heed)
        except Stopped:
            raise KeyboardInterrupt(f"stopped while training on what is kept in {order.folder}; the same command carries on") from None


def _result(orders: Sequence[Order], learned: Sequence[dict[str, Learned]]) -> dict[str, Any]:
    """The content of continual.json: accuracies are fractions; lists go by phase, matrices by phase and by phase of the classes."""
    first = orders[0]
    images = [[len(part) for part in split_test(order.dataset, order.numbers, order.settings.phases)] for order in orders]
    sources = {}
    for name, own in learned[0].items():
        networks = [(place, network) for place, found in enumerate(learned) for network in found[name].networks]
        sources[name] = {
            **summary([network.matrix for _, network in networks], [images[place] for place, _ in networks]),
            "memory": {"images": own.source.images, "bytes": own.source.bytes},
            "single": [
                {"order": orders[place].config.seed, "net": network.net, "matrix": network.matrix, "seconds": network.seconds}
                for place, network in networks
            ],
        }
    classes = first.dataset.classes
    return {
        "protocol": first.settings.protocol,
        "phases": first.settings.phases,
        "classes_per_phase": len(classes) // first.settings.phases,
        "images_per_class": first.images_per_class,
        "stages": first.config.stages.count,
        "settings": asdict(first.settings),
        "config": to_dict(first.config),
        "orders": [
            {"seed": order.config.seed, "classes": [classes[number] for number in order.numbers], "test_images": own}
            for order, own in zip(orders, images, strict=True)
        ],
        "sources": sources,
    }


def show(result: dict[str, Any]) -> None:
    """Print the tables of a result."""
    console = Console()
    console.print(seen_table(result))
    console.print(matrix_table(result, DISTILLED))
    nets = result["sources"][DISTILLED]["networks"]
    print(f"test accuracy on all classes seen, mean and std over {nets} networks, protocol {result['protocol']}")
    print(f"result: {result['run']}/{RESULT}")
