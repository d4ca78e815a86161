"""Evaluation protocols by name: how a program of the literature trains the networks by which it judges a synthetic set.

A protocol says everything that `EvaluationConfig` leaves open: epochs, learning rate and its schedule, batch size, augmentation and
when to test. `resolve` puts the two together. Sources: specs/mtt_pdd.md section 2.4, specs/dc_dsa_dm_cafe_selection_cl.md section 3,
specs/idc_dream_pdd.md section 1.10.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raydd.augment import dc as dc_operations
from raydd.config import DSA_OPERATIONS, Config, ModelConfig
from raydd.errors import ConfigError
from raydd.evaluate.staged import passes_for, stage_epochs
from raydd.training import Phase, drop_once

IDC_STRATEGY = "color_crop_flip_scale_rotate"
_OPERATIONS = {"dsa": DSA_OPERATIONS, "diffaug": DSA_OPERATIONS, "dc": dc_operations.OPERATIONS}


@dataclass(frozen=True)
class Case:
    """What is evaluated, as far as a protocol asks.

    model   the network that is trained
    images  training images of each class in all stages together, decoded
    views   training images that one stored image gives
    ipc     stored images of each class in all stages together
    side    pixels
    """

    model: ModelConfig
    images: int
    views: int
    ipc: int
    side: int
    classes: int


@dataclass(frozen=True)
class Augmentation:
    """A module of `raydd.augment`, "none" for nothing, and its strategy; empty for the default of `default_strategy`."""

    family: str
    strategy: str = ""


@dataclass(frozen=True)
class Protocol:
    """A named way to train and test.

    source      the reference program
    schedule    (epochs, rate) -> phases
    epochs      (case, whether batches are augmented) -> epochs as the program counts them
    lr          None for the learned step size of the set
    parameters  of dsa and diffaug; None as `augment.parameters` says
    tested      (passes, samples) -> passes after which the test accuracy is taken
    """

    name: str
    source: str
    schedule: Callable[[int, float], tuple[Phase, ...]]
    epochs: Callable[[Case, bool], int]
    augment: Callable[[Case], Augmentation]
    lr: float | None = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 256
    parameters: str | None = "per-image"
    cutmix: float = 0.0
    samples: int = 5
    tested: Callable[[int, int], set[int]] = lambda passes, samples: spread(passes, samples)


@dataclass(frozen=True)
class Settings:
    """A protocol with everything decided; `augment` is a family of `raydd.augment` or none.

    `epochs` are as the program counts them, on each set where networks are trained on several in turn.
    """

    protocol: str
    epochs: int
    momentum: float
    weight_decay: float
    batch_size: int
    augment: str
    strategy: str
    parameters: str
    cutmix: float
    samples: int

    def phases(self, lr: float) -> tuple[Phase, ...]:
        """The schedule at a start rate. Raises `ConfigError` when there is nothing to train."""
        phases = protocol(self.protocol).schedule(self.epochs, lr)
        if not sum(phase.epochs for phase in phases):
            raise ConfigError([f"--evaluation.epochs={self.epochs} is no training in the protocol {self.protocol}; give 1 or more."])
        return phases

    def passes(self) -> int:
        """How often networks go over a set."""
        return sum(phase.epochs for phase in self.phases(1.0))


_PROTOCOLS: dict[str, Protocol] = {}


def register_protocol(entry: Protocol) -> Protocol:
    """Add a protocol to the registry."""
    _PROTOCOLS[entry.name] = entry
    return entry


def protocol_names() -> list[str]:
    """Every registered protocol."""
    return sorted(_PROTOCOLS)


def protocol(name: str) -> Protocol:
    """The protocol of this name. Raises `ConfigError` with the names that exist."""
    if name not in _PROTOCOLS:
        raise ConfigError([f"--evaluation.protocol={name} is not an evaluation protocol; known: {', '.join(protocol_names())}."])
    return _PROTOCOLS[name]


def rate(config: Config, step_size: float) -> float:
    """The learning rate: `evaluation.lr`, else the protocol's, else the learned step size of the set."""
    return config.evaluation.lr or protocol(config.evaluation.protocol).lr or step_size


def resolve(config: Config, model: ModelConfig, counts: Sequence[int], side: int, classes: int, ipc: int | None = None) -> Settings:
    """The protocol `evaluation.protocol` for networks `model`, with every override applied.

    `counts` are the training images, decoded, of each set that the networks are trained on in turn; one but for staged sets. `ipc`
    is how many stored images of each class they hold in all (default: `config.ipc`, which is right for one stage). All sets get as
    many epochs: what `stage_epochs` makes of `evaluation.epochs` or the protocol's, unless `evaluation.updates` says otherwise.

    Raises `ConfigError` for an unknown protocol, for an augmentation that is none and for updates given together with epochs.
    """
    given, named, ipc = config.evaluation, protocol(config.evaluation.protocol), ipc or config.ipc
    images = (sum(counts) if given.stages == "sequential" else max(counts)) // classes
    case = Case(model, images, max(1, images // ipc), ipc, side, classes)
    augment = augmentation(config, named.augment(case))
    batch_size = _either(given.batch_size, named.batch_size)
    epochs = stage_epochs(given.stages, _either(given.epochs, named.epochs(case, augment.family != "none")), len(counts))
    if given.same_compute:
        epochs = max(1, epochs // case.views)
    if given.updates is not None:
        epochs = _epochs_for(config, passes_for(given.updates, counts, batch_size))
    return Settings(
        protocol=named.name,
        epochs=epochs,
        momentum=_either(given.momentum, named.momentum),
        weight_decay=_either(given.weight_decay, named.weight_decay),
        batch_size=batch_size,
        augment=augment.family,
        strategy=augment.strategy,
        parameters=named.parameters or config.augment.parameters,
        cutmix=_either(given.cutmix, named.cutmix),
        samples=_either(given.samples, named.samples),
    )


def _epochs_for(config: Config, passes: int) -> int:
    """So many passes in the epochs of the protocol, whose program may make one pass more than it says."""
    given = config.evaluation
    others = [f"--evaluation.epochs={given.epochs}"] if given.epochs is not None else []
    others += ["--evaluation.same_compute"] if given.same_compute else []
    if others:
        text = f"--evaluation.updates={given.updates} decides how long networks train, and so does {{}}; give one of the two."
        raise ConfigError([text.format(other) for other in others])
    return passes - (sum(phase.epochs for phase in protocol(given.protocol).schedule(1, 1.0)) - 1)


def augmentation(config: Config, usual: Augmentation) -> Augmentation:
    """What `evaluation.augment` and `evaluation.strategy` make of a protocol's usual augmentation, its strategy filled in.

    Raises `ConfigError` for operations that the family does not have.
    """
    given = config.evaluation
    family = usual.family if given.augment == "protocol" else given.augment
    if family == "none" and given.strategy not in ("", "none"):
        raise ConfigError(
            [f"--evaluation.strategy={given.strategy} augments nothing here; say with what: --evaluation.augment dsa, diffaug or dc."]
        )
    strategy = given.strategy or (usual.strategy if family == usual.family else "") or default_strategy(config, family)
    if family == "none" or strategy == "none":
        return Augmentation("none", "none")
    unknown = [name for name in strategy.split("_") if name not in _OPERATIONS[family]]
    if unknown:
        known = ", ".join(_OPERATIONS[family])
        raise ConfigError([f"--evaluation.strategy={strategy}: {family} has no operation {unknown[0]!r}; join any of {known} with '_'."])
    return Augmentation(family, strategy)


def default_strategy(config: Config, family: str) -> str:
    """The operations of a family where neither settings nor protocol name them; DSA's are those of the run."""
    return {"dsa": config.augment.strategy, "diffaug": IDC_STRATEGY, "dc": "crop_scale_rotate", "none": "none"}[family]


def _either(given: float | int | None, usual: float | int) -> float | int:
    return usual if given is None else given


def schedule(epochs: int, lr: float) -> tuple[Phase, ...]:
    """MTT and DC: epochs + 1 passes, the rate divided by 10 and the optimiser rebuilt once epoch index epochs // 2 + 1 is done.

    1000 epochs are 502 at lr and 499 at lr / 10 (specs/mtt_pdd.md section 2.4).
    """
    return drop_once(epochs + 1, epochs // 2 + 1, lr)


def two_drops(epochs: int, lr: float) -> tuple[Phase, ...]:
    """IDC: the rate times 0.2 after 2/3 and again after 5/6 of the epochs; the momentum goes on (specs/idc_dream_pdd.md section 1.10)."""
    ends = (0, 2 * epochs // 3, 5 * epochs // 6, epochs)
    return tuple(
        Phase(lr * 0.2**drop, end - start, carries=drop > 0) for drop, (start, end) in enumerate(itertools.pairwise(ends)) if end > start
    )


def spread(passes: int, samples: int) -> set[int]:
    """`samples` of the passes 1..passes, spread evenly, the last one included."""
    return {max(1, round(passes * point / samples)) for point in range(1, samples + 1)}


def every_so_often(passes: int, samples: int) -> set[int]:
    """IDC: every (passes // samples)-th pass, and the last."""
    return {*range(max(1, passes // samples), passes + 1, max(1, passes // samples)), passes}


def idc_epochs(case: Case, augmented: bool) -> int:
    """IDC's epochs: 1000, 400 for a DenseNet on many decoded images, and by their number for images of ImageNet's size.

    That size is taken to be more than 64 pixels; the program goes by the data set's name.
    """
    if case.side > 64:
        epochs = next((epochs for most, epochs in ((1, 3000), (10, 2000), (50, 1500), (200, 1000), (500, 500)) if case.images <= most), 300)
        return epochs if case.classes < 100 else epochs * 2 // 3 // 100 * 100
    return 400 if case.model.name.startswith("densenet") and case.ipc >= 50 and case.views > 1 else 1000


def _dc_augmentation(case: Case) -> Augmentation:
    """Only the ConvNet with batch normalisation gets any; MNIST's crop_scale_rotate is a matter of its recipes."""
    return Augmentation("dc", "crop_noise") if (case.model.name, case.model.norm) == ("convnet", "batch") else Augmentation("none")


def _fixed(plain: int, augmented: int) -> Callable[[Case, bool], int]:
    return lambda case, with_augmentation: augmented if with_augmentation else plain


def _dsa(case: Case) -> Augmentation:
    return Augmentation("dsa")


_THOUSAND, _DC_SOURCE = _fixed(1000, 1000), "DatasetCondensation utils.py:337 evaluate_synset"
register_protocol(Protocol("mtt", "mtt-distillation utils.py:352 evaluate_synset", schedule, _THOUSAND, _dsa, lr=None, parameters=None))
register_protocol(Protocol("dc", _DC_SOURCE, schedule, _fixed(300, 1000), _dc_augmentation))
register_protocol(Protocol("dsa", _DC_SOURCE, schedule, _THOUSAND, _dsa))
register_protocol(Protocol("dm", _DC_SOURCE, schedule, _THOUSAND, _dsa))
register_protocol(Protocol("cafe", "CAFE distill.py:190", schedule, _fixed(600, 1000), lambda case: Augmentation("none")))
register_protocol(Protocol("cafe-dsa", "CAFE distill.py:190", schedule, _THOUSAND, _dsa))
register_protocol(
    Protocol(
        "idc",
        "Efficient-Dataset-Condensation train.py:102 train",
        two_drops,
        idc_epochs,
        lambda case: Augmentation("diffaug", IDC_STRATEGY),
        batch_size=64,
        cutmix=0.5,
        samples=4,
        tested=every_so_often,
    )
)
