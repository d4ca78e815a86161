"""IDC, DREAM and DREAM+: match gradients class by class on networks that train on real data, with several images in each stored one.

DREAM takes as real images of a class those nearest to cluster centres of the network's own features, chosen again every few steps.
DREAM+ adds the distance of mean features, and trains every new network for an epoch first. Synthetic images are kept in pixels.
Source: specs/idc_dream_pdd.md sections 1 to 3.
"""

import time
from dataclasses import replace

import torch
from torch import Tensor

from raydd import kmeans
from raydd.augment import diffaug
from raydd.augment.classes import ClassDraw, apply_classes
from raydd.config import Config
from raydd.decode import Decoding, decode, sources
from raydd.errors import ConfigError
from raydd.matching import both, distances, features, gradients
from raydd.matching.both import Targets
from raydd.matching.distances import Distance, idc_distance
from raydd.matching.memory import Matched
from raydd.methods.base import DataFacts, MethodEntry, NetworkRules, Optimiser, Resources, register
from raydd.methods.chunks import Chunks, images_together
from raydd.methods.networks import (
    EVALUATION_RATE,
    StepKey,
    batch_problems,
    by_class,
    draw_key,
    fresh,
    of_classes,
    parted,
    purpose,
    rank_problems,
    ranked_classes,
)
from raydd.methods.real_training import RealTraining, warm_up_batches
from raydd.models import build
from raydd.rng import stream
from raydd.types import Candidate, Network, Score, SyntheticSet, Update


def decoding(config: Config) -> Decoding:
    """How stored images become training images."""
    return Decoding("pixels", config.idc.factor, config.idc.decode, config.idc.batch_syn_max)


def matched(config: Config) -> Matched:
    """What memory goes by: gradients, with or without features beside them, or features alone."""
    return "gradients" if config.idc.match == "grad" else "features"


class IDC:
    """IDC on one device. The loss is the mean over the classes of the distance of their gradients.

    representatives  real images of a class are those that the network remembers (DREAM), where it remembers any
    features         mean features are matched beside gradients, and new networks warmed up (DREAM+)
    """

    def __init__(self, config: Config, resources: Resources, representatives: bool = False, features: bool = False):
        self._config, self._settings, self._resources = config, config.idc, resources
        self._representatives, self._features = representatives, features
        settings, model = config.idc, resources.model
        self._distance = idc_distance(model.layout, settings.metric, settings.bias, settings.fc)
        self._labels = torch.arange(model.classes, device=resources.device)
        self._decoding = decoding(config)
        self._training = RealTraining(model, resources.real, settings, config.seed)
        self._grads, self._feats = settings.match == "grad", features or settings.match == "feat"
        self._weight = config.dream.alpha if self._grads else 1.0
        self._chunks = Chunks(model, resources.device, matched(config), settings.class_chunk, apart=True)

    # What is matched

    def score(self, synthetic: SyntheticSet, candidate: Candidate, draws: StepKey) -> Score:
        """The matching loss, first order; with `selection.rank_classes` the mean over these classes."""
        started = time.perf_counter()
        classes = ranked_classes(self._config, draws, len(self._labels))
        model, theta, target = self._resources.model, candidate.network.theta, self._target(candidate, draws, classes)
        labels = self._labels[classes]
        parts = self._seen(by_class(synthetic.images, len(self._labels))[classes], synthetic.frozen, candidate, draws, classes)
        seen = torch.cat(parts, 1)
        chunk = self._chunks.of(synthetic=seen.shape[1], frozen=parts[0].shape[1])
        if self._grads and self._feats:
            losses = both.scores(model, theta, Targets(**target), seen, labels, *self._how, chunk)
        elif self._grads:
            losses = gradients.scores(model, theta, target["gradients"], seen, labels, self._distance, chunk)
        else:
            means = features.mean_features(model, theta, seen, chunk)
            losses = self._weight * features.feature_distance(self._feature_metric, target["features"], means)[0]
        size = torch.zeros((), device=theta.device)
        if self._grads:
            size = distances.squared_norms(self._distance, target["gradients"]).mean()
        if self._feats:
            size = size + self._weight * target["features"].square().sum(1).mean()
        return Score(losses.mean().item(), time.perf_counter() - started, size.item())

    def update(self, synthetic: SyntheticSet, candidate: Candidate, draws: StepKey) -> Update:
        """The gradient of the same loss, on the CPU."""
        started = time.perf_counter()
        model, theta, target = self._resources.model, candidate.network.theta, self._target(candidate, draws)
        fixed, free = parted(synthetic, len(self._labels))
        with torch.enable_grad():
            still, seen = self._seen(torch.cat([fixed, free], 1), synthetic.frozen, candidate, draws)
        whole, held = torch.cat([still, seen.detach()], 1), still.shape[1]
        chunk = self._chunks.of(synthetic=whole.shape[1], frozen=held)
        if self._grads and self._feats:
            losses, towards = both.match(model, theta, Targets(**target), whole, self._labels, *self._how, chunk, held)
        elif self._grads:
            place = (target["gradients"], whole, self._labels, self._distance, chunk)
            losses, towards = gradients.match(model, theta, *place, held)
        else:
            place = (target["features"], whole, self._feature_metric, chunk)
            losses, towards = (self._weight * part for part in features.match_features(model, theta, *place, held))
        (gradient,) = torch.autograd.grad(seen, free, towards / len(losses))
        return Update(losses.mean().item(), gradient.flatten(0, 1).cpu(), torch.zeros(()), time.perf_counter() - started)

    def target(self, candidate: Candidate, draws: StepKey) -> Network:
        """The network with the real gradients and mean features of a step in its memory, and the draws and candidate they are for."""
        found = {f"target.{name}": value.cpu() for name, value in self._target(candidate, draws).items()}
        memory = candidate.network.memory | found | {"target.key": torch.tensor((*draws.key, candidate.index))}
        return replace(candidate.network, memory=memory)

    def _target(self, candidate: Candidate, draws: StepKey, classes: Tensor | slice = slice(None)) -> dict[str, Tensor]:
        """Real gradients (C, P) and mean features (C, F), as far as they are matched: remembered for this step, or found."""
        model, network = self._resources.model, candidate.network
        key = network.memory.get("target.key")
        if key is not None and tuple(key.tolist()) == (*draws.key, candidate.index):
            kept = {name: network.memory.get(f"target.{name}") for name in ("gradients", "features")}
            return {name: value[classes].to(self._resources.device) for name, value in kept.items() if value is not None}
        real, labels = self._real(candidate, draws, classes), self._labels[classes]
        chunk = self._chunks.of(real=real.shape[1])
        if self._grads and self._feats:
            return vars(both.targets(model, network.theta, real, labels, chunk))
        if self._grads:
            return {"gradients": gradients.class_gradients(model, network.theta, real, labels, chunk)}
        return {"features": features.mean_features(model, network.theta, real, chunk)}

    @property
    def _how(self) -> tuple[Distance, str, float]:
        """What gradients and features together are matched by."""
        return self._distance, self._feature_metric, self._weight

    # Networks

    def begin(self, born: int) -> Network:
        """A fresh network after the epochs and batches on real data that the settings ask for."""
        training, network = self._training, fresh(self._resources, self._config, born)
        epochs = self._settings.early + (self._config.dream.warm_up if self._features else 0)
        default = 0 if self._features else self._settings.net_images
        slots = warm_up_batches(self._config, born, training.size, default)
        return training.warm_up(network, epochs * training.epoch_batches + slots)

    def prepare(self, network: Network, draws: StepKey) -> Network:
        """The network with its representatives, where the method has these."""
        if not self._representatives or "representatives" in network.memory:
            return network
        return self._choose(network, draws)

    def advance(self, synthetic: SyntheticSet, network: Network, draws: StepKey) -> Network:
        """The network after one update on real data, with new representatives when they are due."""
        network = self._training.update(network, draws.step)
        network = replace(network, inner=network.inner + 1)
        due = self._representatives and network.inner % self._config.dream.interval == 0
        return self._choose(network, draws) if due else network

    def _choose(self, network: Network, draws: StepKey) -> Network:
        """The network with the rows (C, batch_real) that represent each class for it, by k-means on its features of raw pixels."""
        dream, real, count = self._config.dream, self._resources.real, self._settings.batch_real
        chosen = []
        for label, rows in enumerate(real.rows):
            generator = stream(draws.seed, draws.step, f"representatives-{label}", network.inner)
            found = kmeans.representatives(
                self._embedded(network.theta, rows),
                count,
                generator,
                subsample=dream.subsample,
                spread=dream.spread,
                iterations=dream.iterations,
                reseed=dream.reseed,
                name=f"class {label}",
            )
            chosen.append(rows[found.cpu()])
        return replace(network, memory={**network.memory, "representatives": torch.stack(chosen)})

    @torch.no_grad()
    def _embedded(self, theta: Tensor, rows: Tensor) -> Tensor:
        """Features (n, F) of real images as pixels in [0, 1], neither normalised nor augmented, as the reference takes them."""
        real = self._resources.real
        split = rows.split(images_together(self._resources.device))
        parts = [self._resources.model.embed(theta, real.resident.transform.inverse(real.images(part))) for part in split]
        return torch.cat(parts)

    # Batches

    @property
    def _feature_metric(self) -> str:
        return self._settings.metric if self._grads and self._settings.metric in ("mse", "l1") else "mse"

    def _real(self, candidate: Candidate, draws: StepKey, classes: Tensor | slice) -> Tensor:
        """Real images (C, n, ch, H, W) as the network sees them."""
        rows = candidate.network.memory.get("representatives") if self._representatives else None
        real = self._resources.real
        if rows is None:
            name = purpose(self._config, "real-batch", candidate)
            rows = real.next_rows(self._settings.batch_real, draws.seed, draws.step, name, draws.attempt)
        return apply_classes(real.images(rows[classes]), of_classes(self._siamese(candidate, draws), classes))

    def _seen(
        self, images: Tensor, frozen: int, candidate: Candidate, draws: StepKey, classes: Tensor | slice = slice(None)
    ) -> tuple[Tensor, Tensor]:
        """Synthetic images (C, n, ...) as the network sees them: decoded, a subset of these if there are many, normalised, augmented.

        In two parts, of which the first comes from frozen images and has no graph. The second has as many of every class, so a class of
        whose frozen images the subset took more than of another's has those there too.
        """
        decoded = decode(images, self._decoding)
        rows, held = self._rows(images.shape[1], decoded.shape[1], frozen, candidate, draws)
        if rows is not None:
            decoded = decoded[torch.arange(len(decoded))[:, None], rows[classes]]
        drawn, transform = of_classes(self._siamese(candidate, draws), classes), self._resources.real.resident.transform
        parts = decoded[:, :held].detach(), decoded[:, held:]
        normalised = [transform.forward(part.flatten(0, 1)).unflatten(0, part.shape[:2]) for part in parts]
        return apply_classes(normalised[0], drawn), apply_classes(normalised[1], drawn)

    def _rows(self, count: int, decoded: int, frozen: int, candidate: Candidate, draws: StepKey) -> tuple[Tensor | None, int]:
        """Which of a class's decoded images are matched, int64 (C, m), or None for all in order; and how many frozen ones begin each."""
        rows, most = None, self._settings.batch_syn_max
        if decoded > most:
            generator = stream(draws.seed, draws.step, purpose(self._config, "decoded-subset", candidate), draws.attempt)
            rows = torch.stack([torch.randperm(decoded, generator=generator)[:most] for _ in self._labels])
        if not frozen:
            return rows, 0
        rows = torch.arange(decoded).expand(len(self._labels), -1) if rows is None else rows
        still = sources(self._decoding, count)[rows] < frozen
        first = still.to(torch.int8).argsort(dim=1, descending=True, stable=True)
        return rows.gather(1, first), int(still.sum(1).min())

    def _siamese(self, candidate: Candidate, draws: StepKey) -> ClassDraw | None:
        generator = stream(draws.seed, draws.step, purpose(self._config, "siamese", candidate), draws.attempt)
        side = self._resources.model.shape[-1]
        drawn = diffaug.draw_classes(generator, self._settings.match_strategy, len(self._labels), side)
        return drawn and drawn.to(self._resources.device)


def _optimiser(config: Config, side: int, outer: int) -> Optimiser:
    idc = config.idc
    lr = idc.lr_img * config.ipc / 10 * (side / idc.base_side) ** 2
    return Optimiser(lr, idc.momentum, class_sum=True, class_order=True, clamp=True)


def _matches_nothing(config: Config, facts: DataFacts) -> bool:
    """Whether the network has no gradient that the settings match. One that cannot be built is refused elsewhere."""
    try:
        layout = build(config.model, facts.shape, len(facts.classes)).layout
    except ConfigError:
        return False
    return not idc_distance(layout, config.idc.metric, config.idc.bias, config.idc.fc).parts


def _problems(config: Config, facts: DataFacts | None) -> list[str]:
    idc, dream, found = config.idc, config.dream, []
    if idc.factor > 1 and config.init == "real":
        found.append(
            f"--init={config.init} with --idc.factor={idc.factor}: several images share a stored one. "
            "Use --init mix, first, kmeans or noise."
        )
    if config.method == "idc" and config.selection.rank_batch == "own":
        found.append("--selection.rank_batch=own needs a method with representatives: dream or dreamplus.")
    if config.method != "idc" and idc.batch_real % dream.subsample:
        found.append(f"--dream.subsample={dream.subsample} does not divide --idc.batch_real={idc.batch_real}.")
    if facts is None:
        return found
    if idc.factor > facts.shape[-1]:
        found.append(f"--idc.factor={idc.factor} is more than the {facts.shape[-1]} pixels of a side.")
    if idc.match == "grad" and _matches_nothing(config, facts):
        found.append(
            f"--model.name={config.model.name}: {config.method} matches the gradients of convolutions, and this network has none. Match "
            "its other weights with --idc.fc, or features with --idc.match feat, or use another network."
        )
    return found + rank_problems(config, facts) + batch_problems("idc.batch_real", idc.batch_real, facts)


_RULES = NetworkRules(
    length=lambda config: config.idc.inner_steps,
    slots="put_back",
    independent=True,
    prepares=True,
    trains_last=True,
    warms=True,
    ranks_classes=True,
)
_BUILDS = {
    "idc": lambda config, resources: IDC(config, resources),
    "dream": lambda config, resources: IDC(config, resources, representatives=True),
    "dreamplus": lambda config, resources: IDC(config, resources, representatives=True, features=True),
}
for _name, _build in _BUILDS.items():
    register(
        MethodEntry(
            name=_name,
            build=_build,
            draw=draw_key,
            optimiser=_optimiser,
            step_size=lambda config: EVALUATION_RATE,
            rates=lambda config: {"idc.lr_img": config.idc.lr_img},
            networks=_RULES,
            decoding=decoding,
            matched=matched,
            problems=_problems,
        )
    )
