"""A model and what it is trained with, as one module: a packed batch goes in, the summed loss comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.models.abilities import Abilities
from danlu.models.attention import packed_options
from danlu.models.value_head import ValueHead, hidden_width
from danlu.tune.batches import Batch
from danlu.tune.boundary import BoundaryCache, upper_half
from danlu.tune.config import TrainConfig
from danlu.tune.head import summed_cross_entropy, token_log_probs
from danlu.tune.objectives import OBJECTIVES, needs
from danlu.tune.parallel.configs import ShardingPlan
from danlu.tune.tally import Tally


@dataclass(slots=True)
class Seen:
    """What a model computed for a batch of T tokens.

    Attributes:
        hidden: last hidden states (T, d); of a model with ``logits`` only where a value head reads them.
        logits: (T, V), only of models whose logits are more than the output layer applied to the hidden states.
    """

    hidden: Tensor
    logits: Tensor | None = None


class Learner(nn.Module):
    """Wraps a causal language model for training.

    Args:
        model: the causal language model whose forward is trained (adapters already in place).
        abilities: from :func:`danlu.models.abilities.examine`.
        prefix: makes trained keys and values (layers, 2, key-value heads, N, d), or None.
        cache: hidden states below the lowest trained layer, kept from the first epoch on, or None.
        settings: the run's options; what is learnt is ``settings.task.stage``.

    Attributes:
        objective: the module of :data:`danlu.tune.objectives.OBJECTIVES` that says what is learnt.
        value_head: turns hidden states into numbers, for objectives that need it.
        tally: numbers that the objective gathers for the log.
        sharding: how its weights are to be divided among processes, or None to keep them whole in each.
    """

    def __init__(
        self,
        model: Any,
        abilities: Abilities,
        prefix: Any = None,
        cache: BoundaryCache | None = None,
        settings: TrainConfig | None = None,
    ) -> None:
        super().__init__()
        self.model, self.prefix = model, prefix
        self.settings = settings or TrainConfig(trainer={})
        self.objective = OBJECTIVES[self.settings.task.stage]
        self.abilities, self.cache = abilities, cache
        self.config = model.config
        self.tally = Tally()
        self.value_head = (
            ValueHead(hidden_width(model)).to(model.device) if "value_head" in needs(self.objective) else None
        )
        self.sharding: ShardingPlan | None = None

    def forward(self, **batch: Tensor) -> Tensor:
        """The summed loss of a batch under the objective, a scalar."""
        loss: Tensor = self.objective.loss(self, batch)
        return loss

    def see(self, batch: Batch) -> Seen:
        """Run the model over a batch; see :func:`danlu.tune.batches.lay_out`."""
        if self.abilities.plain_head:
            return Seen(self._hidden(batch))
        return self._with_logits(batch)

    def cross_entropy(self, batch: Batch) -> Tensor:
        """Σ -log p(target) over the trained tokens of a batch."""
        seen, at, targets = self.see(batch), batch["at"], batch["targets"]
        if seen.logits is not None:
            return F.cross_entropy(seen.logits[at].float(), targets, reduction="sum")
        hidden, head = seen.hidden[at], self.model.get_output_embeddings()
        return summed_cross_entropy(hidden.to(self._work_dtype(hidden)), head.weight, head.bias, targets)

    def log_probs(self, seen: Seen, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log p(target) of each trained token (m), and the entropy of its distribution (m, no gradient)."""
        at, targets = batch["at"], batch["targets"]
        if seen.logits is not None:
            log_p = (seen.logits[at].float() / temperature).log_softmax(-1)
            entropy = -(log_p.exp() * log_p).sum(-1).detach()
            return log_p.gather(1, targets.unsqueeze(1))[:, 0], entropy
        hidden, head = seen.hidden[at], self.model.get_output_embeddings()
        work = hidden.to(self._work_dtype(hidden))
        return token_log_probs(work, head.weight, head.bias, targets, temperature)

    def numbers(self, seen: Seen, places: Tensor) -> Tensor:
        """What the value head says of some places (n): rewards or values, float32."""
        assert self.value_head is not None, "the objective asks for no value head"
        result: Tensor = self.value_head(seen.hidden[places])
        return result

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Recompute activations in the backward pass."""
        self.model.gradient_checkpointing_enable(**options)

    def get_input_embeddings(self) -> nn.Module:
        """The model's embedding layer, where NEFTune adds its noise."""
        return self.model.get_input_embeddings()

    def _work_dtype(self, hidden: Tensor) -> torch.dtype:
        device = hidden.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype

    def _hidden(self, batch: Batch) -> Tensor:
        """Last hidden states of all tokens, (T, d)."""
        backbone, bounds = self.model.base_model, batch["bounds"]
        if not self.abilities.packed:
            rows = as_rows(batch)
            states = backbone(input_ids=rows.ids, attention_mask=rows.mask, use_cache=False).last_hidden_state
            return rows.flat(states)
        options, position_ids = self._options(bounds, batch.get("parents")), self._placed(batch["position_ids"])
        if self.cache is not None and "members" in batch:
            below = self.cache.states(backbone, batch["members"], self._options)
            with upper_half(backbone, self.cache.first_trained):
                states = backbone(inputs_embeds=below, position_ids=position_ids, use_cache=False, **options)
        else:
            states = backbone(input_ids=batch["input_ids"], position_ids=position_ids, use_cache=False, **options)
        return states.last_hidden_state[0]

    def _with_logits(self, batch: Batch) -> Seen:
        told: dict[str, Any] = {"use_cache": False, "output_hidden_states": self.value_head is not None}
        rows = None
        if self.abilities.packed:
            told |= self._options(batch["bounds"], batch.get("parents"))
            told |= {"input_ids": batch["input_ids"], "position_ids": self._placed(batch["position_ids"])}
        else:
            rows = as_rows(batch)
            told |= {"input_ids": rows.ids, "attention_mask": rows.mask}
        output = self.model(**told)
        hidden, logits = output.logits if self.value_head is None else output.hidden_states[-1], output.logits
        return Seen(hidden[0], logits[0]) if rows is None else Seen(rows.flat(hidden), rows.flat(logits))

    def _placed(self, position_ids: Tensor) -> Tensor:
        """Positions of the text: behind the prefix, if there is one."""
        return position_ids if self.prefix is None else position_ids + self.prefix.shape.length

    def _options(self, bounds: Tensor, parents: Tensor | None = None) -> dict[str, Any]:
        prefix = None if self.prefix is None else self.prefix.keys_and_values(self.model)
        return packed_options(
            bounds.tolist(), bounds.device, parents=None if parents is None else parents.tolist(), prefix=prefix
        )


@dataclass(slots=True)
class Rows:
    """Sequences as rows padded on the right, for models that cannot take them side by side.

    Attributes:
        ids: (n, L), each row a whole sequence, with its prompt where it continues one.
        mask: (n, L), 1 for text.
        row: (T), the row in which a token of the batch is computed; ``place``: where in it.
        place: see ``row``.
    """

    ids: Tensor
    mask: Tensor
    row: Tensor
    place: Tensor

    def flat(self, states: Tensor) -> Tensor:
        """What was computed for rows (n, L, …) in the order of the batch (T, …)."""
        return states[self.row, self.place]


def as_rows(batch: Batch) -> Rows:
    """Lay a batch out as padded rows: one for each sequence that no other continues."""
    bounds = batch["bounds"].tolist()
    parents = batch["parents"].tolist() if "parents" in batch else [-1] * (len(bounds) - 1)
    flat, device = batch["input_ids"][0], batch["input_ids"].device
    leaves = [number for number in range(len(parents)) if number not in set(parents)]
    chains = [[number] if parents[number] < 0 else [parents[number], number] for number in leaves]
    places = [torch.cat([torch.arange(bounds[i], bounds[i + 1]) for i in chain]) for chain in chains]
    row, place = torch.zeros(len(flat), dtype=torch.long), torch.zeros(len(flat), dtype=torch.long)
    for number, where in enumerate(places):
        row[where], place[where] = number, torch.arange(len(where))
    lengths = torch.tensor([len(where) for where in places])
    mask = torch.arange(int(lengths.max())).unsqueeze(0) < lengths.unsqueeze(1)
    ids = torch.zeros(mask.shape, dtype=flat.dtype, device=device)
    ids[mask.to(device)] = flat[torch.cat(places).to(device)]
    return Rows(ids, mask.long().to(device), row.to(device), place.to(device))
