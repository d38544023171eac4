"""Answers through vLLM, where it is installed: the same prompts and stop tokens as :class:`LocalEngine`, its kernels.

Prompts are tokenised here, by the template of the training, so that what was trained is what is asked. vLLM needs a
GPU; this engine is tested with a stand-in for the package, and was not run with the real one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from danlu.core.errors import MissingDependency, ModelError, UsageError
from danlu.data.schema import Conversation
from danlu.engine.joining import shared
from danlu.engine.protocol import (
    Completion,
    FinishReason,
    GenerationOptions,
    Prompt,
    Renderer,
    Request,
    Scored,
    ScoreRequest,
    request_seed,
)
from danlu.engine.text import cut_at_stop, decode, texts_of, without_lead

WINDOW = 256
"""Requests that vLLM is given at a time; answers come at the end of each window."""


class VllmEngine:
    """Generates and scores with vLLM in this process.

    Args:
        model: folder or hub id of the base.
        tokenizer: its tokenizer, loaded.
        renderer: turns conversations into prompts and knows what ends an answer.
        adapters: at most one LoRA adapter of the base.
        rank: of the adapter.
        arguments: further arguments of ``vllm.LLM`` (``dtype``, ``tensor_parallel_size``, …).

    Raises:
        MissingDependency: without vLLM.
        ModelError: for more than one adapter.
    """

    def __init__(
        self,
        model: str,
        tokenizer: Any,
        renderer: Renderer,
        *,
        adapters: Sequence[str] = (),
        rank: int = 16,
        **arguments: Any,
    ) -> None:
        if len(adapters) > 1:
            raise ModelError("vLLM takes one adapter at a time", hint="Merge them first: danlu export.")
        try:
            import vllm
        except ImportError as error:
            raise MissingDependency("vllm", "to answer with vLLM") from error
        self._vllm, self._adapter = vllm, None
        self.tokenizer, self.renderer = tokenizer, renderer
        if adapters:
            from vllm.lora.request import LoRARequest

            arguments |= {"enable_lora": True, "max_lora_rank": rank}
            self._adapter = LoRARequest("run", 1, adapters[0])
        self._llm = vllm.LLM(model=model, **arguments)
        self.context = int(self._llm.llm_engine.model_config.max_model_len)
        self._lead: str = getattr(renderer, "lead", "")

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Yield a completion for every request; see :meth:`danlu.engine.protocol.Engine.generate`.

        Raises:
            UsageError: for beams.
        """
        waiting = iter(requests)
        while window := list(islice(waiting, WINDOW)):
            prompts = [self._fitting(request) for request in window]
            choices = [self._sampling(request.options, request.key) for request in window]
            outputs = self._run([ids for ids, _ in prompts], choices)
            for request, (ids, cut), output in zip(window, prompts, outputs, strict=True):
                yield self._completion(request, len(ids), cut, output.outputs[0])

    def score(self, requests: Iterable[ScoreRequest]) -> Iterator[Scored]:
        """Yield log-likelihoods; see :meth:`danlu.engine.protocol.Engine.score`.

        Raises:
            UsageError: for a prompt that is no text, or one that does not fit into the context.
        """
        choice = self._vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1)
        for request in requests:
            alone, *joined = (self._ids(text) for text in texts_of(request, "vLLM", request.key))
            if max(map(len, joined)) >= self.context:
                raise UsageError(f"it does not fit into the context of {self.context} tokens", where=request.key)
            start = shared(alone, *joined)
            if not start:
                raise UsageError("the first token of a text has no log-probability", where=request.key)
            outputs = self._run(joined, [choice] * len(joined))
            seen = [_seen(ids, output.prompt_logprobs, start) for ids, output in zip(joined, outputs, strict=True)]
            yield Scored(
                request.key,
                tuple(math.fsum(numbers) for numbers, _ in seen),
                tuple(len(numbers) for numbers, _ in seen),
                tuple(greedy for _, greedy in seen),
                len(alone),
                per_token=tuple(numbers for numbers, _ in seen) if request.per_token else None,
            )

    def _run(self, prompts: Sequence[Sequence[int]], choices: Sequence[Any]) -> Any:
        given = [{"prompt_token_ids": list(ids)} for ids in prompts]
        return self._llm.generate(given, list(choices), use_tqdm=False, lora_request=self._adapter)

    def _ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, Conversation):
            return list(self.renderer.prompt(prompt))
        return list(self.tokenizer(prompt)["input_ids"]) if isinstance(prompt, str) else list(prompt)

    def _fitting(self, request: Request) -> tuple[list[int], int]:
        """The prompt, without its beginning where it leaves no room for the answer, and how much that is."""
        ids = self._ids(request.prompt)
        room = max(self.context - request.options.max_new_tokens, self.context // 2, 1)
        cut = max(len(ids) - room, 0)
        return ids[cut:], cut

    def _sampling(self, options: GenerationOptions, key: str) -> Any:
        if options.num_beams > 1:
            raise UsageError("vLLM searches no beams here", hint="Leave num_beams=1, or use the model without vLLM.")
        words: dict[str, Any] = {"temperature": 0.0}
        if options.do_sample:
            words = {"temperature": options.temperature, "top_p": options.top_p, "top_k": options.top_k or -1}
            words["seed"] = request_seed(options.seed, key)
        return self._vllm.SamplingParams(
            max_tokens=options.max_new_tokens,
            repetition_penalty=options.repetition_penalty,
            stop=list(options.stop) or None,
            stop_token_ids=sorted(self.renderer.stop_ids),
            **words,
        )

    def _completion(self, request: Request, prompt: int, cut: int, answer: Any) -> Completion:
        tokens = tuple(answer.token_ids)
        ended = bool(tokens) and tokens[-1] in self.renderer.stop_ids
        text = without_lead(decode(self.tokenizer, tokens[:-1] if ended else tokens), self._lead)
        text, _ = cut_at_stop(text, request.options.stop)
        finish: FinishReason = "length" if answer.finish_reason == "length" else "stop"
        return Completion(request.key, text, tokens, finish, prompt, cut)


def _seen(ids: Sequence[int], places: Sequence[Any], start: int) -> tuple[tuple[float, ...], bool]:
    """Log-probabilities of the tokens from ``start`` on, and whether each is the likeliest at its place."""
    own = [place[token] for token, place in zip(ids[start:], places[start:], strict=True)]
    return tuple(float(one.logprob) for one in own), all(one.rank == 1 for one in own)
