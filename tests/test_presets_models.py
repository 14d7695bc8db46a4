"""Presets of other models than one that names what it is shown: of language, of images, of a distribution, of texts."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import Outcome, assert_one_line, compose, read
from helpers.processes import fork
from helpers.runs import assert_same, outcome_of, whole_run
from helpers.warm import Warm
from PIL import Image

import train
from lab.config.command import checked
from lab.config.schema import TrainConfig
from lab.runs.directory import recorded_part
from lab.runs.run import Run
from lab.sweeps import findings
from model.char_gpt import CharGPT, characters, next_character
from model.gan import centres, coverage, modes
from model.net import DataSpec
from model.schedule import warmup_cosine, warmup_stable_decay
from model.text_classification import Reviews, TextClassifier
from model.vae import VAE

DATA_ROOT = Path(os.environ.get("DATA_ROOT", Path(__file__).parents[1] / "data"))
TINY = {  # of each preset: what makes it small, what it shows, the split to evaluate
    "char_gpt": (
        ["data.block_size=8", "data.max_batches=3", "model.width=16", "model.dropout=0.1"],
        ["samples.txt"],
        "val",
    ),
    "vae": (["data.num_val=40", "model.hidden_sizes=[16]"], ["samples.png", "reconstructions.png"], "test"),
    "gan": (["data.num_examples=600", "data.passes=2", "model.width=16"], ["samples.gif"], "test"),
    "text_classification": (["data.num_train=150", "data.num_test=40", "model.width=16"], ["texts.txt"], "test"),
}
SEARCH = "space: {optimizer.lr: {low: 1e-4, high: 1e-2, log: true}}\n"


@pytest.fixture(scope="module")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MNIST in few images of noise, in the files that the real one comes in, and a short text."""
    root, generator = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    (raw := root / "MNIST" / "raw").mkdir(parents=True)
    for name, number in (("train", 300), ("t10k", 60)):
        pixels, labels = generator.integers(0, 256, (number, 28, 28), np.uint8), np.arange(number, dtype=np.uint8) % 10
        for kind, header, values in (
            ("images-idx3", [2051, number, 28, 28], pixels),
            ("labels-idx1", [2049, number], labels),
        ):
            content = np.array(header, dtype=">i4").tobytes() + values.tobytes()
            (raw / f"{name}-{kind}-ubyte").write_bytes(content)
    (root / "tinyshakespeare").mkdir()
    (root / "tinyshakespeare" / "input.txt").write_text("to be, or not to be:\nthat is the question.\n" * 40)
    return root


def tiny(preset: str, root: Path, *more: str) -> list[str]:
    """The command of a tiny version of a preset."""
    fixed = ["trainer.epochs=2", "trainer.device=cpu", "trainer.log_every=1"]
    return [f"experiment={preset}", f"data.root={root}", *fixed, *TINY[preset][0], *more]


@pytest.mark.parametrize("preset", TINY)
def test_a_preset_goes_on_bit_for_bit_after_a_kill(preset: str, small_data: Path, tmp_path: Path) -> None:
    arguments = tiny(preset, small_data, "trainer.checkpoint_every=1")
    cfg = checked(recorded_part(compose(*arguments)), TrainConfig)
    expected = whole_run(cfg, tmp_path / "whole")
    after_step, step = Run.after_step, expected["lines"][0]["step"] + 1  # the first of the second epoch

    def die(run: Run) -> None:
        if run.progress.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        after_step(run)

    def work() -> None:
        Run.after_step = die  # type: ignore[method-assign]
        train.train(cfg, tmp_path / "killed")

    assert os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1]) == -signal.SIGKILL
    train.train(cfg, tmp_path / "killed")
    assert_same(outcome_of(tmp_path / "killed"), expected)
    for name in ["learning_curves.png", *TINY[preset][1]]:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("preset", TINY)
def test_a_preset_is_swept_searched_evaluated_and_trained_on_two_devices(
    preset: str,
    small_data: Path,
    run_command: Callable[..., Outcome],
    warm: Warm,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(findings, "PRESETS", tmp_path / "found")  # where a search writes its own
    arguments = tiny(preset, small_data, f"experiments_dir={tmp_path}")
    swept = run_command("train", "-m", *arguments, "seed=0,1", "trainer.images=false", "name=swept")
    assert swept.code == 0, swept.err
    runs = [path.parent for path in tmp_path.glob("swept/*/seed-*/metrics.json")]
    assert len(runs) == 2
    metrics = [read(run / "metrics.json")["best"] for run in runs]
    assert metrics[0]["val/loss"] != metrics[1]["val/loss"]
    split = TINY[preset][2]
    evaluated = [run_command("evaluate", f"run={runs[0]}", f"split={split}") for _ in range(2)]
    assert evaluated[0].code == 0 and f"{split}/loss" in evaluated[0].out, evaluated[0].err
    assert evaluated[0].out == evaluated[1].out
    own = tmp_path / "conf" / "search"
    own.mkdir(parents=True)
    (own / "own.yaml").write_text(SEARCH)
    options = [f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "search=own", "search.n_trials=1", "search.n_jobs=1"]
    searched = run_command("search_hyperparams", *arguments, *options, "trainer.images=false", "name=searched")
    assert searched.code == 0, searched.err
    assert read(tmp_path / "searched" / "trial-0000" / "status.json")["state"] == "finished"
    together = warm.run("train.py", *arguments, "trainer.devices=2", "data.drop_last=true", "name=together")
    if preset == "gan":
        assert together.returncode == 2 and "GAN" in together.stderr and "trainer.devices" in together.stderr
        return
    assert together.returncode == 0, together.stderr
    (directory,) = (tmp_path / "together").iterdir()
    assert {*TINY[preset][1]} <= {path.name for path in directory.iterdir()}


def test_an_evaluation_with_pictures_takes_inputs_that_are_no_tensor(
    small_data: Path, run_command: Callable[..., Outcome], tmp_path: Path
) -> None:
    arguments = tiny("text_classification", small_data, f"experiments_dir={tmp_path}", "trainer.epochs=1")
    assert run_command("train", *arguments).code == 0
    (directory,) = (tmp_path / "text_classification").iterdir()
    evaluated = run_command("evaluate", f"run={directory}")
    assert evaluated.code == 0, evaluated.err
    assert (directory / "confusion_matrix.png").exists()


# --------------------------------------------------------------------------------------------- each is what it says it is


def test_a_character_sees_those_before_it_and_is_asked_for_the_next(small_data: Path) -> None:
    examples = characters("train", str(small_data), block_size=8)
    assert examples is not None and characters("test", str(small_data)) is None
    assert torch.equal(examples.inputs[:, 1:], examples.targets[:, :-1])
    spec = DataSpec((8,), len(examples.classes), "custom", classes=tuple(examples.classes))
    network = CharGPT(spec, width=16)
    vectors = network.token(examples.inputs[:1]).detach().requires_grad_()
    network.token.forward = lambda _: vectors  # type: ignore[method-assign]
    network(examples.inputs[:1])[0, 4].sum().backward()
    reached = vectors.grad.abs().sum(dim=2)[0] > 0  # type: ignore[union-attr]
    assert reached.tolist() == [True] * 5 + [False] * 3
    losses = next_character(torch.zeros(2, 8, spec.output_size), examples.targets[:2])
    assert losses.shape == (2, 8) and losses.allclose(torch.tensor(math.log(spec.output_size)))


def test_a_text_that_is_missing_is_one_line(run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = run_command("train", "experiment=char_gpt", f"data.root={tmp_path}", f"experiments_dir={tmp_path}")
    assert_one_line(outcome, "input.txt is missing; get https://", "data.file")


def test_the_bound_of_a_vae_is_reconstruction_and_divergence() -> None:
    network, images = (
        VAE(DataSpec((1, 4, 4), 0, "custom"), hidden_sizes=[8], code_size=3).eval(),
        torch.ones(5, 1, 4, 4),
    )
    parts = network.loss(images)
    assert parts["loss"].allclose(parts["reconstruction"] + parts["kl"])
    mean, log_variance = network.encode(images)
    code, prior = torch.distributions.Normal(mean, (log_variance / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(parts["kl"], torch.distributions.kl_divergence(code, prior).sum(dim=1))
    assert network.loss(images)["loss"].equal(parts["loss"])


def test_coverage_counts_what_a_mode_has_too_little_of() -> None:
    places = centres(8, 1.0)
    for points, share, number in ((places, 1.0, 8), (places[:4], 0.5, 4), (torch.zeros(8, 2), 0.0, 0)):
        for metric, expected in ((coverage(8, 1.0, 0.05), share), (modes(8, 1.0, 0.05), number)):
            assert metric.result(metric.values(points, None).double().mean(dim=0)) == expected


def test_padding_and_its_neighbours_make_no_difference_to_a_text() -> None:
    reviews = Reviews("train", "", num_train=50)
    assert len({len(text) for text in reviews.texts}) > 5
    network = TextClassifier(DataSpec((), 2, "classification", classes=("bad", "good")), width=16).eval()
    together = network(reviews.collate_fn([reviews[number] for number in range(10)])[0])
    alone = torch.cat([network(reviews.collate_fn([reviews[number]])[0]) for number in range(10)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_schedules_warm_up_and_come_down() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)

    def rates(make: Callable[..., torch.optim.lr_scheduler.LambdaLR], **keys: float) -> list[float]:
        schedule, found = make(optimizer, **keys), []
        for _ in range(11):
            found.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        return found

    cosine = rates(warmup_cosine, warmup=2, total_steps=10, final_share=0.2)
    assert cosine[:3] == pytest.approx([1 / 3, 2 / 3, 1]) and cosine[6] == pytest.approx(0.6)
    assert cosine[10] == pytest.approx(0.2)
    stable = rates(warmup_stable_decay, warmup=2, decay=4, total_steps=10)
    assert stable == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])


# -------------------------------------------------------------------------------------------------- the full figures


def best_of(run_command: Callable[..., Outcome], folder: Path, preset: str, *arguments: str) -> dict[str, float]:
    outcome = run_command(
        "train", f"experiment={preset}", f"experiments_dir={folder}", "trainer.device=cpu", *arguments
    )
    assert outcome.code == 0, outcome.err
    (file,) = folder.glob("*/*/metrics.json")
    best: dict[str, float] = read(file)["best"]
    return best


@pytest.mark.slow
@pytest.mark.skipif(not (DATA_ROOT / "tinyshakespeare").exists(), reason="DATA_ROOT holds no tinyshakespeare")
def test_char_gpt_figure(run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    assert best_of(run_command, tmp_path, "char_gpt")["val/loss"] <= 1.88


@pytest.mark.slow
@pytest.mark.skipif(not (DATA_ROOT / "MNIST").exists(), reason="DATA_ROOT holds no MNIST")
def test_vae_figure(run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    assert best_of(run_command, tmp_path, "vae")["val/loss"] <= 103


@pytest.mark.slow
def test_gan_figure(run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    assert best_of(run_command, tmp_path, "gan")["val/modes"] == 8
    (film,) = tmp_path.glob("*/*/samples.gif")
    with Image.open(film) as picture:
        assert picture.n_frames >= 12


@pytest.mark.slow
def test_text_classification_figures(run_command: Callable[..., Outcome], tmp_path: Path) -> None:
    transformer = best_of(run_command, tmp_path / "transformer", "text_classification")["val/accuracy"]
    bag = best_of(run_command, tmp_path / "bag", "text_classification", "model.num_layers=0")["val/accuracy"]
    assert transformer >= 0.86 and bag <= transformer - 0.1
