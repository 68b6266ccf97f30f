"""A request from prompt to output: forms of prompts, chats, cached prefixes, order, streams, aborts, figures."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from lightvllm import LLM, SamplingParams
from lightvllm.outputs import RequestOutput
from tests.e2e.checkpoint import Checkpoint, random_prompts

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
PROMPTS = random_prompts(40, 7, 25)


@pytest.fixture
def llm(text_checkpoint: Checkpoint, make_llm: Callable[..., LLM]) -> LLM:
    return make_llm(text_checkpoint.path, max_model_len=160)


def run(llm: LLM, prompts: Any, params: Any = GREEDY) -> list[RequestOutput]:
    return llm.generate(prompts, params, use_tqdm=False)


class TestPrompts:
    TEXT = "the ant in the hand"

    def test_every_form(self, llm: LLM) -> None:
        ids = llm.get_tokenizer().encode(self.TEXT)
        assert len(ids) < len(self.TEXT)  # merges were used
        as_text = run(llm, self.TEXT)[0]
        assert (as_text.prompt, as_text.prompt_token_ids) == (self.TEXT, ids)
        forms = [[self.TEXT], ids, [ids], {"prompt": self.TEXT}, {"prompt_token_ids": ids}, [{"prompt_token_ids": ids}]]
        for form in forms:
            (output,) = run(llm, form)
            assert output.prompt_token_ids == ids
            assert output.outputs == as_text.outputs
        assert run(llm, ids)[0].prompt is None

    def test_mixed_and_in_order(self, llm: LLM) -> None:
        """Outputs come in the order of the prompts, whichever ends first; ids are all different."""
        prompts = [PROMPTS[0], self.TEXT, {"prompt_token_ids": PROMPTS[1]}]
        params = [SamplingParams(max_tokens=count, ignore_eos=True) for count in (20, 2, 9)]
        outputs = run(llm, prompts, params) + run(llm, prompts, params)
        assert outputs[0].prompt_token_ids == PROMPTS[0]
        assert outputs[1].prompt == self.TEXT
        assert outputs[2].prompt_token_ids == PROMPTS[1]
        assert [len(output.outputs[0].token_ids) for output in outputs] == [20, 2, 9] * 2
        assert len({output.request_id for output in outputs}) == 6
        assert all(output.finished for output in outputs)

    def test_none_at_all(self, llm: LLM) -> None:
        assert run(llm, []) == []

    def test_a_bar_counts_them(self, llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
        llm.generate(PROMPTS, GREEDY)
        assert "3/3" in capsys.readouterr().err
        run(llm, PROMPTS)
        assert capsys.readouterr().err == ""


class TestChat:
    MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]  # noqa: RUF012
    RENDERED = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"

    def test_is_generate_on_the_rendered_template(self, llm: LLM) -> None:
        (answer,) = llm.chat(self.MESSAGES, GREEDY, use_tqdm=False)
        assert answer.prompt == self.RENDERED + "<|im_start|>assistant\n"
        assert answer.prompt_token_ids[0] == 256  # the special token, not its letters
        assert answer.outputs == run(llm, answer.prompt_token_ids)[0].outputs

    def test_several(self, llm: LLM) -> None:
        other = [{"role": "user", "content": "How?"}]
        answers = llm.chat([self.MESSAGES, other], GREEDY, use_tqdm=False)
        assert [answer.outputs for answer in answers] == [
            llm.chat(messages, GREEDY, use_tqdm=False)[0].outputs for messages in (self.MESSAGES, other)
        ]

    def test_options(self, llm: LLM) -> None:
        (answer,) = llm.chat(self.MESSAGES, GREEDY, use_tqdm=False, add_generation_prompt=False)
        assert answer.prompt == self.RENDERED
        (answer,) = llm.chat(
            [*self.MESSAGES, {"role": "assistant", "content": "Because"}],
            GREEDY,
            use_tqdm=False,
            add_generation_prompt=False,
            continue_final_message=True,
        )
        assert answer.prompt == self.RENDERED + "<|im_start|>assistant\nBecause"
        template = "{{ greeting }}{{ messages[0].content }}"
        (answer,) = llm.chat(
            self.MESSAGES, GREEDY, use_tqdm=False, chat_template=template, chat_template_kwargs={"greeting": "hi "}
        )
        assert answer.prompt == "hi Be brief."

    def test_what_it_refuses(self, llm: LLM) -> None:
        for messages in ([[]], [{"content": "no role"}], "text", [{"role": "user", "content": 5}]):
            with pytest.raises(ValueError, match=r"messages|role|content"):
                llm.chat(messages, GREEDY, use_tqdm=False)
        with pytest.raises(ValueError, match="chat_template"):
            llm.chat(self.MESSAGES, GREEDY, use_tqdm=False, chat_template="{% if %}")


class TestPrefixCache:
    def test_counts_whole_blocks_and_never_the_last_token(self, llm: LLM) -> None:
        (prompt,) = random_prompts(48)
        assert run(llm, prompt)[0].num_cached_tokens == 0
        assert run(llm, prompt)[0].num_cached_tokens == 32
        assert run(llm, [*prompt, 1])[0].num_cached_tokens == 48
        assert run(llm, prompt[:40])[0].num_cached_tokens == 32
        assert run(llm, [1, *prompt])[0].num_cached_tokens == 0
        figures = llm.get_metrics()
        assert (figures.prefix_cache_queries, figures.prefix_cache_hits) == (48 + 48 + 49 + 40 + 49, 32 + 48 + 32)

    def test_serves_what_was_generated_too(self, llm: LLM) -> None:
        """The next turn of a conversation finds the one before, prompt and answer."""
        (first,) = run(llm, PROMPTS[0], SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))
        turn = PROMPTS[0] + first.outputs[0].token_ids + [5, 6, 7]
        assert run(llm, turn)[0].num_cached_tokens == 64

    def test_serves_a_prompt_beside_in_the_same_batch(self, llm: LLM) -> None:
        (prompt,) = random_prompts(64)
        outputs = run(llm, [[*prompt, i] for i in range(4)])
        assert [output.num_cached_tokens for output in outputs] == [0, 64, 64, 64]

    def test_salts_keep_prefixes_apart(self, llm: LLM) -> None:
        def cached(salt: str | None) -> int | None:
            prompt: dict[str, Any] = {"prompt_token_ids": PROMPTS[0]}
            return run(llm, prompt if salt is None else prompt | {"cache_salt": salt})[0].num_cached_tokens

        assert [cached(salt) for salt in ("a", "b", None)] == [0, 0, 0]
        assert [cached(salt) for salt in ("a", "b", None)] == [32, 32, 32]

    def test_can_be_emptied_and_switched_off(
        self, llm: LLM, text_checkpoint: Checkpoint, make_llm: Callable[..., LLM]
    ) -> None:
        run(llm, PROMPTS[0])
        llm.reset_prefix_cache()
        assert run(llm, PROMPTS[0])[0].num_cached_tokens == 0
        without = make_llm(text_checkpoint.path, enable_prefix_caching=False)
        assert [run(without, PROMPTS[0])[0].num_cached_tokens for _ in range(2)] == [0, 0]
        assert without.get_metrics().prefix_cache_hit_rate == 0

    def test_gives_up_the_oldest_when_room_is_short(
        self, text_checkpoint: Checkpoint, make_llm: Callable[..., LLM]
    ) -> None:
        llm = make_llm(text_checkpoint.path, kv_cache_memory_bytes=text_checkpoint.kv_cache_bytes(12))
        prompts = random_prompts(64, 64, 64, seed=9)
        one_token = SamplingParams(max_tokens=1)
        for prompt in prompts:
            run(llm, prompt, one_token)
        run(llm, prompts[0], one_token)  # used again: now the second is the oldest
        run(llm, random_prompts(40, seed=8), one_token)
        assert run(llm, prompts[0], one_token)[0].num_cached_tokens == 48
        assert run(llm, prompts[1], one_token)[0].num_cached_tokens < 48


class TestOrder:
    def finished(self, llm: LLM, priorities: list[int]) -> list[str]:
        """The order in which requests end that came in the order 0, 1, 2..."""
        for i, priority in enumerate(priorities):
            llm.engine.add_request(str(i), PROMPTS[1], GREEDY, priority=priority)
        order = []
        while llm.engine.has_unfinished_requests():
            order += [output.request_id for output in llm.engine.step()]
        return order

    def test_first_come_first_served(self, text_checkpoint: Checkpoint, make_llm: Callable[..., LLM]) -> None:
        llm = make_llm(text_checkpoint.path, max_num_seqs=1)
        assert self.finished(llm, [0, 0, 0, 0]) == ["0", "1", "2", "3"]

    def test_by_priority(self, text_checkpoint: Checkpoint, make_llm: Callable[..., LLM]) -> None:
        llm = make_llm(text_checkpoint.path, max_num_seqs=1, scheduling_policy="priority")
        assert self.finished(llm, [3, 0, -2, 0]) == ["2", "1", "3", "0"]

    def test_by_priority_through_generate(self, text_checkpoint: Checkpoint, make_llm: Callable[..., LLM]) -> None:
        llm = make_llm(text_checkpoint.path, max_num_seqs=1, scheduling_policy="priority")
        outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False, priority=[2, 1, 0])
        ends = [output.metrics.finished_time for output in outputs if output.metrics]
        assert ends == sorted(ends, reverse=True)
        with pytest.raises(ValueError, match=r"priority.*1.*3"):
            llm.generate(PROMPTS, GREEDY, use_tqdm=False, priority=[1])

    def test_priority_without_the_policy_is_not_ignored(self, llm: LLM) -> None:
        with pytest.raises(ValueError, match="scheduling_policy"):
            llm.generate(PROMPTS, GREEDY, use_tqdm=False, priority=[2, 1, 0])

    def test_the_less_urgent_loses_its_blocks(self, text_checkpoint: Checkpoint, make_llm: Callable[..., LLM]) -> None:
        llm = make_llm(
            text_checkpoint.path,
            kv_cache_memory_bytes=text_checkpoint.kv_cache_bytes(6),
            scheduling_policy="priority",
        )
        params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
        outputs = llm.generate([PROMPTS[0], PROMPTS[0][::-1]], params, use_tqdm=False, priority=[1, 0])
        assert llm.get_metrics().num_preemptions > 0
        assert outputs[1].metrics.finished_time < outputs[0].metrics.finished_time


class TestStream:
    def stream(self, llm: LLM, params: SamplingParams) -> list[RequestOutput]:
        """Every output of a streamed request, while another runs beside it."""
        llm.engine.add_request("streamed", PROMPTS[0], params, stream=True)
        llm.engine.add_request("beside", PROMPTS[1], GREEDY)
        outputs = []
        while llm.engine.has_unfinished_requests():
            outputs += llm.engine.step()
        assert [output.finished for output in outputs if output.request_id == "beside"] == [True]
        return [output for output in outputs if output.request_id == "streamed"]

    @pytest.mark.parametrize("num_completions", [1, 3])
    def test_grows_into_the_whole(self, num_completions: int, llm: LLM) -> None:
        """Nothing that was shown is taken back; the last output is what `generate` returns."""
        params = SamplingParams(n=num_completions, seed=2, max_tokens=60, ignore_eos=True, logprobs=1)
        outputs = self.stream(llm, params)
        assert len(outputs) >= 60
        assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
        for before, after in itertools.pairwise(outputs):
            for old, new in zip(before.outputs, after.outputs, strict=True):
                assert new.text.startswith(old.text)
                assert new.token_ids[: len(old.token_ids)] == old.token_ids
                assert new.logprobs[: len(old.logprobs)] == old.logprobs
        if llm.config.device == "cpu":  # a GPU's products round by the number of rows, and "beside" is gone now
            assert outputs[-1].outputs == run(llm, PROMPTS[0], params)[0].outputs
        assert len({output.outputs[0].text for output in outputs}) > 20

    def test_never_shows_what_a_stop_string_takes_away(self, llm: LLM) -> None:
        fields: dict[str, Any] = {"temperature": 0, "max_tokens": 30, "allowed_token_ids": list(range(97, 123))}
        free = run(llm, PROMPTS[0], SamplingParams(**fields))[0].outputs[0].text
        stop = free[10:16]
        outputs = self.stream(llm, SamplingParams(**fields, stop=stop))
        assert outputs[-1].outputs[0].text == free[: free.index(stop)]
        assert all(free[: free.index(stop)].startswith(output.outputs[0].text) for output in outputs)


class TestAbort:
    def test_at_any_moment(self, text_checkpoint: Checkpoint, make_llm: Callable[..., LLM]) -> None:
        """Waiting, in the middle of the prompt, in the middle of the output: the others get what they always get."""
        llm = make_llm(text_checkpoint.path, max_num_batched_tokens=8, max_num_seqs=2, enable_prefix_caching=False)
        expected = run(llm, PROMPTS[2])[0].outputs[0].token_ids
        seen = set()
        for num_steps in range(12):
            llm.engine.add_request("victim", PROMPTS[0], GREEDY)
            llm.engine.add_request("other", PROMPTS[2], GREEDY)
            llm.engine.add_request("waiting", PROMPTS[1], GREEDY)
            outputs = [output for _ in range(num_steps) for output in llm.engine.step()]
            aborted = llm.engine.abort_request(["victim", "waiting", "never heard of"])
            assert [output.request_id for output in aborted] == ["victim", "waiting"]
            assert [output.outputs[0].finish_reason for output in aborted] == ["abort", "abort"]
            assert all(output.finished for output in aborted)
            seen.add(len(aborted[0].outputs[0].token_ids))
            llm.engine.core.check_integrity()
            while llm.engine.has_unfinished_requests():
                outputs += llm.engine.step()
            assert [(output.request_id, output.outputs[0].token_ids) for output in outputs] == [("other", expected)]
            assert llm.get_metrics().num_used_blocks == 0
            assert llm.engine.abort_request(["victim", "other"]) == []
        assert 0 in seen
        assert max(seen) > 3

    def test_of_several_completions(self, llm: LLM) -> None:
        llm.engine.add_request("a", PROMPTS[0], SamplingParams(n=3, max_tokens=20))
        for _ in range(4):
            llm.engine.step()
        (output,) = llm.engine.abort_request(["a"])
        assert [completion.finish_reason for completion in output.outputs] == ["abort"] * 3
        assert all(completion.token_ids for completion in output.outputs)

    def test_frees_the_name(self, llm: LLM) -> None:
        llm.engine.add_request("a", PROMPTS[0], GREEDY)
        with pytest.raises(ValueError, match="'a'"):
            llm.engine.add_request("a", PROMPTS[0], GREEDY)
        llm.engine.abort_request(["a"])
        llm.engine.add_request("a", PROMPTS[0], GREEDY)
        llm.engine.abort_request(["a"])

    def test_an_interrupted_generate_leaves_nothing_behind(self, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = [output.outputs for output in run(llm, PROMPTS)]
        submit = llm.engine.core.executor.submit
        num_calls = itertools.count()

        def interrupted(step: Any) -> Any:
            output = submit(step)
            if next(num_calls) == 5:
                raise KeyboardInterrupt
            return output

        with monkeypatch.context() as patch:
            patch.setattr(llm.engine.core.executor, "submit", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(llm, PROMPTS)
        assert llm.get_metrics().num_used_blocks == 0
        assert [output.outputs for output in run(llm, PROMPTS)] == expected


def test_metrics(llm: LLM) -> None:
    """Times in the order things happen; a request that waits for its turn is in the queue until then."""
    outputs = run(llm, PROMPTS)
    for output in outputs:
        times = output.metrics
        assert times is not None
        order = [times.arrival_time, times.first_scheduled_time, times.first_token_time, times.last_token_time]
        assert None not in [*order, times.finished_time]
        assert order == sorted(order)
        assert times.finished_time >= times.last_token_time > times.first_token_time
        assert times.time_in_queue >= 0
        assert times.time_to_first_token > 0


def test_time_in_queue(text_checkpoint: Checkpoint, make_llm: Callable[..., LLM]) -> None:
    llm = make_llm(text_checkpoint.path, max_num_seqs=1)
    first, second = (output.metrics for output in run(llm, PROMPTS[:2]))
    assert first.time_in_queue < first.time_to_first_token
    assert second.first_scheduled_time >= first.finished_time
    assert second.time_in_queue > first.time_in_queue
