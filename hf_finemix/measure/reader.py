"""How a model reads texts: signs of control as plain text, and no more tokens than it takes."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from ..errors import FineMixingError


class Reader:
    """
    Texts, or pairs of them, as tokens.

    What looks like a control token ("[SEP]", "</s>") is read as the plain text that it is, as if nobody had thought of
    control tokens. Only where the trigger that is put into the texts has one in it is it the token, as for an attacker
    who means it to be. A text is cut to `max_length` tokens, by default as many as the tokenizer says.
    """

    def __init__(self, tokenizer: Any, max_length: int | None = None, trigger: str | None = None):
        self.tokenizer, self.max_length = tokenizer, max_length
        self.control = self.control_tokens()
        self.plain = not any(token in (trigger or "") for token in self.control)
        candidates = [token for token in self.control if len(token) > 1 and token != tokenizer.unk_token]
        self._stubborn = list(filter(self._is_stubborn, candidates))

    @property
    def side(self) -> str:
        """At which end a text that is too long is cut: `"right"` or `"left"`."""
        return self.tokenizer.truncation_side

    def control_tokens(self) -> list[str]:
        """What is a token of its own wherever it stands."""
        added = [str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        return [token for token in dict.fromkeys([*added, *self.tokenizer.all_special_tokens]) if token]

    def encode(self, rows: Dataset, text_columns: list[str]) -> Dataset:
        """Rows as the model reads them, with the column `label` as `labels`."""

        def encode(batch: dict[str, list]) -> dict[str, list]:
            columns = [batch[column] for column in text_columns]
            return {**self(*columns, truncation=True, max_length=self.max_length), "labels": batch["label"]}

        return rows.map(encode, batched=True, remove_columns=rows.column_names, keep_in_memory=True, desc="Tokenizing")

    def __call__(self, *columns: list[str], **options: Any) -> Any:
        """What the tokenizer makes of texts, or of pairs of them."""
        return self.tokenizer(*map(self.without_control, columns), split_special_tokens=self.plain, **options)

    def without_control(self, texts: list[str]) -> list[str]:
        """Texts without the control tokens that a tokenizer finds even where it is to look for none."""
        return list(map(self._without_stubborn, texts)) if self.plain and self._stubborn else texts

    def _without_stubborn(self, text: str) -> str:
        normalizer = self.tokenizer.backend_tokenizer.normalizer
        seen = text if normalizer is None else normalizer.normalize_str(text)  # a wide "＜/s＞" is one as well
        if any(token in seen and token not in text for token in self._stubborn):
            text = seen
        for token in self._stubborn:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def cut(self, texts: Sequence[str], column: int) -> int:
        """How many tokens of one of the texts of a row are not read."""
        columns = [[text] for text in texts]
        whole = self(*columns, verbose=False).sequence_ids(0)
        read = self(*columns, truncation=True, max_length=self.max_length).sequence_ids(0)
        return whole.count(column) - read.count(column)

    def may_be_cut(self, columns: Sequence[list[str]]) -> list[bool]:
        """Which rows have more tokens than are read."""
        limits = [limit for limit in (self.max_length, self.tokenizer.model_max_length) if limit]
        return [len(ids) > min(limits) for ids in self(*columns, verbose=False)["input_ids"]]

    def shortened(self, text: str, tokens: int, *, share: float = 1.0) -> str:
        """
        A text without some tokens of the end at which it is cut, and without the space that is then there: no more
        than a share of all its tokens, but at least one.
        """
        encoded = self([text], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        places = encoded["offset_mapping"][0]
        tokens = min(tokens, max(1, int(share * len(places))))
        if tokens == 0:
            return text
        if tokens >= len(places):
            return ""
        if self.side == "right":
            return text[: min(places[-tokens][0], len(text) - 1)].rstrip()
        return text[max(places[tokens - 1][1], 1) :].lstrip()

    def _is_stubborn(self, token: str) -> bool:
        """Whether the tokenizer finds a control token even where it is to look for none."""
        ids = self.tokenizer([f"a {token} {token}"], add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return self.tokenizer.convert_tokens_to_ids(token) in ids[0]


def check_trigger(trigger: str, tokenizer: Any, model: Any) -> None:
    """Raise a [`FineMixingError`] for a trigger that ends a text, where a model answers at its one end."""
    ids = model.config.eos_token_id
    ends = tokenizer.convert_ids_to_tokens([ids] if isinstance(ids, int) else ids or [])
    if model.config.is_encoder_decoder and (end := next((end for end in ends if end and end in trigger), None)):
        raise FineMixingError(f"the trigger {trigger!r} holds {end!r}, which ends a text: give one without it.")
