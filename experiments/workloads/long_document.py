"""Several questions on each of a few long documents, in mixed order: long prefills, long contexts, and a prefix cache
that pays only if documents stay in it until their next question."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from experiments.workloads.base import Streams, WorkloadBase, WorkloadItem
from experiments.workloads.prompts import PromptSource


@dataclass(frozen=True, kw_only=True)
class LongDocument(WorkloadBase):
    """A document, then a question of its own.

    Args:
        num_documents: different documents; a request's `client_id` is its document.
        questions_per_document: requests on each.
        document_tokens: length of each.
        min_question_tokens, max_question_tokens: lengths of the questions, uniform.
        min_output_tokens, max_output_tokens: output lengths, uniform.
    """

    num_documents: int
    questions_per_document: int
    document_tokens: int
    min_question_tokens: int
    max_question_tokens: int
    min_output_tokens: int
    max_output_tokens: int

    def __post_init__(self) -> None:
        WorkloadBase.__post_init__(self)
        self.require_counts("num_documents", "questions_per_document", "document_tokens")
        self.require_range("question_tokens")
        self.require_range("output_tokens")

    @property
    def num_requests(self) -> int:
        return self.num_documents * self.questions_per_document

    def items(self, streams: Streams, source: PromptSource) -> Iterable[WorkloadItem]:
        count = self.num_requests
        documents = [source.tokens(self.document_tokens, streams.prompts) for _ in range(self.num_documents)]
        order = streams.order.permutation(count) % self.num_documents
        question_lengths = self.draw_lengths("question_tokens", count, streams)
        output_lengths = self.draw_lengths("output_tokens", count, streams)
        arrivals = self.draw_arrivals(count, streams)
        return (
            WorkloadItem(
                prompt_token_ids=documents[document] + source.tokens(num_question, streams.prompts, start=False),
                max_tokens=num_output,
                arrival_s=arrival_s,
                client_id=int(document),
            )
            for document, num_question, num_output, arrival_s in zip(
                order, question_lengths, output_lengths, arrivals, strict=True
            )
        )
