"""A trained run as a model of lm-evaluation-harness (lm_eval.api.model.TemplateLM).

Under torchrun every rank is given all requests, computes every world_size-th batch, and gets all answers: lm-eval sees
one rank. The batches are the same for any number of ranks, and so are the results.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows
from tqdm import tqdm

from cli.composition import ConfigError
from engine.distributed import Ranks
from engine.generate import Sampling, generate
from engine.loss import IGNORED
from lab.evaluation.scoring import score_tokens
from lab.evaluation.trained_run import MeasuredRun

Window = tuple[int, list[int], int]  # the request it belongs to, token ids, how many at its end are scored


class TrainedModel(TemplateLM):
    """Answer lm-eval's requests with a run's model and its own tokenizer."""

    def __init__(self, run: MeasuredRun, ranks: Ranks, batch_size: int):
        super().__init__()
        self.run, self.ranks, self.batch_size = run, ranks, batch_size
        self._device = ranks.device

    @property
    def eot_token_id(self) -> int:
        return self.run.tokenizer.eot_token

    @property
    def max_length(self) -> int:
        """Return the largest number of tokens read at once: the training context."""
        return self.run.sequence_length

    @property
    def tokenizer_name(self) -> str:
        return f"{self.run.tokenizer.name}-{self.run.tokenizer_digest[:12]}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return the ids of a text; a special token spelled in it is ordinary text, as in preparing the data."""
        return list(self.run.tokenizer.encode_ordinary(string))

    def encode_request(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the ids of context and continuation; the context is never empty.

        Spaces at the context's end belong to the continuation and both are encoded as one text (TemplateLM._encode_pair).
        A text begins after the end-of-text token, which is therefore an empty context's encoding. Where a token spans the
        boundary so that nothing would be left to score, the two are encoded apart.
        """
        if not context:
            return [self.prefix_token_id], self.tok_encode(continuation)
        context_ids, continuation_ids = self._encode_pair(context, continuation)
        if continuation and not continuation_ids:
            context_ids, continuation_ids = self.tok_encode(context), self.tok_encode(continuation)
        return context_ids or [self.prefix_token_id], continuation_ids

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return, for each (context, continuation), log p(continuation | context) in nats and whether greedy decoding gives it."""
        pairs = [request.args for request in requests]
        return self._loglikelihood_tokens([(pair, *self.encode_request(*pair)) for pair in pairs], disable_tqdm)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return log p(text) in nats of each text, every token scored once, after the end-of-text token."""
        texts = [request.args[0] for request in requests]
        encoded = [(("", text), [self.prefix_token_id], self.tok_encode(text)) for text in texts]
        return [total for total, _ in self._loglikelihood_tokens(encoded, disable_tqdm)]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        windows = [
            (number, ids, scored)
            for number, (_, context, continuation) in enumerate(requests)
            for ids, scored in cut_windows(context, continuation, self.max_length)
        ]
        windows.sort(key=lambda window: -len(window[1]))  # like lengths together: little padding, the largest batch first
        batches = [windows[i : i + self.batch_size] for i in range(0, len(windows), self.batch_size)]
        # log p, and the number of tokens that greedy decoding would not have given
        totals = torch.zeros(len(requests), 2, dtype=torch.float64, device=self.device)
        for batch in self.progress(batches[self.ranks.rank :: self.ranks.world_size], disable_tqdm):
            numbers = torch.tensor([number for number, _, _ in batch], device=self.device)
            totals.index_add_(0, numbers, self.score_batch(batch))
        return [(total, missed == 0) for total, missed in self.ranks.all_reduce_sum(totals).tolist()]

    def score_batch(self, batch: list[Window]) -> torch.Tensor:
        """Return (batch, 2), float64: each window's log p of its scored tokens, and how many of them are not greedy."""
        longest = max(len(ids) for _, ids, _ in batch) - 1
        # Padded on the right, where a causal model does not look.
        inputs = torch.full((len(batch), longest), self.eot_token_id)
        targets = torch.full((len(batch), longest), IGNORED)
        for row, (_, ids, scored) in enumerate(batch):
            inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
            targets[row, len(ids) - 1 - scored : len(ids) - 1] = torch.tensor(ids[-scored:])
        targets = targets.to(self.device)
        with self.run.autocast():
            log_probability, is_greedy = score_tokens(self.run.model, inputs.to(self.device), targets, self.run.tokenizer.n_vocab)
        missed = ((targets != IGNORED) & ~is_greedy).sum(dim=1)
        return torch.stack((log_probability.double().sum(dim=1), missed.double()), dim=1)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return the greedy continuation of each (context, settings) up to the first stop text or end-of-text token."""
        mine = {}
        for number in self.progress(range(self.ranks.rank, len(requests), self.ranks.world_size), disable_tqdm):
            context, settings = requests[number].args
            if settings.get("do_sample") and settings.get("temperature", 1.0) > 0:
                raise ConfigError("this task asks for sampled text (do_sample); only greedy decoding is done here")
            until = settings.get("until") or []
            until = [until] if isinstance(until, str) else until
            mine[number] = self.continue_text(context, until, int(settings.get("max_gen_toks", 256)))
        answers = {number: text for share in self.ranks.gather(mine) for number, text in share.items()}
        return [answers[number] for number in range(len(requests))]

    def continue_text(self, context: str, until: list[str], max_new_tokens: int) -> str:
        tokenizer = self.run.tokenizer
        prompt = torch.tensor([self.tok_encode(context) or [self.eot_token_id]], device=self.device)
        produced, text = b"", ""
        with self.run.autocast():
            for token in generate(
                self.run.model, prompt, max_new_tokens, n_tokens=tokenizer.n_vocab, sampling=Sampling(temperature=0)
            ):
                if token.item() == self.eot_token_id:
                    break
                produced += tokenizer.decode_single_token_bytes(token.item())
                text = produced.decode("utf-8", "replace")
                stops = [text.index(stop) for stop in until if stop in text]
                if stops:
                    return text[: min(stops)]
        return text

    def progress(self, items: Sequence[Any], disable: bool) -> tqdm:
        quiet = None if self.ranks.is_main_process and not disable else True  # None: quiet unless on a terminal
        return tqdm(items, desc="lm-eval requests", disable=quiet)


def cut_windows(context: list[int], continuation: list[int], max_length: int) -> list[tuple[list[int], int]]:
    """Return (ids, how many at their end are scored) so that each token of the continuation is scored once.

    One window with as much of the context's end as fits. A continuation longer than max_length fills several, the first
    after the context's last token alone, the last as long as the others (lm-eval's rolling windows).
    """
    if not continuation:
        return []
    if len(continuation) <= max_length:
        return [((context + continuation)[-(max_length + 1) :], len(continuation))]
    rolling = get_rolling_token_windows(continuation, prefix_token=context[-1], max_seq_len=max_length, context_len=1)
    return [([*inputs, predicted[-1]], len(predicted)) for inputs, predicted in rolling]
