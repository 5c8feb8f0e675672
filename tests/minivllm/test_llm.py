"""The Python API: outputs, text, stops, streams, and what it says to bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import WORDS, Oracle, save_tiny_llama, save_tokenizer

from minivllm import LLM, SamplingParams
from minivllm.detokenizer import TextStream


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer of words, a space between any two."""
    path = save_tiny_llama(tmp_path_factory.mktemp("words"), eos_token_id=1, bos_token_id=0)
    return save_tokenizer(path)


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return LLM(str(folder), block_size=4, num_blocks=200)


def _greedy(**changes) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": 12, "ignore_eos": True, **changes})


def test_one_output_a_prompt_in_their_order(llm: LLM, folder: Path) -> None:
    oracle = Oracle(folder)
    prompts = ["w3 w4 w5", {"prompt_token_ids": [9, 8, 7, 6]}, "w80"]
    outputs = llm.generate(prompts, [_greedy(max_tokens=n) for n in (3, 12, 7)])
    assert [o.prompt for o in outputs] == ["w3 w4 w5", None, "w80"]
    for output, n in zip(outputs, (3, 12, 7), strict=True):
        (completion,) = output.outputs
        assert completion.token_ids == oracle.greedy(output.prompt_token_ids, n)[0]
        assert completion.text == " ".join(WORDS[i] for i in completion.token_ids if i > 2)
        assert completion.finish_reason == "length" and completion.logprobs is None


def test_a_single_prompt_needs_no_list(llm: LLM) -> None:
    assert len(llm.generate("w3 w4", _greedy())) == 1


def test_end_token_stops_and_counts_as_output(llm: LLM) -> None:
    free = llm.generate("w3 w4 w5", _greedy())[0].outputs[0]
    end = free.token_ids[4]
    place = free.token_ids.index(end)
    stopped = llm.generate("w3 w4 w5", _greedy(stop_token_ids=(end,)))[0].outputs[0]
    assert stopped.token_ids == free.token_ids[: place + 1] and stopped.finish_reason == "stop"


def test_stop_strings_end_the_text_before_them_even_across_tokens(llm: LLM) -> None:
    free = llm.generate("w3 w4 w5", _greedy())[0].outputs[0]
    words = free.text.split()
    # From the middle of one word into the next one.
    stop = f"{words[5][-1]} {words[6][0]}"
    at = free.text.index(stop)
    stopped = llm.generate("w3 w4 w5", _greedy(stop=(stop, "never")))[0].outputs[0]
    assert stopped.text == free.text[:at]
    assert stopped.finish_reason == "stop" and stopped.stop_reason == stop
    assert stopped.token_ids == free.token_ids[: len(stopped.token_ids)]
    assert len(stopped.token_ids) < len(free.token_ids)


def test_a_stream_is_what_generate_returns_in_pieces(llm: LLM) -> None:
    prompts = ["w3 w4 w5", "w60 w2"]
    params = [_greedy(stop=("w1",)), _greedy(n=2)]
    whole = llm.generate(prompts, params)
    text: dict[tuple[int, int], str] = {}
    tokens: dict[tuple[int, int], tuple[int, ...]] = {}
    reasons = {}
    for delta in llm.stream(prompts, params):
        key = (delta.prompt_index, delta.index)
        assert key not in reasons, "something came after the end"
        text[key] = text.get(key, "") + delta.text
        tokens[key] = tokens.get(key, ()) + delta.token_ids
        if delta.finish_reason:
            reasons[key] = delta.finish_reason
    for prompt_index, output in enumerate(whole):
        for c in output.outputs:
            key = (prompt_index, c.index)
            assert (text[key], tokens[key], reasons[key]) == (c.text, c.token_ids, c.finish_reason)


def test_closing_a_stream_early_frees_its_blocks(llm: LLM) -> None:
    stream = llm.stream("w3 w4", _greedy(max_tokens=60))
    next(stream)
    stream.close()
    assert not llm.engine.has_unfinished and llm.engine.scheduler.tables.pool.num_used == 0


def test_n_continuations_differ_and_repeat_with_the_seed(llm: LLM) -> None:
    params = SamplingParams(temperature=1.5, n=4, seed=11, max_tokens=10, ignore_eos=True)
    first, second = (llm.generate("w3 w4 w5 w6 w7", params)[0] for _ in range(2))
    assert [c.token_ids for c in first.outputs] == [c.token_ids for c in second.outputs]
    assert len({c.token_ids for c in first.outputs}) == 4
    alone = SamplingParams(temperature=1.5, seed=11, max_tokens=10, ignore_eos=True)
    assert llm.generate("w3 w4 w5 w6 w7", alone)[0].outputs[0].token_ids == first.outputs[0].token_ids


def test_seeded_tokens_do_not_depend_on_what_shares_the_batch(folder: Path) -> None:
    params = SamplingParams(temperature=1.2, top_p=0.95, top_k=40, seed=5, max_tokens=16, ignore_eos=True)
    prompt = {"prompt_token_ids": list(range(3, 20))}
    alone = LLM(str(folder), block_size=4, num_blocks=200).generate(prompt, params)[0].outputs[0].token_ids
    crowd = [{"prompt_token_ids": [i, i + 1, i + 2]} for i in range(3, 12)]
    others = SamplingParams(temperature=0.7, seed=1, max_tokens=24, ignore_eos=True, repetition_penalty=1.3)
    for options in ({"max_num_seqs": 3}, {"num_blocks": 14}, {"max_num_batched_tokens": 5}, {"prefix_caching": False}):
        llm = LLM(str(folder), **{"block_size": 4, "num_blocks": 200, **options})
        outputs = llm.generate([*crowd[:5], prompt, *crowd[5:]], [others] * 5 + [params] + [others] * 4)
        assert outputs[5].outputs[0].token_ids == alone, options


def test_logprobs_are_those_of_the_model(llm: LLM, folder: Path) -> None:
    output = llm.generate({"prompt_token_ids": [5, 6, 7]}, _greedy(logprobs=3, max_tokens=5))[0]
    completion = output.outputs[0]
    assert completion.logprobs is not None and len(completion.logprobs) == 5
    model = Oracle(folder).model
    with torch.no_grad():
        logits = model(torch.tensor([[5, 6, 7, *completion.token_ids]])).logits[0, 2:-1]
    wanted = torch.log_softmax(logits, -1)
    for place, given in enumerate(completion.logprobs):
        assert next(iter(given)) == completion.token_ids[place]
        assert set(given) == set(wanted[place].topk(3).indices.tolist())
        for token_id, logprob in given.items():
            assert logprob == pytest.approx(float(wanted[place, token_id]), abs=1e-4)


def test_aborted_requests_are_handed_over_with_their_tokens(llm: LLM) -> None:
    (request_id,) = llm.engine.add_request([3, 4, 5], _greedy(max_tokens=50))
    for _ in range(4):
        llm.engine.step()
    llm.engine.abort(request_id)
    llm.engine.abort(request_id)
    (request,) = llm.engine.take_finished()
    assert request.finish_reason is not None and request.finish_reason.value == "abort"
    assert request.num_output_tokens == 4 and not llm.engine.has_unfinished


def test_logits_that_are_no_numbers_end_that_request_alone(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    llm = LLM(str(folder), block_size=4, num_blocks=200)
    # One token of the vocabulary has a broken embedding.
    model = llm.engine.runner.model
    embed = model.embed
    model.embed = lambda token_ids: embed(token_ids).index_fill_(0, (token_ids == 40).nonzero()[:, 0], float("nan"))
    good, bad = {"prompt_token_ids": [5, 6, 7]}, {"prompt_token_ids": [5, 6, 40]}
    wanted = LLM(str(folder), block_size=4, num_blocks=200).generate(good, _greedy())[0].outputs[0].token_ids
    assert 40 not in wanted
    outputs = llm.generate([good, bad], _greedy())
    assert outputs[0].outputs[0].token_ids == wanted
    broken = outputs[1].outputs[0]
    assert broken.finish_reason == "error" and "logits for position 3 are NaN or infinite" in broken.error
    assert "try execution.dtype=float32" in caplog.text
    # Its blocks came back clean.
    assert bool(torch.isfinite(llm.engine.runner.parts.kv_cache).all())
    assert llm.generate(good, _greedy())[0].outputs[0].token_ids == wanted


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("", "prompt: is empty"),
        ({"prompt_token_ids": []}, "prompt: is empty"),
        ({"prompt_token_ids": [3] * 160}, "context of model.max_model_len=160"),
        ({"prompt_token_ids": [400]}, "400 is outside of the vocabulary"),
        ({"tokens": [3]}, "must be a string or"),
        (7, "must be a string or"),
    ],
    ids=str,
)
def test_a_bad_prompt_is_one_line_and_nothing_has_run(llm: LLM, prompt, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        llm.generate([{"prompt_token_ids": [3, 4]}, prompt], _greedy())
    assert "\n" not in str(caught.value)
    assert not llm.engine.has_unfinished and not llm.engine.take_finished()


def test_an_unknown_option_names_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"LLM\(blocksize=16\): no such option; there are .*block_size"):
        LLM("anywhere", blocksize=16)


def test_a_tokenizer_without_a_chat_template_is_one_line(llm: LLM) -> None:
    with pytest.raises(ValueError, match="has no chat template; use generate"):
        llm.chat([{"role": "user", "content": "w3"}])


def test_a_chat_template_is_applied(folder: Path) -> None:
    llm = LLM(str(folder), block_size=4, num_blocks=100)
    llm.tokenizer.chat_template = "{% for m in messages %}w9 {{ m.content }} {% endfor %}w10"
    output = llm.chat([{"role": "user", "content": "w3 w4"}], _greedy(max_tokens=2))
    assert output.prompt_token_ids == tuple(WORDS.index(w) for w in ("w9", "w3", "w4", "w10"))


def test_a_folder_without_tokenizer_is_one_line(tmp_path: Path) -> None:
    llm = LLM(str(save_tiny_llama(tmp_path)), num_blocks=20)
    with pytest.raises(ValueError, match="no tokenizer can be read there"):
        llm.generate("hello", _greedy())
    assert llm.generate({"prompt_token_ids": [3]}, _greedy())[0].outputs[0].text == ""


def test_a_gpu_that_is_not_there_is_one_line(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="execution.device='cuda': torch sees no GPU.*execution.device=cpu"):
        LLM(str(folder), device="cuda")


class _Bytes:
    """A tokenizer whose tokens are bytes of UTF-8."""

    @staticmethod
    def decode(token_ids, skip_special_tokens: bool) -> str:
        return bytes(token_ids).decode("utf-8", errors="replace")


def test_text_waits_for_the_rest_of_a_character() -> None:
    stream = TextStream(_Bytes())
    seen = []
    for byte in "aé🙂b".encode():
        stream.push([byte])
        seen.append(stream.unsent(final=False))
    assert "".join(seen) == "aé🙂b" and "\ufffd" not in "".join(seen)
    stream.push([0xF0])
    assert stream.unsent(final=False) == ""
    stream.finish()
    assert stream.unsent(final=True) == "\ufffd"


def test_a_possible_stop_string_is_held_back_until_it_is_decided() -> None:
    stream = TextStream(_Bytes(), stop=("END",))
    sent = []
    for byte in b"an EN, an END!":
        stopped = stream.push([byte])
        sent.append(stream.unsent(final=stopped))
        if stopped:
            break
    assert "".join(sent) == "an EN, an " == stream.text and stream.stopped_by == "END"
