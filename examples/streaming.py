"""Text as it comes, and giving a request up: python examples/streaming.py [checkpoint]"""

import sys

from lightvllm import LLM, SamplingParams
from lightvllm.config import DEFAULT_MODEL

with LLM(sys.argv[1] if len(sys.argv) > 1 else DEFAULT_MODEL, max_model_len=512) as llm:
    prompt = llm.get_tokenizer().apply_chat_template(
        [
            {"role": "system", "content": "cities: id int key, name text, country text, population int"},
            {"role": "user", "content": "List the names of all cities in Norway"},
        ]
    )
    engine = llm.engine
    engine.add_request("read", prompt, SamplingParams(temperature=0, max_tokens=40), stream=True)
    engine.add_request("give up", prompt, SamplingParams(ignore_eos=True, max_tokens=400), stream=True)
    shown = 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            completion = output.outputs[0]
            if output.request_id == "read":
                print(completion.text[shown:], end="", flush=True)
                shown = len(completion.text)
            elif len(completion.token_ids) == 10:
                [aborted] = engine.abort_request(["give up"])
                print(f"\n[gave up after {len(aborted.outputs[0].token_ids)} tokens]")
    print()
