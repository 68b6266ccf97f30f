"""/v1/chat/completions: the next message of a conversation."""

from collections.abc import Sequence

from msgspec import UNSET
from starlette.requests import Request

from lightvllm.engine.prompts import TokenizedPrompt
from lightvllm.engine.streams import RequestDelta
from lightvllm.sampling_params import SamplingParams
from lightvllm.server.generate.answer import Answer
from lightvllm.server.generate.chat_choice import ChoiceNews, ChoiceWriter, whole_message
from lightvllm.server.generate.chunks import ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatDelta
from lightvllm.server.generate.logprobs import prompt_logprobs
from lightvllm.server.protocol.chat import ChatCompletionRequest


class ChatAnswer(Answer):
    """The answer to one request.

    Args:
        writers: one for each choice.
    """

    def __init__(
        self,
        http: Request,
        request: ChatCompletionRequest,
        prompt: TokenizedPrompt,
        params: SamplingParams,
        writers: list[ChoiceWriter],
    ) -> None:
        super().__init__(http, request, [prompt], params, prefix="chatcmpl")
        self.request = request
        self.writers = writers
        self._prompt_was_sent = False

    def _whole(self, deltas: Sequence[RequestDelta]) -> ChatCompletion:
        [delta] = deltas
        answer = ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=[self._choice(self.writers[output.index].write(output)) for output in delta.outputs],
            usage=self.usage.usage(),
        )
        if self.request.return_token_ids:
            answer.prompt_token_ids = self.prompts[0].token_ids
        if delta.prompt_logprobs is not None:
            answer.prompt_logprobs = prompt_logprobs(delta.prompt_logprobs)
        return answer

    def _choice(self, news: ChoiceNews) -> ChatChoice:
        return ChatChoice(
            index=news.index,
            message=whole_message(news.opening + news.deltas),
            logprobs=news.logprobs,
            finish_reason=news.finish_reason,
            stop_reason=news.stop_reason,
            token_ids=news.token_ids if self.request.return_token_ids else UNSET,
        )

    def _chunks(self, prompt_index: int, delta: RequestDelta) -> list[ChatChunk]:
        chunks = []
        for output in delta.outputs:
            for choice in self._chunk_choices(self.writers[output.index].write(output)):
                # The chunk with the role comes before the tokens that brought it about.
                is_opening = choice.delta.role is not UNSET
                chunks.append(self._chunk([choice], num_unsaid=len(output.token_ids) if is_opening else 0))
        return chunks

    def _chunk_choices(self, news: ChoiceNews) -> list[ChatChunkChoice]:
        said = [ChatChunkChoice(news.index, delta) for delta in news.deltas]
        if news.finish_reason is not None:
            end = ChatChunkChoice(news.index, ChatDelta(), finish_reason=news.finish_reason)
            end.stop_reason = news.stop_reason
            said.append(end)
        # The tokens come with the first chunk that is about them, or in one of their own while their text is held back.
        if self.request.return_token_ids or (news.logprobs is not None and news.logprobs.content):
            if not said:
                said.append(ChatChunkChoice(news.index, ChatDelta()))
            said[0].logprobs = news.logprobs
            said[0].token_ids = news.token_ids if self.request.return_token_ids else UNSET
        return [ChatChunkChoice(news.index, delta) for delta in news.opening] + said

    def _chunk(self, choices: list[ChatChunkChoice], num_unsaid: int = 0) -> ChatChunk:
        chunk = ChatChunk(id=self.id, created=self.created, model=self.model, choices=choices)
        if self.options.continuous_usage_stats:
            chunk.usage = self.usage.usage(num_unsaid)
        elif self.options.include_usage:
            chunk.usage = None
        if self.request.return_token_ids and not self._prompt_was_sent:
            self._prompt_was_sent = True
            chunk.prompt_token_ids = self.prompts[0].token_ids
        return chunk

    def _usage_chunk(self) -> ChatChunk:
        chunk = self._chunk([])
        chunk.usage = self.usage.usage()
        return chunk
