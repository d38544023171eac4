"""The same loss as TRL where it has the objective: one batch, one tiny model, a policy that is not the reference.

Skipped where TRL is not installed; danlu does not need it. Differences by definition are written where they are.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("trl")
torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).parents[1] / "model"))

from tiny import build_model, build_tokenizer  # noqa: E402

from danlu.core.config import build  # noqa: E402
from danlu.models.abilities import examine  # noqa: E402
from danlu.tune.batches import Batch, lay_out  # noqa: E402
from danlu.tune.config import TrainConfig  # noqa: E402
from danlu.tune.learner import Learner  # noqa: E402
from danlu.tune.objectives.pairs import answers  # noqa: E402

pytestmark = [pytest.mark.golden, pytest.mark.filterwarnings("ignore")]

PAD = 3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The policy and the reference."""
    root = tmp_path_factory.mktemp("trl")
    return build_model("llama", root / "policy", seed=0), build_model("llama", root / "reference", seed=1)


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def rows() -> list[tuple[list[int], list[int], list[int]]]:
    """Prompt, better and worse answer as token ids."""
    random = np.random.default_rng(8)
    shapes = ((9, 4, 6), (3, 7, 2), (12, 1, 5), (5, 5, 5))
    return [tuple(random.integers(4, 300, length).tolist() for length in shape) for shape in shapes]  # type: ignore[misc]


def batch_of(values: list[float]) -> Batch:
    items = []
    for prompt, *rest in rows():
        untrained = (np.array(prompt, dtype=np.int32), np.zeros(len(prompt), dtype=np.bool_))
        items.append([untrained, *((np.array(ids, dtype=np.int32), np.ones(len(ids), dtype=np.bool_)) for ids in rest)])
    batch = lay_out(items)
    batch["values"] = torch.tensor(values)
    return batch


def ours(stage: str, models: tuple[Path, Path], values: list[float] | None = None, **options: Any) -> Any:
    """The mean loss, and the learner."""
    batch = batch_of(values or [float("nan")] * 4)
    with torch.no_grad():
        reference = load(models[1])
        batch["reference"] = answers(Learner(reference, examine(reference)), batch).log_p
        policy = load(models[0])
        settings = build(TrainConfig, {"stage": stage, **options}, where="test")
        learner = Learner(policy, examine(policy), settings=settings)
        return learner, batch, float(learner(**batch)) / learner.objective.count(batch)


def arguments(kind: Any, folder: Path, **options: Any) -> Any:
    return kind(
        output_dir=str(folder), report_to="none", use_cpu=True, bf16=False, per_device_train_batch_size=4, **options
    )


def dataset(*columns: str) -> Any:
    """One row that nobody reads: TRL's trainers want something to tokenise."""
    from datasets import Dataset

    values = {"label": True, "completion": "It is.", "prompt": "What?", "chosen": "It is.", "rejected": "No."}
    return Dataset.from_list([{name: values[name] for name in columns}] * 2)


def pad(sequences: list[list[int]], value: int) -> Any:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(part) for part in sequences], True, value)


def rows_of(sequences: list[tuple[list[int], list[int]]]) -> dict[str, Any]:
    """Padded rows with the masks that TRL's collators make."""
    return {
        "input_ids": pad([prompt + answer for prompt, answer in sequences], PAD),
        "attention_mask": pad([[1] * len(prompt + answer) for prompt, answer in sequences], 0),
        "completion_mask": pad([[0] * len(prompt) + [1] * len(answer) for prompt, answer in sequences], 0),
    }


def told_by(trainer: Any) -> dict[str, float]:
    """The last numbers of a trainer, in training or evaluation mode."""
    return {name: values[-1] for mode in trainer._metrics.values() for name, values in mode.items()}


@pytest.mark.parametrize(
    ("stage", "kind", "options"),
    [
        ("dpo", "sigmoid", {"pref_beta": 0.1}),
        ("dpo", "sigmoid", {"pref_beta": 0.7}),
        ("dpo", "hinge", {"pref_beta": 0.02, "pref_loss": "hinge"}),
        ("ipo", "ipo", {"pref_beta": 0.3}),
    ],
)
def test_dpo_and_ipo(stage: str, kind: str, options: dict[str, Any], models: tuple[Path, Path], tmp_path: Path) -> None:
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(
        model=load(models[0]),
        ref_model=load(models[1]),
        args=arguments(DPOConfig, tmp_path, beta=options["pref_beta"], loss_type=[kind]),
        train_dataset=dataset("prompt", "chosen", "rejected"),
        processing_class=build_tokenizer(),
    )
    batch = rows_of(
        [(prompt, better) for prompt, better, _ in rows()] + [(prompt, worse) for prompt, _, worse in rows()]
    )
    with torch.no_grad():
        theirs = float(trainer.compute_loss(trainer.model, batch))
    learner, _, loss = ours(stage, models, **options)
    assert loss == pytest.approx(theirs, abs=1e-4, rel=1e-4)
    told = told_by(trainer)
    means = learner.tally.means()
    assert means["logps_chosen"] == pytest.approx(told["logps/chosen"], rel=1e-4)
    assert means["accuracy"] == told["rewards/accuracies"] or stage == "ipo"
    if stage == "dpo":  # the rewards of ipo are per token here, like its loss; TRL tells those of dpo
        assert means["margin"] == pytest.approx(told["rewards/margins"], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.5, 0.5)])
def test_kto(weights: tuple[float, float], models: tuple[Path, Path], tmp_path: Path) -> None:
    from trl import KTOConfig, KTOTrainer

    labels = [True, False, True, True]
    options = {"beta": 0.05, "desirable_weight": weights[0], "undesirable_weight": weights[1]}
    trainer = KTOTrainer(
        model=load(models[0]),
        ref_model=load(models[1]),
        args=arguments(KTOConfig, tmp_path, **options),
        train_dataset=dataset("prompt", "completion", "label"),
        processing_class=build_tokenizer(),
    )
    foreign = rows_of([(prompt, worse) for prompt, _, worse in rows()])
    batch = rows_of([(prompt, better) for prompt, better, _ in rows()])
    batch |= {f"KL_{name}": value for name, value in foreign.items()} | {"label": torch.tensor(labels)}
    with torch.no_grad():
        theirs = float(trainer.compute_loss(trainer.model, batch))
    learner, _, loss = ours(
        "kto",
        models,
        [float(label) for label in labels],
        pref_beta=0.05,
        kto_chosen_weight=weights[0],
        kto_rejected_weight=weights[1],
    )
    assert loss == pytest.approx(theirs, abs=1e-4)
    told, means = told_by(trainer), learner.tally.means()
    assert means["kl"] == pytest.approx(told["kl"], rel=1e-4, abs=1e-4)
    assert means["reward_chosen"] == pytest.approx(told["rewards/chosen"], rel=1e-4)
    assert means["reward_rejected"] == pytest.approx(told["rewards/rejected"], rel=1e-4)


@pytest.mark.parametrize("margins", [None, [0.5, 0.0, 1.25, 0.0]])
def test_reward(margins: list[float] | None, models: tuple[Path, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    learner, _, loss = ours("rm", models, margins)
    model = AutoModelForSequenceClassification.from_pretrained(models[0], num_labels=1)
    model.score.weight.data.copy_(learner.value_head.summary.weight)  # ours has a bias too, which differences cancel
    trainer = RewardTrainer(
        model=model,
        args=arguments(RewardConfig, tmp_path),
        train_dataset=dataset("prompt", "chosen", "rejected"),
        processing_class=build_tokenizer(),
    )
    pairs = [(prompt, better) for prompt, better, _ in rows()] + [(prompt, worse) for prompt, _, worse in rows()]
    inputs = rows_of(pairs)
    del inputs["completion_mask"]
    inputs |= {"margin": torch.tensor(margins)} if margins else {}
    with torch.no_grad():
        theirs = float(trainer.compute_loss(trainer.model, inputs))
    assert loss == pytest.approx(theirs, abs=1e-4)


def concatenated() -> dict[str, Any]:
    """A batch as TRL's older trainers take it."""
    batch: dict[str, Any] = {}
    for place, name in ((1, "chosen"), (2, "rejected")):
        made = rows_of([(row[0], row[place]) for row in rows()])
        batch[f"{name}_input_ids"], batch[f"{name}_attention_mask"] = made["input_ids"], made["attention_mask"]
        batch[f"{name}_labels"] = made["input_ids"].masked_fill(made["completion_mask"] == 0, -100)
    return batch


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 0.5), (1.2, 0.0)])
def test_simpo(beta: float, gamma: float, models: tuple[Path, Path], tmp_path: Path) -> None:
    cpo = pytest.importorskip("trl.experimental.cpo")
    options = {"loss_type": "simpo", "beta": beta, "simpo_gamma": gamma, "cpo_alpha": 0.0, "max_length": 64}
    trainer = cpo.CPOTrainer(
        model=load(models[0]),
        args=arguments(cpo.CPOConfig, tmp_path, **options),
        train_dataset=dataset("prompt", "chosen", "rejected"),
        processing_class=build_tokenizer(),
    )
    with torch.no_grad():
        theirs, told = trainer.get_batch_loss_metrics(trainer.model, concatenated())
    learner, _, loss = ours("simpo", models, pref_beta=beta, simpo_gamma=gamma)
    assert loss == pytest.approx(float(theirs), abs=1e-4)
    assert learner.tally.means()["margin"] == pytest.approx(told["rewards/margins"], abs=1e-4)


def test_orpo(models: tuple[Path, Path], tmp_path: Path) -> None:
    """TRL's likelihood term is over the prompt as well, a mean over the tokens of the batch; ours, as in eq. 6 of the
    paper, is over the answer alone, a mean over answers. The other term is the same."""
    orpo = pytest.importorskip("trl.experimental.orpo")
    trainer = orpo.ORPOTrainer(
        model=load(models[0]),
        args=arguments(orpo.ORPOConfig, tmp_path, beta=0.4, max_length=64),
        train_dataset=dataset("prompt", "chosen", "rejected"),
        processing_class=build_tokenizer(),
    )
    with torch.no_grad():
        theirs, told = trainer.get_batch_loss_metrics(trainer.model, concatenated())
        learner, batch, loss = ours("orpo", models, pref_beta=0.4)
        likelihood = -float(answers(learner, batch).mean[:, 0].mean())
    assert loss - likelihood == pytest.approx(float(theirs) - told["nll_loss"], abs=1e-4)
    means = learner.tally.means()
    assert means["log_odds_ratio"] == pytest.approx(told["log_odds_chosen"], abs=1e-4)
    assert means["margin"] == pytest.approx(told["rewards/margins"], abs=1e-4)
