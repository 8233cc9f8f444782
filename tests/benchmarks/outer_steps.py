"""Outer steps: PoDD and RaT-BPTT, distribution and trajectory matching, ridge regression."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from distill_datasets.canvases.canvas import Canvas, show
from distill_datasets.canvases.pixels import Pixels
from distill_datasets.data.real import RealData
from distill_datasets.distilled import Distilled
from distill_datasets.models.convnets import ConvNet
from distill_datasets.networks.network import FreshSource, NetworkSource, Sampled
from distill_datasets.objectives.distribution import Distribution
from distill_datasets.objectives.gradient import Gradient
from distill_datasets.objectives.objective import Objective
from distill_datasets.objectives.regression import Regression
from distill_datasets.objectives.trajectory import Trajectory
from distill_datasets.objectives.unrolled import Unrolled
from distill_datasets.optimizers import Adam
from distill_datasets.runtime.draws import LaneDraw
from distill_datasets.runtime.precision import Precision
from distill_datasets.types import Batch
from distill_datasets.views.augment import Augment
from tests.benchmarks.data import (
    CIFAR,
    POSTER,
    as_floats,
    distilled_set,
    random_real,
)
from tests.benchmarks.plain import (
    convnet,
    matched_gradient,
    regression_gradient,
    set_weights,
    trajectory_gradient,
    unrolled_gradient,
    weights_gradient,
)
from tests.benchmarks.work import REFERENCE, Run, Size, Work, relative_error
from tests.support.tiny import DoubleNetworks, DoubleReal

FLIP_ROTATE = Augment(operations=["flip", "rotate"])
DSA = Augment(operations=["color", "crop", "cutout", "flip", "scale", "rotate"])
DRAW = LaneDraw(0, 0, 0)
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Problem:
    """Everything that one outer step is a function of."""

    real: RealData
    networks: NetworkSource
    distilled: Distilled
    width: int

    @classmethod
    def build(cls, canvas: Canvas, width: int, per_class: int, device: torch.device) -> "Problem":
        real = random_real(CIFAR, per_class, device)
        networks = FreshSource(ConvNet(depth=3, width=width), CIFAR, device)
        return cls(real, networks, distilled_set(real, canvas), width)

    def double(self) -> "Problem":
        """The same in double precision."""
        real = DoubleReal(
            **{each.name: getattr(self.real, each.name) for each in fields(self.real)}
        )
        return Problem(
            real, DoubleNetworks(self.networks), self.distilled.to(dtype=torch.float64), self.width
        )

    def ours(self, objective: Objective) -> Callable[[], tuple[float, Tensor]]:
        """The library's gradient of the trained pixels."""

        def run() -> tuple[float, Tensor]:
            estimate = objective.estimate(self.distilled, self.networks, self.real, DRAW)
            (grad,) = estimate.grads.values()
            return estimate.loss, grad

        return run

    def plain(self) -> tuple[torch.nn.Sequential, Tensor, Callable[[], Tensor], Batch]:
        """A plain network of equal weights, the pixels, how they are shown, the real images."""
        (trained,) = self.distilled.parameters.values()
        weights_P = self.networks.sample(DRAW).weights_P
        module = convnet((CIFAR.c, CIFAR.h, CIFAR.w), CIFAR.k, self.width)
        module = module.to(weights_P.device, weights_P.dtype)
        set_weights(module, weights_P)
        space = self.distilled.space
        images_NCHW, targets_NK = as_floats(self.real)
        floats = Batch(images_NCHW.to(trained.dtype), targets_NK.to(trained.dtype))
        return module, trained, lambda: space.to_student(show(trained, "clip")), floats


@dataclass(frozen=True)
class Window:
    """One setting of the unrolled outer step."""

    width: int
    batch: int
    warm_up: int
    window: int
    real_batch: int
    per_class: int

    def objective(self, differentiate: str) -> Unrolled:
        return Unrolled.model_validate(
            {
                "inner_steps": self.warm_up + self.window,
                "window": self.window,
                "placement": "end",
                "batch": self.batch,
                "real_batch": self.real_batch,
                "optimizer": Adam(lr=0.001),
                "augment": FLIP_ROTATE,
                "differentiate": differentiate,
            }
        )

    def problem(self, device: torch.device) -> Problem:
        return Problem.build(POSTER, self.width, self.per_class, device)

    def reference(self, problem: Problem) -> Callable[[], tuple[float, Tensor]]:
        module, trained, shown, floats = problem.plain()
        corners = [tuple(place) for place in problem.distilled.geometry()["corners_yx"]]  # type: ignore[attr-defined]
        targets_NK = problem.distilled.targets(torch.arange(len(corners)))
        return lambda: unrolled_gradient(
            module, shown, trained, corners, targets_NK, floats, FLIP_ROTATE, DRAW,
            warm_up=self.warm_up, window=self.window, batch=self.batch,
            real_batch=self.real_batch, lr=0.001,
        )  # fmt: skip

    def text(self) -> str:
        return (
            f"PoDD outer step: {self.batch} crops, {self.warm_up} + {self.window} inner steps, "
            f"{self.real_batch} real images, ConvNet-3-{self.width}"
        )


def unrolled_work(name: str, settings: dict[Size, Window]) -> Work:
    """The whole graph against keeping it and against recomputing every step."""

    def side(differentiate: str) -> Callable[[Size, torch.device], Run]:
        def prepare(size: Size, device: torch.device) -> Run:
            window = settings[size]
            return window.problem(device).ours(window.objective(differentiate))

        return prepare

    def reference(size: Size, device: torch.device) -> Run:
        return settings[size].reference(settings[size].problem(device))

    def check() -> dict[str, float]:
        window = settings["tiny"]
        problem = window.problem(CPU).double()
        loss, expected = window.reference(problem)()
        errors = {}
        for differentiate in ("graph", "recompute"):
            got_loss, got = problem.ours(window.objective(differentiate))()
            errors[f"{differentiate}: loss"] = abs(got_loss - loss) / abs(loss)
            errors[f"{differentiate}: gradient"] = relative_error(got, expected)
        return errors

    return Work(
        name,
        {size: window.text() for size, window in settings.items()},
        {REFERENCE: reference, "graph": side("graph"), "recompute": side("recompute")},
        {"graph": 1.3, "recompute": 1 / 1.2},
        check,
        # a float32 pass through the real images of the library costs the last digits
        {f"{way}: {what}": 1e-6 for way in ("graph", "recompute") for what in ("loss", "gradient")},
    )


DISTRIBUTION_SETTINGS: dict[Size, tuple[int, int]] = {
    "tiny": (8, 40),
    "cpu": (128, 256),
    "paper": (128, 256),
}
GRADIENT_SETTINGS: dict[Size, tuple[int, int]] = {
    "tiny": (8, 40),
    "cpu": (128, 128),
    "paper": (128, 256),
}
"""Width of the network and real images of a class, in both."""


def per_class(width: int, real: int, device: torch.device, ipc: int = 10) -> Problem:
    """Some images of every class beside as many real ones as asked."""
    return Problem.build(Pixels(ipc=ipc, bounds="clip"), width, real, device)


def in_two_precisions(
    name: str,
    titles: dict[Size, str],
    problem: Callable[[Size, torch.device], Problem],
    ours: Callable[[Problem, Size, Precision], Run],
    plain: Callable[[Problem, Size], Run],
    aim: float = 1.5,
) -> Work:
    """An outer step in float32 and in bfloat16 beside a plain program, compared in float64."""

    def check() -> dict[str, float]:
        made = problem("tiny", CPU).double()
        loss, expected = plain(made, "tiny")()
        got_loss, got = ours(made, "tiny", "float32")()
        return {
            "float64: loss": abs(got_loss - loss) / abs(loss),
            "float64: gradient": relative_error(got, expected),
        }

    def side(precision: Precision) -> Callable[[Size, torch.device], Run]:
        return lambda size, device: ours(problem(size, device), size, precision)

    return Work(
        name,
        titles,
        {
            REFERENCE: lambda size, device: plain(problem(size, device), size),
            "float32": side("float32"),
            "bfloat16": side("bfloat16"),
        },
        {"float32": 1.0, "bfloat16": aim},
        check,
        {"float64: loss": 1e-6, "float64: gradient": 1e-6},
    )


def matching_work(
    name: str,
    title: str,
    settings: dict[Size, tuple[int, int]],
    kind: type[Distribution] | type[Gradient],
    loop: Callable[..., tuple[float, Tensor]],
    aim: float,
) -> Work:
    """The papers' loop over classes against chunks that stay in the cache."""

    def problem(size: Size, device: torch.device) -> Problem:
        width, real_batch = settings[size]
        return per_class(width, 2 * real_batch, device)

    def ours(made: Problem, size: Size, precision: Precision) -> Callable[[], tuple[float, Tensor]]:
        real_batch = settings[size][1]
        return made.ours(kind(real_batch=real_batch, augment=DSA, real_precision=precision))

    def plain(made: Problem, size: Size) -> Callable[[], tuple[float, Tensor]]:
        module, trained, shown, floats = made.plain()
        of_class = [floats.images_BCHW[rows_N] for rows_N in made.real.rows_of_class]
        real_batch = settings[size][1]
        return lambda: loop(module, shown, trained, of_class, DSA, DRAW, real_batch)

    titles = {
        size: f"{title} outer step: 10 classes of 10 images, {batch} real images each, "
        f"ConvNet-3-{width}"
        for size, (width, batch) in settings.items()
    }
    return in_two_precisions(name, titles, problem, ours, plain, aim)


class OnTheirWay(NetworkSource):
    """Networks that an expert went a little way from."""

    def __init__(self, source: NetworkSource) -> None:
        self._source = source

    def sample(self, draw: LaneDraw) -> Sampled:
        network = self._source.sample(draw)
        way_P = torch.randn(len(network.weights_P), generator=draw("way")).to(network.weights_P)
        network.target_P = network.weights_P + 0.01 * way_P
        return network


def trajectory_work(name: str, ipc: int, steps_of: dict[Size, int]) -> Work:
    """The whole graph of the papers' loop against chunks, in both precisions."""

    def problem(size: Size, device: torch.device) -> Problem:
        width = 8 if size == "tiny" else 128
        return per_class(width, 2 * ipc, device, ipc)

    def ours(made: Problem, steps: int, precision: str) -> Callable[[], tuple[float, Tensor]]:
        objective = Trajectory.model_validate(
            {
                "steps": steps, "step_size": 0.01, "learn_step_size": False, "augment": DSA,
                "precision": precision,
            }
        )  # fmt: skip
        return replace(made, networks=OnTheirWay(made.networks)).ours(objective)

    def plain(made: Problem, steps: int) -> Callable[[], tuple[float, Tensor]]:
        network = OnTheirWay(made.networks).sample(DRAW)
        assert network.target_P is not None
        target_P = network.target_P
        _, trained, shown, _ = made.plain()
        module = convnet((CIFAR.c, CIFAR.h, CIFAR.w), CIFAR.k, made.width, bias=False)
        module = module.to(target_P.device, target_P.dtype)
        set_weights(module, network.weights_P)
        targets_NK = made.distilled.targets(torch.arange(made.distilled.count))
        return lambda: trajectory_gradient(
            module, shown, trained, targets_NK, target_P, DSA, DRAW, steps=steps, size=0.01
        )

    def check() -> dict[str, float]:
        made = problem("tiny", CPU).double()
        loss, expected = plain(made, steps_of["tiny"])()
        got_loss, got = ours(made, steps_of["tiny"], "float32")()
        return {
            "float64: loss": abs(got_loss - loss) / abs(loss),
            "float64: gradient": relative_error(got, expected),
        }

    def side(precision: str) -> Callable[[Size, torch.device], Run]:
        return lambda size, device: ours(problem(size, device), steps_of[size], precision)

    return Work(
        name,
        {
            size: f"MTT outer step: {steps} steps on {10 * ipc} images, ConvNet-3"
            for size, steps in steps_of.items()
        },
        {
            REFERENCE: lambda size, device: plain(problem(size, device), steps_of[size]),
            "float32": side("float32"),
            "bfloat16": side("bfloat16"),
        },
        {"float32": 1.0, "bfloat16": 1.5},
        check,
        {"float64: loss": 1e-9, "float64: gradient": 1e-6},
    )


def regression_work() -> Work:
    """Features of real images in one batch and one graph, against chunks and small leaves."""
    settings: dict[Size, tuple[int, int]] = {
        "tiny": (8, 40),
        "cpu": (128, 256),
        "paper": (128, 1024),
    }
    augment = Augment(operations=["flip"])

    def problem(size: Size, device: torch.device) -> Problem:
        width, real_batch = settings[size]
        return per_class(width, real_batch, device)

    def ours(made: Problem, size: Size, precision: Precision) -> Callable[[], tuple[float, Tensor]]:
        real_batch = settings[size][1]
        return made.ours(Regression(real_batch=real_batch, augment=augment, precision=precision))

    def plain(made: Problem, size: Size) -> Callable[[], tuple[float, Tensor]]:
        module, trained, shown, floats = made.plain()
        targets_NK = made.distilled.targets(torch.arange(made.distilled.count))
        return lambda: regression_gradient(
            module, shown, trained, targets_NK, floats, augment, DRAW,
            real_batch=settings[size][1], ridge=0.000001,
        )  # fmt: skip

    return in_two_precisions(
        "regression",
        {
            size: f"regression outer step: 100 distilled, {batch} real images, ConvNet-3-{width}"
            for size, (width, batch) in settings.items()
        },
        problem,
        ours,
        plain,
    )


TINY = Window(width=8, batch=12, warm_up=2, window=3, real_batch=24, per_class=6)
PAPER = Window(width=128, batch=96, warm_up=70, window=60, real_batch=5000, per_class=5000)
WINDOWS_96: dict[Size, Window] = {
    "tiny": TINY,
    "cpu": Window(128, 96, 5, 5, 256, 100),
    "paper": PAPER,
}
WINDOWS_32: dict[Size, Window] = {
    "tiny": TINY,
    "cpu": Window(128, 32, 10, 10, 256, 100),
    "paper": Window(128, 32, 70, 60, 5000, 5000),
}
STEPS_OF_10: dict[Size, int] = {"tiny": 2, "cpu": 10, "paper": 50}
STEPS_OF_100: dict[Size, int] = {"tiny": 2, "cpu": 3, "paper": 30}
UNROLLED_96 = unrolled_work("unrolled-96", WINDOWS_96)
UNROLLED_32 = unrolled_work("unrolled-32", WINDOWS_32)
DISTRIBUTION = matching_work(
    "distribution", "DM", DISTRIBUTION_SETTINGS, Distribution, matched_gradient, 2.5
)
GRADIENT = matching_work("gradient", "DSA", GRADIENT_SETTINGS, Gradient, weights_gradient, 1.5)
REGRESSION = regression_work()
TRAJECTORY_10 = trajectory_work("trajectory-10", 1, STEPS_OF_10)
TRAJECTORY_100 = trajectory_work("trajectory-100", 10, STEPS_OF_100)
