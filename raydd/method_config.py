"""The settings of each matching method, as frozen dataclasses. Ranges are checked in `raydd.config`.

Defaults are those of the reference programs on CIFAR-10; recipes override them for other sets. Sources: specs/mtt_pdd.md section 2,
specs/idc_dream_pdd.md section 1.11 and specs/dc_dsa_dm_cafe_selection_cl.md sections 4 to 7.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MTTConfig:
    """Matching training trajectories."""

    syn_steps: int = 20
    """Inner steps N of the student."""
    expert_epochs: int = 3
    """Epochs between the start and the target snapshot of the expert."""
    max_start_epoch: int = 25
    """Start epochs are drawn from 0 to this, exclusive."""
    batch_syn: int | None = None
    """Synthetic images per inner step. Default: as many as the stage has of its own; with stages.batch_mode=new_first, in later stages
    twice as many."""
    lr_img: float = 1000.0
    """Learning rate of the images."""
    lr_lr: float = 1e-5
    """Learning rate of the step size."""
    lr_init: float = 0.01
    """Start value of the student's step size."""
    min_step_size: float = 1e-6
    """Floor of the learned step size, which keeps it positive."""
    momentum: float = 0.5
    """Momentum of both optimisers."""
    grad_mode: Literal["adjoint", "unroll", "tesla"] = "adjoint"
    """adjoint: exact, constant memory. unroll: exact, memory grows with syn_steps. tesla: approximate. Changes results."""


@dataclass(frozen=True)
class DCConfig:
    """Matching gradients on networks that train on the synthetic set: `dc`, and with Siamese augmentation `dsa`."""

    outer: int | None = None
    """Image updates with each network. Default: the paper's table, which has ipc 1, 10, 20, 30, 40 and 50."""
    inner: int | None = None
    """Epochs of the network on the synthetic set after each of them but the last. Default: the same table."""
    metric: Literal["rows", "mse", "cos"] = "rows"
    """rows: 1 - cosine of each output row. mse: squared difference of all parameters. cos: one cosine over all."""
    eps: float = 1e-6
    """Added to the product of norms under a cosine. Changes results."""
    batch_real: int = 256
    """Real images of each class in a step."""
    batch_train: int = 256
    """Synthetic images in a batch of network training."""
    lr_net: float = 0.01
    """Learning rate of the network, plain SGD."""
    lr_img: float = 0.1
    """Learning rate of the images."""
    momentum: float = 0.5
    """Momentum of the images."""
    class_chunk: int | None = None
    """Classes in memory at once. Default: as many as a share of the memory takes; `raydd plan` shows it. Changes no bit."""


@dataclass(frozen=True)
class DMConfig:
    """Matching the mean features of random networks."""

    batch_real: int = 256
    """Real images of each class in a step."""
    lr_img: float = 1.0
    """Learning rate of the images; the reference takes 10 from ipc 100."""
    momentum: float = 0.5
    """Momentum of the images."""
    class_chunk: int | None = None
    """Classes that go through the network together. Default: as many as a fixed share of the memory takes; `raydd plan` shows it.
    Changes rounding, but not where derivatives are written by hand. Not with batch normalisation."""


@dataclass(frozen=True)
class CAFEConfig:
    """Matching features layer by layer, with a discrimination term and a dynamic two-level rule."""

    dsa: bool = False
    """Augment real and synthetic batches of a class alike (CAFE+DSA)."""
    iterations: int = 2000
    """Networks; the run ends after so many even if `steps` are left."""
    batch_real: int = 256
    """Real images of each class in a step."""
    batch_train: int = 256
    """Synthetic images in a batch of network training."""
    lr_net: float = 0.01
    """Learning rate of the network, plain SGD."""
    lr_img: float = 0.1
    """Learning rate of the images, halved after 60, 80 and 90 percent of the iterations."""
    momentum: float = 0.5
    """Momentum of the images."""
    early_weight: float = 0.1
    """Weight of every layer but the last two."""
    late_weight: float = 1.0
    """Weight of the last two layers."""
    discrimination_weight: float = 0.01
    """Weight of the cross-entropy of real features against synthetic class centres."""
    window: int = 10
    """Query accuracies that the rule looks at."""
    outer_range: float = 0.04
    """A network is given up once its last `window` accuracies, one for each image update, span less."""
    inner_range: float = 0.03
    """Training pauses for an image update once its last `window` accuracies, one for each epoch, span more."""
    queries: int = 128
    """Real training images of each class by which accuracy is asked."""
    max_outer: int = 50
    """Most image updates with one network; the reference has no limit."""
    max_inner: int = 100
    """Most epochs between two image updates; the reference has no limit and can hang."""
    class_chunk: int | None = None
    """Classes that go through the network together. Default: as many as a fixed share of the memory takes; `raydd plan` shows it.
    Changes rounding, but not where derivatives are written by hand. Not with batch normalisation."""


@dataclass(frozen=True)
class IDCConfig:
    """Matching gradients on networks that train on real data, with several images in one: `idc`, `dream` and `dreamplus`."""

    factor: int = 2
    """Every stored image holds factor x factor training images; 1 is IDC-I."""
    decode: Literal["single", "multi", "bound"] = "single"
    """single: factor only. multi: every factor from 1 up. bound: at most `batch_syn_max` images of a class."""
    inner_steps: int = 100
    """Image updates with each network, one update of the network after each."""
    match: Literal["grad", "feat"] = "grad"
    """What is matched: gradients of the weights, or mean features of the last block. feat takes mse for features whatever `metric` is,
    and ignores `dream.alpha`, in dreamplus too."""
    metric: Literal["mse", "l1", "l1_mean", "cos"] = "mse"
    """Distance of two gradients; the first two are sums over all entries. The feature term of dreamplus has the same metric for mse and
    l1, and mse beside the others."""
    bias: bool = False
    """Match one-dimensional parameters too: biases and norms."""
    fc: bool = False
    """Match the classifier's weight too."""
    batch_real: int = 64
    """Real images of each class in a step; DREAM takes 128."""
    batch_syn_max: int = 128
    """Most decoded images of a class in a step; of more, a fresh random subset."""
    lr_img: float = 5e-3
    """Learning rate of the images at ipc 10 and 32 pixels; multiplied by ipc / 10 and by (side / base)^2."""
    base_side: int = 32
    """The base of that rule; the reference takes 28 for MNIST (but not for FashionMNIST) and 224 for ImageNet."""
    momentum: float = 0.5
    """Momentum of the images, in the order of the classes as the reference steps them."""
    lr_net: float = 0.01
    """Learning rate of the network."""
    momentum_net: float = 0.9
    """Momentum of the network; with a network that is put back, its velocity is kept too."""
    weight_decay_net: float = 5e-4
    """Weight decay of the network, on all its parameters."""
    net_images: int = 2000
    """Real images of a network update, rounded up to whole batches."""
    batch_net: int | None = None
    """Real images in a batch of network training. Default: `batch_real`."""
    early: int = 0
    """Epochs on real data before a network's first step."""
    match_strategy: str = "color_crop_cutout"
    """Augmentation of matching, the same for real and synthetic images of a class."""
    net_strategy: str = "color_crop"
    """Augmentation of network training, each image its own."""
    mix_probability: float = 0.5
    """Probability of CutMix in a batch of network training."""
    class_chunk: int | None = None
    """Classes in memory at once. Default: as many as a share of the memory takes; `raydd plan` shows it. Changes no bit."""


@dataclass(frozen=True)
class DREAMConfig:
    """Matching against representative real images, on top of the `idc` settings: `dream` and `dreamplus`."""

    interval: int = 10
    """Image updates between two choices of representatives."""
    subsample: int = 1
    """Images nearest to each centre; batch_real / subsample centres."""
    iterations: int = 100
    """Most iterations of k-means."""
    reseed: bool = True
    """A cluster that lost its images starts again from the image farthest from its centre. False: its centre becomes the zero vector, as
    in the reference, so that it adds the image nearest to that. Two clusters may choose one image either way."""
    spread: bool = True
    """One image for each centre. False: the images nearest to any centre, as the reference does for Tiny-ImageNet."""
    alpha: float = 1.0
    """dreamplus: weight of the feature term beside the gradient term; without these, idc.match=feat, it has none."""
    warm_up: int = 1
    """dreamplus: epochs on real data of every new network."""


METHOD_AT_LEAST = {
    "mtt.syn_steps": 1, "mtt.expert_epochs": 1, "mtt.max_start_epoch": 1, "mtt.batch_syn": 1, "mtt.momentum": 0, "mtt.lr_lr": 0,
    "dc.outer": 1, "dc.inner": 0, "dc.batch_real": 1, "dc.batch_train": 1, "dc.momentum": 0, "dc.class_chunk": 1,
    "dm.batch_real": 1, "dm.momentum": 0, "dm.class_chunk": 1,
    "cafe.iterations": 1, "cafe.batch_real": 1, "cafe.batch_train": 1, "cafe.momentum": 0, "cafe.early_weight": 0,
    "cafe.late_weight": 0, "cafe.discrimination_weight": 0, "cafe.window": 2, "cafe.outer_range": 0, "cafe.inner_range": 0,
    "cafe.queries": 1, "cafe.max_outer": 1, "cafe.max_inner": 1, "cafe.class_chunk": 1,
    "idc.factor": 1, "idc.inner_steps": 1, "idc.batch_real": 1, "idc.batch_syn_max": 1, "idc.base_side": 1, "idc.momentum": 0,
    "idc.momentum_net": 0, "idc.weight_decay_net": 0, "idc.net_images": 1, "idc.batch_net": 1, "idc.early": 0,
    "idc.mix_probability": 0, "idc.class_chunk": 1,
    "dream.interval": 1, "dream.subsample": 1, "dream.iterations": 1, "dream.alpha": 0, "dream.warm_up": 0,
}  # fmt: skip
METHOD_ABOVE = {
    "mtt.lr_img": 0, "mtt.lr_init": 0, "mtt.min_step_size": 0, "dc.eps": 0, "dc.lr_net": 0, "dc.lr_img": 0, "dm.lr_img": 0,
    "cafe.lr_net": 0, "cafe.lr_img": 0, "idc.lr_img": 0, "idc.lr_net": 0,
}  # fmt: skip
METHOD_BELOW = {"mtt.momentum": 1, "dc.momentum": 1, "dm.momentum": 1, "cafe.momentum": 1, "idc.momentum": 1, "idc.momentum_net": 1}
METHOD_AT_MOST = {"idc.mix_probability": 1}
